//! `cargo xtask fuzz`: feeds the root helper's frames and each of its gates for some seconds with
//! what libFuzzer makes of the accept and refuse tables.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Context, Result, bail, ensure};

use crate::process::must_succeed;
use crate::say;

/// The crate of the targets, which is no member of the workspace.
const FOLDER: &str = "testing/fuzz";
/// Programs, inputs that were found, and those that broke a property.
const OUTPUT: &str = "target/fuzz";
/// What is to be installed, which is not done here.
const MISSING: &str = "cargo-fuzz or nightly Rust is missing: \
    rustup toolchain install nightly --profile minimal && cargo install --locked cargo-fuzz";
/// Inputs are no longer than this. The helper's limit for a frame is 64 KiB, but what is that long
/// is slow here; the tests of `testing/properties` have such frames.
const LONGEST: usize = 8192;
/// How long each target is fed unless told otherwise.
const SECONDS: u64 = 10;

/// What to run.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Only this target; the names are those of testing/fuzz/fuzz_targets
    target: Option<String>,
    /// How long each target is fed
    #[arg(long, default_value_t = SECONDS)]
    seconds: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self { target: None, seconds: SECONDS }
    }
}

/// What came of one target.
struct Outcome {
    target: String,
    runs: u64,
    coverage: u64,
    corpus: usize,
    has_failed: bool,
}

/// Why it cannot be done here, if it cannot.
pub(crate) fn hindrance() -> Option<&'static str> {
    let version = nightly().args(["fuzz", "--version"]).output();
    let is_there = version.is_ok_and(|output| output.status.success());
    (!is_there).then_some(MISSING)
}

/// Nightly's cargo: this task's own knows no other toolchain.
fn nightly() -> Command {
    let mut command = Command::new("rustup");
    command.args(["run", "nightly", "cargo"]).stdin(Stdio::null());
    for name in ["CARGO", "RUSTC", "RUSTUP_TOOLCHAIN", "CARGO_MANIFEST_DIR", "CARGO_TARGET_DIR"] {
        command.env_remove(name);
    }
    command
}

/// Feeds the targets; fails if a property did not hold.
pub(crate) fn run(options: &Options) -> Result<()> {
    if let Some(hindrance) = hindrance() {
        bail!(hindrance);
    }
    all(options).map(drop)
}

/// Feeds the targets and says what came of it; how many they were.
pub(crate) fn all(options: &Options) -> Result<usize> {
    let root = crate::root()?;
    let mut targets = banger_properties::targets();
    if let Some(target) = &options.target {
        ensure!(targets.contains(target), "{target} is none of {}", targets.join(" "));
        targets.retain(|known| known == target);
    }
    let mut build = nightly();
    build.args(["fuzz", "build", "--fuzz-dir", FOLDER, "--target-dir", OUTPUT]);
    must_succeed(build.args(&options.target).current_dir(&root))?;
    let programs = programs(&root)?;

    let (next, outcomes) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    let workers = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(|| {
                while let Some(target) = targets.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let outcome = feed(&root, &programs, target, options.seconds);
                    if let Ok(outcome) = &outcome {
                        let Outcome { target, runs, coverage, corpus, .. } = outcome;
                        say(format_args!(
                            "{target:<17} {runs:>9} runs, {coverage:>5} edges, {corpus:>5} inputs"
                        ));
                    }
                    let outcomes = outcomes.lock();
                    outcomes.unwrap_or_else(std::sync::PoisonError::into_inner).push(outcome);
                }
            });
        }
    });
    let outcomes = outcomes.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    let outcomes = outcomes.into_iter().collect::<Result<Vec<Outcome>>>()?;
    let failed: Vec<&str> =
        outcomes.iter().filter(|it| it.has_failed).map(|it| it.target.as_str()).collect();
    ensure!(
        failed.is_empty(),
        "a property did not hold: {}; see {OUTPUT}/logs and {OUTPUT}/artifacts",
        failed.join(", ")
    );
    Ok(outcomes.len())
}

/// Where cargo-fuzz puts programs: below a folder named by the host's platform.
fn programs(root: &Path) -> Result<PathBuf> {
    let output = root.join(OUTPUT);
    let entries = std::fs::read_dir(&output).with_context(|| output.display().to_string())?;
    let folders = entries.flatten().map(|entry| entry.path().join("release"));
    // Beside it lies what runs at build time only.
    let mut folders = folders.filter(|folder| {
        let is_platform = folder.parent().and_then(Path::file_name);
        folder.is_dir() && is_platform.is_some_and(|name| name.to_string_lossy().contains('-'))
    });
    folders.next().with_context(|| format!("no programs below {}", output.display()))
}

fn feed(root: &Path, programs: &Path, target: &str, seconds: u64) -> Result<Outcome> {
    let folder = |kind: &str| -> Result<PathBuf> {
        let path = root.join(OUTPUT).join(kind).join(target);
        std::fs::create_dir_all(&path).with_context(|| format!("make {}", path.display()))?;
        Ok(path)
    };
    let (corpus, artifacts, logs) = (folder("corpus")?, folder("artifacts")?, folder("logs")?);
    let seeds = banger_properties::seeds(target).into_iter().filter(|seed| seed.len() <= LONGEST);
    for (at, seed) in seeds.enumerate() {
        let path = corpus.join(format!("seed-{at:04}"));
        std::fs::write(&path, seed).with_context(|| format!("write {}", path.display()))?;
    }
    let log = logs.join("log");
    let file = File::create(&log).with_context(|| format!("make {}", log.display()))?;
    let status = Command::new(programs.join(target))
        .arg(&corpus)
        .arg(format!("-artifact_prefix={}/", artifacts.display()))
        .arg(format!("-max_total_time={seconds}"))
        .arg(format!("-max_len={LONGEST}"))
        .args(["-timeout=30", "-print_final_stats=1"])
        .env("ASAN_OPTIONS", "detect_odr_violation=0")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(file)
        .status()
        .with_context(|| format!("run the target {target}"))?;
    let said = std::fs::read(&log).with_context(|| format!("read {}", log.display()))?;
    let said = String::from_utf8_lossy(&said);
    if !status.success() {
        let lines: Vec<&str> = said.lines().collect();
        for line in &lines[lines.len().saturating_sub(40)..] {
            say(format_args!("{target}: {line}"));
        }
    }
    Ok(Outcome {
        target: target.to_owned(),
        runs: last_number(&said, "stat::number_of_executed_units:"),
        coverage: last_number(&said, " cov:"),
        corpus: std::fs::read_dir(&corpus).map_or(0, Iterator::count),
        has_failed: !status.success(),
    })
}

/// The number behind the last of some words of libFuzzer's.
fn last_number(said: &str, words: &str) -> u64 {
    let behind = said.rsplit_once(words).map(|(_, behind)| behind.trim_start());
    let digits = behind.and_then(|behind| behind.split_whitespace().next());
    digits.and_then(|digits| digits.parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libfuzzers_numbers_are_read() {
        let said = "#2 INITED cov: 7 ft: 8\n#9 DONE   cov: 12 ft: 20 corp: 3/9b\n\
                    stat::number_of_executed_units: 4711\n";
        assert_eq!(last_number(said, " cov:"), 12);
        assert_eq!(last_number(said, "stat::number_of_executed_units:"), 4711);
        assert_eq!(last_number(said, "nothing:"), 0);
    }
}
