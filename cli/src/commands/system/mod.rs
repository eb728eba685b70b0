//! `banger system`: banger as two services of this machine.

mod install;
mod services;
mod uninstall;

use clap::Subcommand;

use crate::error::CliError;
use crate::ui::Ui;

/// What can be done with the installation.
#[derive(Debug, Subcommand)]
pub enum SystemCommand {
    /// Install banger for one user as two services: bangerd, and its root helper
    Install(install::InstallArgs),
    /// Stop the services and remove them; machines, images and kernels stay
    Uninstall(uninstall::UninstallArgs),
}

impl SystemCommand {
    /// Runs the verb.
    pub async fn run(self, ui: &Ui) -> Result<(), CliError> {
        if !rustix::process::geteuid().is_root() {
            return Err(CliError::new("only root can do that").hint("put sudo before the command"));
        }
        match self {
            Self::Install(args) => install::run(ui, args).await,
            Self::Uninstall(args) => uninstall::run(ui, args).await,
        }
    }
}
