//! `banger system uninstall`: the services and their files go, the owner's data stays.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use banger_daemon_api::routes;
use banger_daemon_api::vm::{Vm, VmState};
use clap::Args;

use super::services::{NAMES, PROGRAMS, SYSCTL, TMPFILES, UDEV, UNITS, systemctl};
use crate::environment::{SYSTEM_RUNTIME, Site};
use crate::error::CliError;
use crate::ui::Ui;
use crate::{bridges, daemon, install};

/// The cgroup of the machines' unit, which has one of each machine below it.
const MACHINES: &str = "/sys/fs/cgroup/system.slice/banger-vms.service";
/// The runtime directory of the root helper.
const HELPER_RUNTIME: &str = "/run/banger-root";

/// Arguments of `banger system uninstall`.
#[derive(Args, Debug)]
#[command(after_help = "Kept: /var/lib/banger (machines, images, kernels), /var/cache/banger, \
    and\n/var/lib/banger-root. docs/privileges.md says how to remove those by hand.")]
pub struct UninstallArgs {
    /// Go on although machines run; they keep running and nobody manages them
    #[arg(long)]
    force: bool,
}

/// Uninstalls; what is not there is no failure, so that a half installation can be removed.
pub async fn run(ui: &Ui, args: UninstallArgs) -> Result<(), CliError> {
    let jailed = jailed();
    if !args.force {
        let mut running = jailed.clone();
        if let Ok(Some(install)) = install::read() {
            running.extend(
                running_vms(&daemon::client(&Site::System { owner: install.owner_uid })).await,
            );
        }
        refuse_running(&running)?;
    }
    let unit = |name: &&str| Path::new(UNITS).join(name).exists();
    let there: Vec<&str> = NAMES.into_iter().rev().filter(unit).collect();
    if !there.is_empty() {
        systemctl(&[&["disable", "--quiet", "--now"][..], &there].concat())?;
    }
    let mut files: Vec<PathBuf> = NAMES.iter().map(|name| Path::new(UNITS).join(name)).collect();
    files.extend([install::PATH, SYSCTL.0, TMPFILES, UDEV.0].map(PathBuf::from));
    files.extend(PROGRAMS.iter().map(|(_, path)| PathBuf::from(path)));
    let mut removed = 0;
    for path in &files {
        match fs::remove_file(path) {
            Ok(()) => removed += 1,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => {
                return Err(CliError::new(format!("cannot remove {}", path.display()))
                    .because(&error)
                    .hint("run the command again"));
            }
        }
    }
    if jailed.is_empty() {
        let _ = bridges::end_unused(Path::new(HELPER_RUNTIME));
        for directory in [SYSTEM_RUNTIME, HELPER_RUNTIME] {
            match fs::remove_dir_all(directory) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(CliError::new(format!("cannot remove {directory}"))
                        .because(&error)
                        .hint("run the command again"));
                }
                _ => {}
            }
        }
    }
    for directory in ["/etc/banger", "/usr/local/lib/banger"] {
        // Somebody else's file keeps it.
        let _ = fs::remove_dir(directory);
    }
    if !there.is_empty() {
        systemctl(&["daemon-reload"])?;
    }
    if removed == 0 {
        ui.status("banger was not installed");
    } else {
        ui.status("banger is uninstalled; /var/lib/banger and /var/cache/banger are kept");
        // Whether another program counts on it by now cannot be known.
        ui.status(
            "net.ipv4.ip_forward stays on until the next boot; unless another program needs it: \
             sysctl net.ipv4.ip_forward=0",
        );
    }
    Ok(())
}

/// The names of the machines whose Firecracker runs: whether or not a daemon answers, the cgroups of
/// their unit tell.
fn jailed() -> BTreeSet<String> {
    let cgroups = fs::read_dir(MACHINES).into_iter().flatten().flatten();
    let is_used = |cgroup: &fs::DirEntry| {
        fs::read_to_string(cgroup.path().join("cgroup.procs")).is_ok_and(|pids| !pids.is_empty())
    };
    cgroups.filter(is_used).map(|it| it.file_name().to_string_lossy().into_owned()).collect()
}

/// The names of the machines that run, as the daemon says; one that does not answer cannot say.
async fn running_vms(client: &crate::client::Client) -> Vec<String> {
    let vms = client.get::<Vec<Vm>>(routes::VMS).await.unwrap_or_default();
    let vms = vms.into_iter().filter(|vm| vm.state == VmState::Running);
    vms.map(|vm| vm.name.to_string()).collect()
}

/// Machines that run would be left to nobody.
fn refuse_running(running: &BTreeSet<String>) -> Result<(), CliError> {
    if running.is_empty() {
        return Ok(());
    }
    let names: Vec<&str> = running.iter().map(String::as_str).collect();
    Err(CliError::new(format!("machines are running: {}", names.join(", ")))
        .hint(format!("banger vm stop {}", names.join(" ")))
        .hint("--force leaves them running without anybody to manage them"))
}
