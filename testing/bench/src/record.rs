//! Writes docs/benchmarks.md.

use std::fmt::Write as _;
use std::process::Command;

use anyhow::{Context, Result};

use crate::number::{Limit, Number};
use crate::say;

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

/// Replaces the page by these numbers.
pub(crate) fn write(numbers: &[Number]) -> Result<()> {
    let cpus = std::thread::available_parallelism().map_or(0, usize::from);
    let mut page = String::from(
        "# How fast banger is\n\n\
         `cargo xtask bench all --record` measures these and writes this page. Both sides of a\n\
         ratio are measured in one run, in turns; a value is the middle of all rounds.\n\
         [Testing](testing.md) says how to run it.\n\n",
    );
    let facts = [
        (
            "machine",
            format!(
                "{cpus} CPUs, {}, {} of memory",
                field("/proc/cpuinfo", "model name"),
                field("/proc/meminfo", "MemTotal")
            ),
        ),
        ("host kernel", first_line("uname", &["-sr"])),
        ("QEMU", first_line("qemu-system-x86_64", &["--version"])),
        (
            "acceleration",
            if std::path::Path::new("/sys/module/kvm_intel").exists()
                || std::path::Path::new("/sys/module/kvm_amd").exists()
            {
                "KVM where `banger doctor` says so".to_owned()
            } else {
                "none: software emulation (TCG)".to_owned()
            },
        ),
        ("commit", first_line("git", &["log", "-1", "--format=%h of %cs"])),
    ];
    page.push_str("| | |\n|---|---|\n");
    for (name, value) in facts {
        writeln!(page, "| {name} | {value} |").context("write to memory")?;
    }
    page.push_str("\n| what | banger | peer | ratio | limit | |\n|---|---|---|---|---|---|\n");
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
        writeln!(
            page,
            "| {} | {:.2} {} | {peer} | {} | {} | {verdict} |",
            number.name,
            number.ours,
            number.unit,
            number.ratio(),
            number.limit()
        )
        .context("write to memory")?;
    }
    let path = banger_harness::repository().join("docs/benchmarks.md");
    std::fs::write(&path, page).with_context(|| format!("write {}", path.display()))?;
    say(format_args!("wrote {}", path.display()));
    Ok(())
}
