//! The KVM host's part of `make test`, from a machine that does not run.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, ensure};

use crate::number::{Limit, Number};
use crate::say;

/// What the whole may take, in seconds.
const MOST: f64 = 600.0;

/// The programs that are needed.
#[derive(Debug)]
pub(crate) struct Programs<'a> {
    /// The one that keeps the machine.
    pub(crate) kvm_host: &'a Path,
    /// `cargo xtask`, which `make test` is.
    pub(crate) xtask: &'a Path,
}

/// Runs the tier twice, the tests inside the machine and those of the tool, as `make test` does:
/// after a cold boot, and after a start from the saved state.
///
/// The image and all test programs are built before; nothing else is.
pub(crate) fn measure(programs: &Programs<'_>) -> Result<Vec<Number>> {
    let succeeds = |program: &Path, words: &[&str]| {
        let output = Command::new(program).args(words).stdin(Stdio::null()).output();
        let output = output.with_context(|| format!("run {}", program.display()))?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let errors = String::from_utf8_lossy(&output.stderr);
        let name = program.file_name().unwrap_or_default().display();
        ensure!(output.status.success(), "{name} {}: {text}{errors}", words.join(" "));
        Ok(text)
    };
    let kvm_host = |words: &[&str]| succeeds(programs.kvm_host, words);
    let tier = ["test", "--no-check", "--tier", "kvm-host"];
    if let Err(error) = kvm_host(&["build"]) {
        say(format_args!("left out: the KVM host: {error:#}"));
        return Ok(Vec::new());
    }
    succeeds(programs.xtask, &[&tier[..], &["--no-run"]].concat())?;
    let mut numbers = Vec::new();
    for (start, stop) in [
        ("a cold boot", ["stop", "--forget"].as_slice()),
        ("a start from the saved state", &["stop"]),
    ] {
        kvm_host(stop)?;
        let began = Instant::now();
        let text = succeeds(programs.xtask, &tier)?;
        let took = began.elapsed().as_secs_f64();
        let counts = text.lines().last().unwrap_or_default();
        say(format_args!("kvm-host: {start} and all tests: {took:.1} s ({counts})"));
        numbers.push(Number {
            name: format!("tests: the KVM host's part of `make test`, {start} included"),
            ours: took,
            peer: None,
            unit: "s",
            limit: Limit::AtMost(MOST),
        });
    }
    kvm_host(&["stop"])?;
    Ok(numbers)
}
