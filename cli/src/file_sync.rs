//! What a machine gets of this host when it starts: the files of `[[file_sync]]`, and who commits.
//!
//! Files are read here as the user, links in a directory as links. In the machine they land beneath
//! `/root` only: its agent follows no link on the way, and what it does with them is the machine's own
//! business, as with everything that it is given.

use std::io;

use banger_agent_api::{GuestPath, PutTreeCall};
use banger_daemon_api::routes;
use banger_daemon_api::vm::{Vm, VmState};
use banger_workspace::{GitIdentity, WorkspaceError};

use crate::client::Client;
use crate::copy::{self, Arrival, HostTree};
use crate::error::CliError;
use crate::progress::Progress;
use crate::ui::Ui;
use crate::user_config::{FileSync, UserConfig};
use crate::{exec, table, workspace};

const GUEST_HOME: &str = "/root";

/// What machines get.
#[derive(Clone, Debug)]
pub struct Belongings {
    files: Vec<FileSync>,
    identity: Option<GitIdentity>,
}

impl Belongings {
    /// Reads what is to be given; an unreadable configuration is said before anything is started.
    pub fn read() -> Result<Self, CliError> {
        let identity = match GitIdentity::of_user() {
            // No git, nobody who commits.
            Err(WorkspaceError::NoGit(_)) => None,
            other => other?,
        };
        Ok(Self { files: UserConfig::read()?.file_sync, identity })
    }

    /// Returns whether there are files, for which an application's main process is to wait.
    pub fn has_files(&self) -> bool {
        !self.files.is_empty()
    }

    /// Gives it to a machine that runs. A file that is missing here is told and left out; an application
    /// that ends before it has all of them has ended, and nothing else is wrong.
    pub async fn give(&self, ui: &Ui, client: &Client, vm: &Vm) -> Result<(), CliError> {
        for entry in &self.files {
            let shown = table::printable(&entry.host.to_string_lossy());
            match std::fs::metadata(&entry.host) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    ui.warning(format_args!("{shown} (file_sync) is not here; left out"));
                }
                _ => match self.copy(ui, client, vm, entry).await {
                    Ok(()) => {}
                    Err(_) if has_ended(client, vm).await => {
                        ui.warning(format_args!(
                            "VM {} ended before it had {shown} (file_sync)",
                            vm.name
                        ));
                        return Ok(());
                    }
                    Err(error) => {
                        let what = format!("cannot give {shown} to VM {} (file_sync)", vm.name);
                        return Err(error.context(what));
                    }
                },
            }
        }
        // Nobody commits in an application, which may have ended by now.
        let Some(identity) = self.identity.clone().filter(|_| vm.main.is_none()) else {
            return Ok(());
        };
        let mut guest = workspace::guest(client, &vm.id);
        let home = workspace::guest_path(GUEST_HOME)?;
        let given = tokio::task::spawn_blocking(move || identity.give(&mut guest, &home)).await;
        given.map_err(|_| CliError::new("giving the machine a .gitconfig ended early"))??;
        Ok(())
    }

    async fn copy(
        &self,
        ui: &Ui,
        client: &Client,
        vm: &Vm,
        entry: &FileSync,
    ) -> Result<(), CliError> {
        // What the entry names may be a link, as those do who keep their files in a repository.
        let tree = HostTree::open(&entry.host, true)?.with_file_mode(entry.mode);
        let path = GuestPath::new(GUEST_HOME).map_err(|error| {
            CliError::new("cannot name root's home in the machine").because(&error)
        })?;
        let arrival = Arrival::Named(entry.guest.clone());
        let call = PutTreeCall { path, owner: None };
        let progress = Progress::hidden();
        let tally = copy::send(client, &vm.id, call, (tree, arrival), &progress).await?;
        if tally.left_out > 0 {
            ui.warning(format_args!(
                "{} sockets, fifos or devices of {} (file_sync) are left out",
                tally.left_out,
                table::printable(&entry.host.to_string_lossy())
            ));
        }
        Ok(())
    }
}

/// Whether a machine that is an application has ended with it.
async fn has_ended(client: &Client, vm: &Vm) -> bool {
    let path = routes::vm(&(&vm.id).into(), "");
    vm.main.is_some()
        && exec::settled(client, &path).await.is_ok_and(|now| now.state != VmState::Running)
}
