//! `banger vm prune`.

use std::io::{self, IsTerminal};

use banger_daemon_api::routes;
use banger_daemon_api::vm::{Vm, VmState};
use banger_types::VmReference;
use clap::Args;

use super::{Act, for_each};
use crate::daemon;
use crate::error::CliError;
use crate::ui::Ui;

/// Arguments of `banger vm prune`.
#[derive(Args, Debug)]
pub struct PruneArgs {
    /// Do not ask
    #[arg(short, long)]
    force: bool,
}

/// Deletes the machines that do not run, after a question.
pub async fn run(ui: &Ui, args: &PruneArgs) -> Result<(), CliError> {
    let client = daemon::connect(ui).await?;
    let vms: Vec<Vm> = client.get(routes::VMS).await.map_err(|error| client.explain(error))?;
    let (idle, names) = unused(&vms);
    if idle.is_empty() {
        ui.status("every machine runs; nothing to delete");
        return Ok(());
    }
    if !args.force {
        if !io::stdin().is_terminal() {
            return Err(CliError::usage("nobody is there to be asked which machines may go")
                .hint("banger vm prune --force deletes without a question"));
        }
        let s = if names.len() == 1 { "" } else { "s" };
        ui.prompt(format_args!("delete {} machine{s} ({})? [y/N] ", names.len(), names.join(", ")));
        let mut answer = String::new();
        io::stdin()
            .read_line(&mut answer)
            .map_err(|error| CliError::new("cannot read the answer").because(&error))?;
        if !matches!(answer.trim(), "y" | "Y" | "yes") {
            ui.status("nothing deleted");
            return Ok(());
        }
    }
    // The question may have stood there for long: what runs by then, the daemon keeps.
    for_each(ui, &client, &idle, Act::DeleteIdle).await
}

/// The machines that have nothing to lose but their disks, and their names.
fn unused(vms: &[Vm]) -> (Vec<VmReference>, Vec<String>) {
    let idle = |vm: &&Vm| matches!(vm.state, VmState::Created | VmState::Stopped | VmState::Failed);
    vms.iter().filter(idle).map(|vm| (VmReference::from(&vm.id), vm.name.to_string())).unzip()
}
