//! `banger system`: banger as two services of this machine.

mod df;
mod install;
mod services;
mod stop_machines;
mod uninstall;

use clap::Subcommand;

use crate::error::CliError;
use crate::ui::Ui;

/// What can be done with the installation.
#[derive(Debug, Subcommand)]
pub enum SystemCommand {
    /// Say what takes this host's disk, and what can be freed
    Df(super::JsonArgs),
    /// Install banger for one user as two services: bangerd, and its root helper
    Install(install::InstallArgs),
    /// Stop the services and remove them; machines, images and kernels stay
    Uninstall(uninstall::UninstallArgs),
    /// Stop the machines if the host shuts down; systemd runs it
    #[command(hide = true)]
    StopMachines,
}

impl SystemCommand {
    /// Runs the verb.
    pub async fn run(self, ui: &Ui) -> Result<(), CliError> {
        if !matches!(self, Self::Df(_) | Self::StopMachines)
            && !rustix::process::geteuid().is_root()
        {
            let message = "only root can install banger as services, or remove them";
            return Err(CliError::new(message).hint("put sudo before the command"));
        }
        match self {
            Self::Df(json) => df::run(ui, json.json).await,
            Self::Install(args) => install::run(ui, args).await,
            Self::Uninstall(args) => uninstall::run(ui, args).await,
            Self::StopMachines => stop_machines::run(ui).await,
        }
    }
}
