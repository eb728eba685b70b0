//! `cargo xtask mutants`: changes the root helper's gates in small ways, one at a time, and looks
//! whether their tests notice. docs/threat-model.md explains the changes that none does.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde::Deserialize;

use crate::process::{cargo_with, installed};
use crate::say;

/// The version that is installed where there is none.
const VERSION: &str = "27.1.0";
/// Where the gates are.
const GATES: &str = "privileged/gates/src";
/// What the tool writes, below the root: it makes `mutants.out` in it.
const OUTPUT: &str = "target/mutants";
/// Of a hundred changes that compile, so many must be noticed.
const LEAST_CAUGHT: usize = 90;
/// A change that makes the tests run longer than this is one that they notice, in seconds.
const TIMEOUT: &str = "60";

/// What to change.
#[derive(Debug, Default, clap::Args)]
pub(crate) struct Options {
    /// Only the lines that the last commit, and what is not committed, changed
    #[arg(long)]
    changed: bool,
}

/// What came of it, as `outcomes.json` has it.
#[derive(Debug, Deserialize)]
struct Outcomes {
    caught: usize,
    missed: usize,
    timeout: usize,
    unviable: usize,
}

/// Changes the gates and says what went unnoticed.
pub(crate) fn run(options: &Options) -> Result<()> {
    let root = crate::root()?;
    if !options.changed {
        return mutate(&root, None).map(drop);
    }
    match changed(&root)? {
        Some(diff) => mutate(&root, Some(&diff)).map(drop),
        None => {
            say("mutants: the last commit and the work tree leave the gates alone");
            Ok(())
        }
    }
}

/// The same for `make test`; how many changes there were.
pub(crate) fn of_this_commit() -> Result<usize> {
    let root = crate::root()?;
    match changed(&root)? {
        Some(diff) => mutate(&root, Some(&diff)),
        None => Ok(0),
    }
}

/// What the last commit and the work tree changed in the gates, as a diff in a file.
fn changed(root: &Path) -> Result<Option<PathBuf>> {
    let diff = Command::new("git")
        .args(["diff", "--no-ext-diff", "--no-textconv", "HEAD~1", "--", GATES])
        .current_dir(root)
        .output()
        .context("run git diff")?;
    if !diff.status.success() {
        // A clone of one commit, or no clone at all.
        say("mutants: what the last commit changed is not known here");
        return Ok(None);
    }
    if diff.stdout.is_empty() {
        return Ok(None);
    }
    let path = root.join("target/gates.diff");
    std::fs::write(&path, diff.stdout).with_context(|| format!("write {}", path.display()))?;
    Ok(Some(path))
}

fn mutate(root: &Path, diff: Option<&Path>) -> Result<usize> {
    let output = root.join(OUTPUT);
    std::fs::create_dir_all(&output).with_context(|| format!("make {}", output.display()))?;
    let _ = std::fs::remove_dir_all(output.join("mutants.out"));
    let mut command = cargo_with(installed(root, "cargo-mutants", VERSION)?.as_deref())?;
    command
        .args(["mutants", "--package", "banger-gates", "--timeout", TIMEOUT, "--output"])
        .arg(&output)
        // The tool builds in a copy of the sources; it must not be this checkout's folder.
        .env_remove("CARGO_TARGET_DIR")
        .current_dir(root);
    if let Some(diff) = diff {
        command.arg("--in-diff").arg(diff);
    }
    // Its exit code says that something was missed, which is counted here.
    let status = command.status().context("run cargo mutants")?;
    let found = output.join("mutants.out/outcomes.json");
    let Ok(text) = std::fs::read_to_string(&found) else {
        ensure!(status.success(), "cargo mutants: {status}");
        return Ok(0);
    };
    let outcomes: Outcomes =
        serde_json::from_str(&text).with_context(|| format!("read {}", found.display()))?;
    let Outcomes { caught, missed, timeout, unviable } = outcomes;
    let (noticed, all) = (caught + timeout, caught + timeout + missed);
    say(format_args!(
        "mutants: {noticed} of {all} noticed, {missed} not, {unviable} do not compile"
    ));
    ensure!(
        noticed * 100 >= all * LEAST_CAUGHT,
        "less than {LEAST_CAUGHT} of 100 changes to the gates are noticed by their tests; see {}",
        output.join("mutants.out/missed.txt").display()
    );
    Ok(all)
}
