//! `cargo xtask races`: all rounds of the root helper's races, a tenth of which `make test` runs.

use anyhow::Result;

use crate::process::{cargo_with, must_succeed};
use crate::{kvm_host, test};

/// The rounds for each path that a request can name; 500 of them where a round spawns a program.
pub(crate) const ALL: usize = 10_000;

/// What to run.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Only races whose names contain this
    name: Option<String>,
    /// Rounds for each path
    #[arg(long, default_value_t = ALL)]
    rounds: usize,
}

/// Runs them; root only, as others skip them.
pub(crate) fn run(options: &Options) -> Result<()> {
    kvm_host::vmm_binaries()?;
    let tools = test::nextest(&crate::root()?)?;
    let mut command = cargo_with(tools.as_deref())?;
    command.args(["nextest", "run", "--locked", "--package", "banger-privileged-tests"]);
    command.args(["--profile", "kernel", "--no-fail-fast"]);
    let mut filter = "test(/races?::/)".to_owned();
    if let Some(name) = &options.name {
        filter += &format!(" and test({name})");
    }
    command.args(["--retries", "0", "--filterset", &filter]);
    must_succeed(command.env("BANGER_RACE_ROUNDS", options.rounds.to_string()))
}
