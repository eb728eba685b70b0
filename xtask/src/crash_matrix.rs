//! `cargo xtask crash-matrix` and `cargo xtask soak`: all of what `make test` samples.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::process::cargo_with;
use crate::{kvm_host, say, test};

/// The page with the table, and the lines between which it stands.
const PAGE: &str = "docs/reliability.md";
const BEGIN: &str = "<!-- cargo xtask crash-matrix -->";
const END: &str = "<!-- end -->";
const FAULTS: [&str; 7] = [
    "kill banger",
    "kill bangerd",
    "kill bangerd-root",
    "kill VMM",
    "ENOSPC",
    "refusal",
    "timeout",
];

/// How often.
#[derive(Debug, clap::Args)]
pub(crate) struct MatrixOptions {
    /// How often each cell is taken; the full matrix is 20 and 100
    #[arg(long, default_value_t = 1)]
    rounds: u32,
    /// Only print the table
    #[arg(long)]
    no_write: bool,
}

/// How many machines.
#[derive(Debug, clap::Args)]
pub(crate) struct SoakOptions {
    /// Machines that are made, used and deleted, four at a time, for each VMM
    #[arg(long, default_value_t = 1000)]
    cycles: u32,
}

/// Builds what the tests need and runs those of a filter; says whether they passed.
fn run_tests(filter: &str, variables: &[(&str, String)]) -> Result<bool> {
    ensure!(banger_harness::is_root(), "only root has helpers and machines of both kinds");
    let root = crate::root()?;
    kvm_host::vmm_binaries()?;
    let bangerd = test::build_programs(&root, true)?.context("a bangerd with fault hooks")?;
    let tools = test::nextest(&root)?;
    let mut command = cargo_with(tools.as_deref())?;
    command.args(["nextest", "run", "--locked", "--package", "banger-e2e"]);
    command.args(["--profile", "crash-matrix", "--no-fail-fast", "--no-capture"]);
    command.args(["--filterset", filter]).env("BANGER_TEST_FAULT_BANGERD", bangerd);
    command.envs(variables.iter().map(|(name, value)| (*name, value)));
    Ok(command.status().context("run cargo nextest")?.success())
}

/// Takes every cell and writes down how it went.
pub(crate) fn run(options: &MatrixOptions) -> Result<()> {
    let root = crate::root()?;
    let report = root.join("target/crash-matrix.jsonl");
    let _ = std::fs::remove_file(&report);
    let passed = run_tests(
        "test(/^matrix::.*leaves_nothing_whatever/)",
        &[
            ("BANGER_CRASH_ROUNDS", options.rounds.to_string()),
            ("BANGER_CRASH_REPORT", report.display().to_string()),
        ],
    )?;
    let text =
        std::fs::read_to_string(&report).with_context(|| format!("read {}", report.display()))?;
    let table = render(&text, options.rounds)?;
    if options.no_write {
        say(&table);
    } else {
        write(&root.join(PAGE), &table)?;
    }
    ensure!(passed, "not every cell recovered: see {PAGE} and the output above");
    Ok(())
}

/// Has many machines made and deleted.
pub(crate) fn soak(options: &SoakOptions) -> Result<()> {
    let cycles = [("BANGER_SOAK_CYCLES", options.cycles.to_string())];
    let passed = run_tests("test(/^matrix::soak::/)", &cycles)?;
    ensure!(passed, "the soak failed");
    Ok(())
}

/// How often a cell recovered, had nothing to strike, and failed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Tally {
    recovered: u32,
    nothing: u32,
    failed: u32,
}

impl Tally {
    fn words(self) -> String {
        match self {
            Self { failed, .. } if failed > 0 => format!("**{failed} FAILED**"),
            Self { recovered: 0, .. } => "–".to_owned(),
            Self { recovered, .. } => recovered.to_string(),
        }
    }
}

/// An action and its step, with what each fault came to.
type Row = (String, BTreeMap<String, Tally>);

/// The table of each VMM.
fn render(report: &str, rounds: u32) -> Result<String> {
    // VMM, then action and step in the order of the report, then fault.
    let mut vmms: BTreeMap<String, Vec<Row>> = BTreeMap::new();
    let (mut struck, mut failed) = (0_u32, 0_u32);
    for line in report.lines() {
        let line: Value = serde_json::from_str(line).context("a line of the report")?;
        let word =
            |name: &str| line[name].as_str().map(str::to_owned).context("a word of the report");
        let row = format!("{} | `{}`", word("action")?, word("step")?);
        let rows = vmms.entry(word("vmm")?).or_default();
        let at = rows.iter().position(|(name, _)| *name == row).unwrap_or_else(|| {
            rows.push((row, BTreeMap::new()));
            rows.len() - 1
        });
        let tally = rows[at].1.entry(word("fault")?).or_default();
        match word("outcome")?.as_str() {
            "recovered" => (struck, tally.recovered) = (struck + 1, tally.recovered + 1),
            "nothing there" => tally.nothing += 1,
            "FAILED" => (failed, tally.failed) = (failed + 1, tally.failed + 1),
            other => bail!("the outcome {other} is none"),
        }
    }
    let mut text = format!(
        "{rounds} rounds: {struck} faults struck and recovered, {failed} failed ({}).\n",
        machine()
    );
    for (vmm, rows) in vmms {
        write!(text, "\n### {vmm}\n\n| action | step | {} |\n", FAULTS.join(" | "))?;
        writeln!(text, "|---|---{}|", "|---".repeat(FAULTS.len()))?;
        for (row, tallies) in rows {
            let words = FAULTS.map(|fault| tallies.get(fault).copied().unwrap_or_default().words());
            writeln!(text, "| {row} | {} |", words.join(" | "))?;
        }
    }
    Ok(text)
}

/// Which machine, and of which commit.
fn machine() -> String {
    let output = |program: &str, words: &[&str]| {
        let output = std::process::Command::new(program).args(words).output().ok();
        output.map(|it| String::from_utf8_lossy(&it.stdout).trim().to_owned()).unwrap_or_default()
    };
    let processors = std::thread::available_parallelism().map_or(0, std::num::NonZero::get);
    let commit = output("git", &["rev-parse", "--short", "HEAD"]);
    format!("commit {commit}, {processors} processors, Linux {}", output("uname", &["-r"]))
}

/// Puts the table into its place on the page.
fn write(page: &Path, table: &str) -> Result<()> {
    let act = || format!("write {}", page.display());
    let text = std::fs::read_to_string(page).with_context(act)?;
    let replaced =
        place(&text, table).with_context(|| format!("{} lacks its marks", page.display()))?;
    std::fs::write(page, replaced).with_context(act)
}

fn place(text: &str, table: &str) -> Option<String> {
    let (head, rest) = text.split_once(BEGIN)?;
    let (_, tail) = rest.split_once(END)?;
    Some(format!("{head}{BEGIN}\n\n{table}\n{END}{tail}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outcomes_are_counted_and_a_failure_is_not_hidden() {
        let line = |fault: &str, outcome: &str| {
            format!(
                r#"{{"vmm":"qemu","action":"stop","step":"end_vmm","fault":"{fault}","outcome":"{outcome}"}}"#
            )
        };
        let report = [
            line("kill VMM", "recovered"),
            line("kill VMM", "recovered"),
            line("refusal", "nothing there"),
            line("timeout", "recovered"),
            line("timeout", "FAILED"),
        ];
        let text = render(&report.join("\n"), 2).unwrap();
        assert!(text.starts_with("2 rounds: 3 faults struck and recovered, 1 failed ("), "{text}");
        let row = "| stop | `end_vmm` | – | – | – | 2 | – | – | **1 FAILED** |";
        assert!(text.contains(row), "{text}");
        assert!(render(r#"{"vmm":1}"#, 1).is_err());
    }

    #[test]
    fn the_table_replaces_the_one_before() {
        let page = format!("a\n{BEGIN}\nold\n{END}\nb\n");
        let once = place(&page, "new\n").unwrap();
        assert_eq!(once, format!("a\n{BEGIN}\n\nnew\n\n{END}\nb\n"));
        assert_eq!(place(&once, "new\n").unwrap(), once);
        assert_eq!(place("no marks", "new"), None);
    }
}
