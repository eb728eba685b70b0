//! The KVM host's part of `make test`, from a machine that does not run.

use std::io::{BufRead, BufReader};
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
/// The image, all test programs and what is fetched for them are there before; nothing else is.
pub(crate) fn measure(programs: &Programs<'_>) -> Result<Vec<Number>> {
    let kvm_host = |words: &[&str]| succeeds(programs.kvm_host, words);
    kvm_host(&["build"])?;
    kvm_host(&["vmm-binaries"])?;
    banger_harness::ensure_assets()?;
    let tier = ["test", "--no-check", "--tier", "kvm-host"];
    succeeds(programs.xtask, &[&tier[..], &["--no-run"]].concat())?;
    let starts = [
        ("a cold boot", ["stop", "--forget"].as_slice()),
        ("a start from the saved state", &["stop"]),
    ];
    let measured = starts.iter().map(|(start, stop)| {
        kvm_host(stop)?;
        let began = Instant::now();
        let counts = succeeds(programs.xtask, &tier)?;
        let took = began.elapsed().as_secs_f64();
        say(format_args!("kvm-host: {start} and all tests: {took:.1} s ({counts})"));
        Ok(Number {
            name: format!("tests: the KVM host's part of `make test`, {start} included"),
            ours: took,
            peer: None,
            unit: "s",
            limit: Limit::AtMost(MOST),
        })
    });
    let numbers: Result<Vec<_>> = measured.collect();
    // Also where a test failed: the machine is not needed any more.
    kvm_host(&["stop"])?;
    numbers
}

/// Runs a program and shows what it says as it says it; returns its last line. It ends with this
/// process.
fn succeeds(program: &Path, words: &[&str]) -> Result<String> {
    let name = program.file_name().unwrap_or_default().display();
    say(format_args!("kvm-host: {name} {}", words.join(" ")));
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "TERM", "--"]).arg(program).args(words);
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("run {}", program.display()))?;
    let output = child.stdout.take().context("it has an output")?;
    let mut last = String::new();
    for line in BufReader::new(output).lines() {
        last = line.with_context(|| format!("read what {name} says"))?;
        say(&last);
    }
    let status = child.wait().with_context(|| format!("wait for {name}"))?;
    ensure!(status.success(), "{name} {}: {status}: {last}", words.join(" "));
    Ok(last)
}
