//! `cargo xtask bench`: builds and starts the measuring program.
//!
//! That is a crate of its own, `testing/bench`, because it is linked with the
//! product's own client of the guest agent and this crate is not.

use std::os::unix::process::CommandExt;
use std::path::PathBuf;

use anyhow::{Context, Result};

use crate::process::{cargo, must_succeed};
use crate::{kernel, kvm_host, say};

/// What to measure; `testing/bench` knows the words.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// boot, copy, disks, exec, helper, machines and network (as root), image, kernel, kvm-host, pull,
    /// sizes, workspace or all
    #[arg(default_value = "all")]
    what: String,
    /// Write the results into docs/benchmarks.md
    #[arg(long)]
    record: bool,
    /// How often each side is measured
    #[arg(long)]
    rounds: Option<u32>,
}

/// Measures with what is built for release.
pub(crate) fn run(options: &Options) -> Result<()> {
    // Asked for first: once another build has replaced the file, the kernel calls it deleted.
    let xtask = std::env::current_exe().context("find this program")?;
    // Asked for by name it is built; with all the others it is measured if it is there.
    let own_kernel = if options.what == "kernel" {
        Some(kernel::ensure(kernel::jobs())?)
    } else {
        kernel::cached()?
    };
    say("building what is measured");
    let built = ["build", "--quiet", "--locked", "--release"];
    let is_wanted = |name: &str| [name, "all"].contains(&options.what.as_str());
    let held = if is_wanted("machines") && banger_harness::is_root() {
        Some(held_bangerd(&built)?)
    } else {
        None
    };
    // The root helper alone needs nothing of the others; root's banger needs it.
    let programs = match options.what.as_str() {
        "helper" => ["banger-helper"].as_slice(),
        _ => &["banger-cli", "banger-daemon", "banger-helper"],
    };
    let packages = programs.iter().flat_map(|name| ["--package", name]);
    must_succeed(cargo().args(built).args(packages))?;
    if (is_wanted("helper") || is_wanted("machines"))
        && banger_harness::is_root()
        && banger_harness::vmm_binaries().is_none()
    {
        kvm_host::vmm_binaries()?;
    }
    let mut command = cargo();
    command.args([
        "run",
        "--quiet",
        "--locked",
        "--release",
        "--package",
        "banger-bench",
        "--",
        &options.what,
    ]);
    if let Some(kernel) = own_kernel {
        command.arg("--own-kernel").arg(kernel.package()?);
    }
    if let Some(bangerd) = held {
        command.arg("--held-bangerd").arg(bangerd);
    }
    if is_wanted("kvm-host") || is_wanted("disks") {
        let program = kvm_host::test_program()?;
        command.arg("--kvm-host").arg(program.get_program());
        command.arg("--xtask").arg(xtask);
        for (name, value) in program.get_envs() {
            command.env(name, value.unwrap_or_default());
        }
    }
    if options.record {
        command.arg("--record");
    }
    if let Some(rounds) = options.rounds {
        command.args(["--rounds", &rounds.to_string()]);
    }
    // It becomes the program: a signal that is meant for this task reaches it then.
    Err(command.exec()).context("run banger-bench")
}

/// Builds a `bangerd` for release with fault hooks, whose guests' agents it plays itself, and sets it
/// aside.
fn held_bangerd(built: &[&str]) -> Result<PathBuf> {
    let features = ["--package", "banger-daemon", "--features", "banger-daemon/fault-hooks"];
    must_succeed(cargo().args(built).args(features))?;
    let target = crate::root()?.join("target");
    let aside = target.join("fault-hooks/bangerd-release");
    let folder = aside.parent().context("a folder for it")?;
    std::fs::create_dir_all(folder).with_context(|| format!("make {}", folder.display()))?;
    std::fs::copy(target.join("release/bangerd"), &aside)
        .with_context(|| format!("copy bangerd to {}", aside.display()))?;
    Ok(aside)
}
