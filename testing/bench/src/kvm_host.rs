//! The KVM host's part of `make test`, from a machine that does not run.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, ensure};

use crate::number::{Limit, Number};
use crate::say;

/// What the whole may take, in seconds.
const MOST: f64 = 600.0;

/// Runs the tests twice: after a cold boot, and after a start from the saved state.
///
/// The image and the test program are built before; nothing else is.
pub(crate) fn measure(program: &Path) -> Result<Vec<Number>> {
    let succeeds = |words: &[&str]| {
        let output = Command::new(program).args(words).stdin(Stdio::null()).output();
        let output = output.with_context(|| format!("run {}", program.display()))?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let errors = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "kvm-host {}: {text}{errors}", words.join(" "));
        Ok(text)
    };
    if let Err(error) = succeeds(&["build"]) {
        say(format_args!("left out: the KVM host: {error:#}"));
        return Ok(Vec::new());
    }
    let mut numbers = Vec::new();
    for (start, stop) in [
        ("a cold boot", ["stop", "--forget"].as_slice()),
        ("a start from the saved state", &["stop"]),
    ] {
        succeeds(stop)?;
        let began = Instant::now();
        let text = succeeds(&["test"])?;
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
    succeeds(&["stop"])?;
    Ok(numbers)
}
