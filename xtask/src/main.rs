//! Project tasks: what the Makefile and CI run.
//!
//! A task prints what it does and fails with one line that says why. Nothing
//! that ships depends on this crate.
#![forbid(unsafe_code)]

mod bench;
mod check;
mod crash_matrix;
mod dep_direction;
mod docs;
mod fuzz;
mod junit;
mod kernel;
mod kvm_host;
mod layout;
mod mutants;
mod privileged_budget;
mod process;
mod races;
mod test;

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};

/// Project tasks.
#[derive(Debug, Parser)]
#[command(bin_name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Format, lints, documentation, dependency and layout rules
    Check,
    /// Strike every step of a machine's life with every fault; the table goes into
    /// docs/reliability.md (about 7 minutes a round; root)
    CrashMatrix(crash_matrix::MatrixOptions),
    /// Fail if a crate depends across a trust boundary in the wrong direction
    DepDirection {
        /// Another workspace's Cargo.toml
        #[arg(long)]
        manifest_path: Option<PathBuf>,
    },
    /// Fail if the code that acts as root is larger than privileged/budget.toml allows
    PrivilegedBudget,
    /// Check that what the documentation names exists
    Docs,
    /// Measure the numbers of docs/benchmarks.md, each side by side with its peer
    Bench(bench::Options),
    /// Feed the root helper's frames and gates with what libFuzzer makes up (nightly, cargo-fuzz)
    Fuzz(fuzz::Options),
    /// Build banger's own guest kernel from Debian's source (10 to 25 minutes, once)
    Kernel(kernel::Options),
    /// Run the KVM host: build, boot, run, test, shell, stop, clean
    KvmHost(kvm_host::Options),
    /// Fetch the real firecracker and jailer for tests; prints their folder
    VmmBinaries,
    /// Change the root helper's gates in small ways and see whether their tests notice (minutes)
    Mutants(mutants::Options),
    /// Run all rounds of the root helper's races (a few minutes; root)
    Races(races::Options),
    /// Make, use and delete many machines; neither service may grow (root)
    Soak(crash_matrix::SoakOptions),
    /// Run the tests, tier by tier, and count them against testing/floors.toml
    Test(test::Options),
}

/// Prints one line to standard output; a closed pipe is not an error here.
pub(crate) fn say(line: impl std::fmt::Display) {
    let mut out = std::io::stdout().lock();
    let _ = writeln!(out, "{line}");
    let _ = out.flush();
}

/// The root of the checkout that this binary was built from.
pub(crate) fn root() -> Result<PathBuf> {
    let manifest = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    manifest.parent().map(PathBuf::from).context("xtask lies in the root of the repository")
}

fn run() -> Result<ExitCode> {
    match Arguments::parse().task {
        Task::KvmHost(options) => return kvm_host::run(&options),
        Task::VmmBinaries => return kvm_host::vmm_binaries(),
        Task::Check => check::run(),
        Task::CrashMatrix(options) => crash_matrix::run(&options),
        Task::DepDirection { manifest_path } => dep_direction::run(manifest_path.as_deref()),
        Task::PrivilegedBudget => privileged_budget::run(&root()?),
        Task::Docs => docs::run(),
        Task::Bench(options) => bench::run(&options),
        Task::Fuzz(options) => fuzz::run(&options),
        Task::Kernel(options) => kernel::run(&options),
        Task::Mutants(options) => mutants::run(&options),
        Task::Races(options) => races::run(&options),
        Task::Soak(options) => crash_matrix::soak(&options),
        Task::Test(options) => test::run(&options),
    }?;
    Ok(ExitCode::SUCCESS)
}

fn main() -> ExitCode {
    match run() {
        Ok(code) => code,
        Err(error) => {
            let _ = writeln!(std::io::stderr().lock(), "xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}
