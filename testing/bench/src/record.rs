//! Writes docs/benchmarks.md.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::process::Command;

use anyhow::{Context, Result};

use crate::number::{Limit, Number};
use crate::{What, say};

/// What the page begins with.
const INTRODUCTION: &str = "# How fast banger is\n\n\
    `cargo xtask bench all --record` measures these and writes this page; with one word in the\n\
    place of `all` it writes that section. Both sides of a ratio are measured in one run, in\n\
    turns; a value is the middle of all rounds. [Testing](testing.md#measurements) says how to\n\
    run it.\n";

fn first_line(program: &str, arguments: &[&str]) -> String {
    let output =
        Command::new(program).args(arguments).current_dir(banger_harness::repository()).output();
    let text = output
        .map(|output| String::from_utf8_lossy(&output.stdout).into_owned())
        .unwrap_or_default();
    text.lines().next().unwrap_or("unknown").to_owned()
}

fn field(file: &str, name: &str) -> String {
    let text = std::fs::read_to_string(file).unwrap_or_default();
    let line = text.lines().find(|line| line.starts_with(name)).unwrap_or_default();
    line.split_once(':').map(|(_, value)| value.trim().to_owned()).unwrap_or_default()
}

/// Where the numbers were measured, in a line.
fn circumstances() -> String {
    let cpus = std::thread::available_parallelism().map_or(0, usize::from);
    let has_kvm = ["/sys/module/kvm_intel", "/sys/module/kvm_amd"];
    let acceleration = if has_kvm.iter().any(|path| std::path::Path::new(path).exists()) {
        "KVM where `banger doctor` says so"
    } else {
        "software emulation (TCG)"
    };
    format!(
        "Measured at {} on {cpus} CPUs, {}, {} of memory; {}; {}; {acceleration}.",
        first_line("git", &["log", "-1", "--format=%h of %cs"]),
        field("/proc/cpuinfo", "model name"),
        field("/proc/meminfo", "MemTotal"),
        first_line("uname", &["-sr"]),
        first_line("qemu-system-x86_64", &["--version"]),
    )
}

/// A part's section, without its heading.
fn section(numbers: &[Number], circumstances: &str) -> String {
    let mut text = format!(
        "{circumstances}\n\n| what | banger | peer | ratio | limit | |\n|---|---|---|---|---|---|\n"
    );
    for number in numbers {
        let peer = number
            .peer
            .as_ref()
            .map(|(name, value)| format!("{value:.2} {}: {name}", number.unit))
            .unwrap_or_default();
        let verdict = match (&number.limit, number.is_met()) {
            (Limit::None, _) => "",
            (_, true) => "met",
            (_, false) => "**not met**",
        };
        // Writing to a string cannot fail.
        let _ = writeln!(
            text,
            "| {} | {:.2} {} | {peer} | {} | {} | {verdict} |",
            number.name,
            number.ours,
            number.unit,
            number.ratio(),
            number.limit()
        );
    }
    text
}

/// The page with these sections in place of its own of the same names; what was not measured now
/// stays as it is.
fn page(old: &str, sections: &BTreeMap<String, String>) -> String {
    let mut all: BTreeMap<String, String> = old
        .split("\n## ")
        .skip(1)
        .filter_map(|text| text.split_once("\n\n"))
        .map(|(name, text)| (name.to_owned(), format!("{}\n", text.trim_end())))
        .collect();
    all.extend(sections.iter().map(|(name, text)| (name.clone(), text.clone())));
    let mut page = String::from(INTRODUCTION);
    for part in What::PARTS {
        let name = part.name();
        if let Some(text) = all.get(&name) {
            // As above.
            let _ = write!(page, "\n## {name}\n\n{text}");
        }
    }
    page
}

/// Writes these parts' numbers into the page.
pub(crate) fn write(measured: &[(String, Vec<Number>)]) -> Result<()> {
    let path = banger_harness::repository().join("docs/benchmarks.md");
    let old = std::fs::read_to_string(&path).unwrap_or_default();
    let circumstances = circumstances();
    let sections =
        measured.iter().map(|(name, numbers)| (name.clone(), section(numbers, &circumstances)));
    let text = page(&old, &sections.collect());
    std::fs::write(&path, text).with_context(|| format!("write {}", path.display()))?;
    say(format_args!("wrote {}", path.display()));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_measured_now_stays_and_what_is_replaces_its_own() {
        let number = |ours: f64| Number {
            name: "boot: x".to_owned(),
            ours,
            peer: Some(("bare".to_owned(), 1.0)),
            unit: "ms",
            limit: Limit::AtMostTimes(2.0),
        };
        let with = |old: &str, name: &str, ours: f64| {
            let sections = [(name.to_owned(), section(&[number(ours)], "Measured here."))];
            page(old, &sections.into())
        };
        let first = with("# Another page\n\nwith words\n", "kvm-host", 1.25);
        let second = with(&first, "boot", 3.5);
        assert!(second.starts_with(INTRODUCTION) && !second.contains("with words"));
        let at = |text: &str| second.find(text).unwrap_or_else(|| panic!("{text}: {second}"));
        assert!(at("## boot") < at("3.50 ms") && at("3.50 ms") < at("## kvm-host"));
        assert!(at("**not met**") < at("## kvm-host") && at("## kvm-host") < at("1.25 ms"));
        let third = with(&second, "boot", 1.5);
        assert!(!third.contains("3.50 ms") && third.contains("1.25 ms"));
        assert_eq!(third.matches("Measured here.").count(), 2);
        assert_eq!(with(&third, "boot", 1.5), third);
    }
}
