//! `banger vm rename`.

use banger_daemon_api::routes;
use banger_daemon_api::vm::{RenameVm, Vm};
use banger_types::VmName;
use clap::Args;

use super::OneVm;
use crate::error::CliError;
use crate::ui::Ui;
use crate::{daemon, ssh, vm_creation};

/// Arguments of `banger vm rename`.
#[derive(Args, Debug)]
#[command(after_help = "Example:
  banger vm rename box web

The id stays, and so do disks, ports and workspace. A machine that runs goes on: its host name and
its .vm name are the new one at once. Programs in it that asked for the host name before keep the
old one.")]
pub struct RenameArgs {
    #[command(flatten)]
    vm: OneVm,
    /// The name it is to have
    #[arg(value_name = "NEW")]
    name: VmName,
}

/// Renames a machine.
pub async fn run(ui: &Ui, args: &RenameArgs) -> Result<(), CliError> {
    let client = daemon::connect(ui).await?;
    let vm = super::get(&client, &args.vm.vm).await?;
    let body = RenameVm { name: args.name.clone() };
    let renamed: Vm = client
        .post(&routes::vm(&(&vm.id).into(), "/rename"), &body)
        .await
        .map_err(|error| client.explain(error))?;
    vm_creation::warn_of_notes(ui, &renamed);
    if let Err(error) = ssh::renamed(&renamed.id, renamed.name.as_str()) {
        ui.warning(format_args!("the next ssh to {} writes its key anew: {error}", renamed.name));
    }
    ui.line(&renamed.name)
}
