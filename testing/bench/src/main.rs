//! The numbers of docs/benchmarks.md, each measured side by side with its peer
//! in one run: both take turns, so that what else the machine does hits both.
#![forbid(unsafe_code)]

mod api;
mod bare;
mod boot;
mod exec;
mod helper;
mod image;
mod kernel;
mod kvm_host;
mod number;
mod record;
mod sizes;

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use banger_harness::{Contents, Environment};
use clap::Parser;

use crate::kvm_host::Programs;
use crate::number::Number;

/// What to measure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum What {
    /// From nothing to the end of `true` in a new guest
    Boot,
    /// One command in a running guest
    Exec,
    /// The root helper: its answers, taps, launches and memory; needs root
    Helper,
    /// From a tar to a finished ext4
    Image,
    /// banger's own kernel against Debian's
    Kernel,
    /// The KVM host's part of `make test`
    KvmHost,
    /// Memory and files
    Sizes,
    /// All of them
    All,
}

#[derive(Debug, Parser)]
#[command(name = "cargo xtask bench", bin_name = "cargo xtask bench")]
struct Arguments {
    #[arg(value_enum, default_value = "all")]
    what: What,
    /// Write the results into docs/benchmarks.md
    #[arg(long)]
    record: bool,
    /// How often each side is measured
    #[arg(long, default_value_t = 5)]
    rounds: u32,
    /// The package of banger's own kernel; without it, that is left out
    #[arg(long)]
    own_kernel: Option<PathBuf>,
    /// The program that runs the KVM host; without it, that is left out
    #[arg(long)]
    kvm_host: Option<PathBuf>,
    /// The program of `cargo xtask`, which runs the KVM host's tests as `make test` does
    #[arg(long)]
    xtask: Option<PathBuf>,
    /// Measure nothing: be the echo that the root helper is compared with, at this socket
    #[arg(long, hide = true, requires = "answer")]
    answer_at: Option<PathBuf>,
    /// What the echo answers
    #[arg(long, hide = true)]
    answer: Option<String>,
}

/// Prints one line.
fn say(line: impl std::fmt::Display) {
    let mut out = std::io::stdout().lock();
    let _ = writeln!(out, "{line}");
    let _ = out.flush();
}

/// A place with the release build and the default image.
fn environment() -> Environment {
    let programs = banger_harness::repository().join("target/release");
    Environment::new(Contents::Debian).with_programs(programs)
}

/// Makes what waits for a guest's answers.
fn runtime() -> Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().build().context("start a runtime")
}

fn run() -> Result<()> {
    let arguments = Arguments::parse();
    if let (Some(socket), Some(answer)) = (&arguments.answer_at, &arguments.answer) {
        return helper::answer_echoes(socket, answer);
    }
    let wants = |what| arguments.what == What::All || arguments.what == what;
    let mut numbers: Vec<Number> = Vec::new();
    if wants(What::Boot) {
        numbers.extend(boot::measure(arguments.rounds)?);
    }
    if wants(What::Exec) {
        numbers.extend(exec::measure(arguments.rounds)?);
    }
    if wants(What::Helper) {
        numbers.extend(helper::measure(arguments.rounds)?);
    }
    if wants(What::Image) {
        numbers.extend(image::measure(arguments.rounds.min(3))?);
    }
    if wants(What::Kernel) {
        match &arguments.own_kernel {
            Some(package) => numbers.extend(kernel::measure(package, arguments.rounds)?),
            None => say("left out: banger's own kernel; `cargo xtask kernel` builds it"),
        }
    }
    if wants(What::KvmHost) {
        match (&arguments.kvm_host, &arguments.xtask) {
            (Some(kvm_host), Some(xtask)) => {
                numbers.extend(kvm_host::measure(&Programs { kvm_host, xtask })?);
            }
            _ => say("left out: the KVM host; `cargo xtask bench kvm-host` measures it"),
        }
    }
    if wants(What::Sizes) {
        numbers.extend(sizes::measure()?);
    }
    for number in &numbers {
        say(number);
    }
    if arguments.record {
        record::write(&numbers)?;
    }
    let over: Vec<_> = numbers
        .iter()
        .filter(|number| !number.is_met())
        .map(|number| number.name.as_str())
        .collect();
    if !over.is_empty() {
        bail!("over the limit: {}", over.join(", "));
    }
    Ok(())
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(std::io::stderr().lock(), "bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}
