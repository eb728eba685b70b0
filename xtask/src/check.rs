//! `cargo xtask check`: every rule that needs no test run.

use anyhow::{Result, bail};

use crate::process::{cargo, find_program, must_succeed};
use crate::{dep_direction, docs, layout, privileged_budget, say};

/// What became of one step.
enum Outcome {
    Passed,
    Skipped(&'static str),
}

fn formatted() -> Result<Outcome> {
    must_succeed(cargo().args(["fmt", "--all", "--check"]))?;
    // No member of the workspace.
    must_succeed(cargo().args(["fmt", "--check", "--manifest-path", "testing/fuzz/Cargo.toml"]))?;
    Ok(Outcome::Passed)
}

fn budget() -> Result<Outcome> {
    privileged_budget::run(&crate::root()?).map(|()| Outcome::Passed)
}

fn lints() -> Result<Outcome> {
    let arguments =
        ["clippy", "--quiet", "--locked", "--workspace", "--all-targets", "--", "-D", "warnings"];
    must_succeed(cargo().args(arguments))?;
    Ok(Outcome::Passed)
}

fn documentation() -> Result<Outcome> {
    let mut command = cargo();
    command.args([
        "doc",
        "--quiet",
        "--locked",
        "--workspace",
        "--no-deps",
        "--document-private-items",
    ]);
    must_succeed(command.env("RUSTDOCFLAGS", "-D warnings"))?;
    Ok(Outcome::Passed)
}

fn licences() -> Result<Outcome> {
    if find_program("cargo-deny").is_none() {
        return Ok(Outcome::Skipped(
            "cargo-deny is not installed (cargo install --locked cargo-deny)",
        ));
    }
    must_succeed(cargo().args(["deny", "--offline", "check", "licenses", "bans", "sources"]))?;
    Ok(Outcome::Passed)
}

/// One rule: what it is called and what checks it.
type Step = (&'static str, fn() -> Result<Outcome>);

/// Runs every step, also after one failed, so that one run shows all faults.
pub(crate) fn run() -> Result<()> {
    let steps: [Step; 8] = [
        ("format", formatted),
        ("dep-direction", || dep_direction::run(None).map(|()| Outcome::Passed)),
        ("layout", || layout::run().map(|()| Outcome::Passed)),
        ("privileged-budget", budget),
        ("lints", lints),
        ("documentation", documentation),
        ("docs", || docs::run().map(|()| Outcome::Passed)),
        ("licences", licences),
    ];
    let mut failed = Vec::new();
    for (name, step) in steps {
        match step() {
            Ok(Outcome::Passed) => say(format_args!("check {name}: PASS")),
            Ok(Outcome::Skipped(reason)) => say(format_args!("check {name}: SKIP: {reason}")),
            Err(error) => {
                say(format_args!("check {name}: FAIL: {error:#}"));
                failed.push(name);
            }
        }
    }
    if !failed.is_empty() {
        bail!("check failed: {}", failed.join(", "));
    }
    Ok(())
}
