//! `banger system uninstall`: the services and their files go, the owner's data stays.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use banger_daemon_api::routes;
use banger_daemon_api::vm::{Vm, VmState};
use clap::Args;

use super::services::{NAMES, PROGRAMS, SYSCTL, TMPFILES, UNITS, systemctl};
use crate::environment::Site;
use crate::error::CliError;
use crate::ui::Ui;
use crate::{daemon, install};

/// Arguments of `banger system uninstall`.
#[derive(Args, Debug)]
#[command(
    after_help = "Kept: /var/lib/banger (machines, images, kernels), /var/cache/banger, and \
    the bridge\nwith its firewall tables. docs/privileges.md says how to remove those by hand."
)]
pub struct UninstallArgs {
    /// Go on although machines run; they keep running and nobody manages them
    #[arg(long)]
    force: bool,
}

/// Uninstalls; what is not there is no failure, so that a half installation can be removed.
pub async fn run(ui: &Ui, args: UninstallArgs) -> Result<(), CliError> {
    if !args.force
        && let Ok(Some(install)) = install::read()
    {
        refuse_running(&daemon::client(&Site::System { owner: install.owner_uid })).await?;
    }
    let unit = |name: &&str| Path::new(UNITS).join(name).exists();
    let there: Vec<&str> = NAMES.into_iter().rev().filter(unit).collect();
    if !there.is_empty() {
        systemctl(&[&["disable", "--quiet", "--now"][..], &there].concat())?;
    }
    let mut files: Vec<PathBuf> = NAMES.iter().map(|name| Path::new(UNITS).join(name)).collect();
    files.extend([install::PATH, SYSCTL.0, TMPFILES].map(PathBuf::from));
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
    }
    Ok(())
}

/// Machines that run would be left to nobody.
async fn refuse_running(client: &crate::client::Client) -> Result<(), CliError> {
    // A daemon that does not answer cannot say.
    let Ok(vms) = client.get::<Vec<Vm>>(routes::VMS).await else { return Ok(()) };
    let running: Vec<String> = vms
        .iter()
        .filter(|vm| vm.state == VmState::Running)
        .map(|vm| vm.name.to_string())
        .collect();
    if running.is_empty() {
        return Ok(());
    }
    Err(CliError::new(format!("machines are running: {}", running.join(", ")))
        .hint(format!("banger vm stop {}", running.join(" ")))
        .hint("--force leaves them running without anybody to manage them"))
}
