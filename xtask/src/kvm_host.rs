//! `cargo xtask kvm-host`: builds and starts the program that runs the KVM host.
//!
//! That is a crate of its own, `testing/kvm-host`, because it is linked with the product's image
//! builder and its client of the guest agent, and this crate is not.

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context, Result, bail};

use crate::junit::{self, Case, Outcome};
use crate::process::{cargo, must_succeed};

/// What to do; `testing/kvm-host` knows the words.
#[derive(Debug, clap::Args)]
#[command(disable_help_flag = true)]
pub(crate) struct Options {
    /// build, boot, run, test, shell, stop, clean or --help
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    words: Vec<OsString>,
}

/// Builds the program with what it puts into the machine, and returns a run of it.
pub(crate) fn program() -> Result<Command> {
    // `banger` pulls the kernel that the tests share, for which it starts the other two; and the
    // daemon's build makes the agent.
    let packages = ["banger-cli", "banger-daemon", "banger-helper", "banger-kvm-host"];
    let mut build = cargo();
    build.args(["build", "--quiet", "--locked"]);
    must_succeed(build.args(packages.iter().flat_map(|name| ["--package", name])))?;
    let folder = std::env::current_exe().context("find this program")?;
    let folder = folder.parent().context("a program lies in a folder")?;
    let mut command = Command::new(folder.join("banger-kvm-host"));
    // It builds tests with the same cargo.
    if let Some(cargo) = std::env::var_os("CARGO") {
        command.env("CARGO", cargo);
    }
    Ok(command)
}

/// Runs the program with these words; its exit code is passed on.
pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    let is_test = options.words.first().is_some_and(|word| word == "test");
    let mut command = if is_test { test_program()? } else { program()? };
    // It becomes the program: a signal that is meant for this task reaches it then.
    Err(command.args(&options.words).exec()).context("run banger-kvm-host")
}

/// The same with what its tests need: they are built, and told where banger's own kernel is, where
/// that has been built.
pub(crate) fn test_program() -> Result<Command> {
    let mut command = program()?;
    must_succeed(cargo().args(["test", "--no-run", "--quiet", "--locked"]).args([
        "--package",
        "banger-kvm-host",
        "--test",
        "inside",
    ]))?;
    if let Some(kernel) = crate::kernel::cached()? {
        command.env("BANGER_OWN_KERNEL", kernel.package()?);
    }
    Ok(command)
}

/// Runs `cargo xtask vmm-binaries`.
pub(crate) fn vmm_binaries() -> Result<ExitCode> {
    let status = program()?.arg("vmm-binaries").status().context("run banger-kvm-host")?;
    let code = status.code().and_then(|code| u8::try_from(code).ok());
    Ok(code.map_or(ExitCode::FAILURE, ExitCode::from))
}

/// Runs the tests of this tier and returns how each went, as their report tells.
pub(crate) fn tests(report: &Path, filter: Option<&str>) -> Result<Vec<Case>> {
    let mut command = test_program()?;
    command.arg("test").arg("--report").arg(report).args(filter);
    let status = command.stdin(Stdio::null()).status().context("run banger-kvm-host")?;
    let cases = junit::cases(&std::fs::read_to_string(report).unwrap_or_default());
    let failed = cases.iter().any(|case| case.outcome == Outcome::Failed);
    if !status.success() && !failed {
        bail!("the KVM host failed before it had run its tests: {status}");
    }
    Ok(cases)
}
