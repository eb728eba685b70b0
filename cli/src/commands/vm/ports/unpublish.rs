//! `banger vm ports unpublish`.

use banger_daemon_api::vm::ChangePorts;
use banger_types::{PublishedPort, VmReference};
use clap::Args;

use super::change;
use crate::commands::vm;
use crate::error::CliError;
use crate::ui::Ui;
use crate::{completion, daemon};

/// Arguments of `banger vm ports unpublish`.
#[derive(Args, Debug)]
pub struct UnpublishArgs {
    /// The machine: its name, its id or the beginning of its id, 4 digits or more
    #[arg(value_name = "VM", add = completion::vms())]
    vm: VmReference,
    /// The ports of this host, or as they were published
    #[arg(required_unless_present = "all", value_name = "HOST[/udp]")]
    ports: Vec<PublishedPort>,
    /// All of the machine's
    #[arg(long, conflicts_with = "ports")]
    all: bool,
}

/// Runs the verb.
pub async fn run(ui: &Ui, args: &UnpublishArgs) -> Result<(), CliError> {
    let client = daemon::connect(ui).await?;
    let vm = vm::get(&client, &args.vm).await?;
    let all = || vm.spec.ports.iter().map(|port| PublishedPort::Exactly(*port)).collect();
    let unpublish = if args.all { all() } else { args.ports.clone() };
    change(&client, &vm, &ChangePorts { publish: Vec::new(), unpublish }).await.map(drop)
}
