//! `banger vm ports publish`.

use banger_daemon_api::vm::ChangePorts;
use banger_types::{Publication, VmReference};
use clap::Args;

use super::change;
use crate::commands::vm;
use crate::error::CliError;
use crate::ui::Ui;
use crate::{completion, daemon};

/// Arguments of `banger vm ports publish`.
#[derive(Args, Debug)]
pub struct PublishArgs {
    /// The machine: its name, its id or the beginning of its id, 4 digits or more
    #[arg(value_name = "VM", add = completion::vms())]
    vm: VmReference,
    /// The ports; on 127.0.0.1 alone unless HOST_IP is another; HOST 0 is any that is free
    #[arg(required = true, value_name = "[HOST_IP:]HOST:GUEST[/udp]")]
    ports: Vec<Publication>,
}

/// Runs the verb.
pub async fn run(ui: &Ui, args: &PublishArgs) -> Result<(), CliError> {
    let client = daemon::connect(ui).await?;
    let vm = vm::get(&client, &args.vm).await?;
    let wanted = ChangePorts { publish: args.ports.clone(), unpublish: Vec::new() };
    let changed = change(&client, &vm, &wanted).await?;
    for published in changed.ports.iter().filter(|port| args.ports.contains(&port.publication)) {
        match published.address {
            Some(address) => ui.line(format!(
                "{address} -> {}/{}",
                published.publication.guest, published.publication.protocol
            ))?,
            None => ui.status(format_args!(
                "VM {} does not run: {} opens at its next start",
                vm.name, published.publication
            )),
        }
    }
    Ok(())
}
