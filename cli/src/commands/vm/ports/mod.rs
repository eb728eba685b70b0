//! `banger vm ports`.

mod publish;
mod show;
mod unpublish;

use banger_daemon_api::routes;
use banger_daemon_api::vm::{ChangePorts, Vm};
use banger_types::VmReference;
use clap::{Args, Subcommand};

use crate::client::Client;
use crate::commands::JsonArgs;
use crate::completion;
use crate::error::CliError;
use crate::ui::Ui;

/// Arguments of `banger vm ports`.
#[derive(Args, Debug)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
#[command(after_help = "Examples:\n  \
    banger vm ports web\n  \
    banger vm ports publish web 8080:80 0.0.0.0:5353:53/udp\n  \
    banger vm ports unpublish web 8080")]
pub struct PortsArgs {
    #[command(subcommand)]
    change: Option<Change>,
    /// The machine: its name, its id or the beginning of its id, 4 digits or more
    #[arg(required = true, value_name = "VM", add = completion::vms())]
    vm: Option<VmReference>,
    #[command(flatten)]
    json: JsonArgs,
}

#[derive(Debug, Subcommand)]
enum Change {
    /// Let ports of this host lead to ports of a machine, from now on and at each start
    Publish(publish::PublishArgs),
    /// End that, and the connections through them
    Unpublish(unpublish::UnpublishArgs),
}

/// Shows a machine's ports, or changes which are published.
pub async fn run(ui: &Ui, args: &PortsArgs) -> Result<(), CliError> {
    match (&args.change, &args.vm) {
        (Some(Change::Publish(args)), _) => publish::run(ui, args).await,
        (Some(Change::Unpublish(args)), _) => unpublish::run(ui, args).await,
        (None, Some(vm)) => show::run(ui, vm, args.json.json).await,
        // Not reached: clap asks for it.
        (None, None) => Err(CliError::usage("no machine is named").hint("banger vm ports VM")),
    }
}

/// Asks for a change and returns the machine as it is then.
async fn change(client: &Client, vm: &Vm, change: &ChangePorts) -> Result<Vm, CliError> {
    let path = routes::vm(&VmReference::from(&vm.id), "/ports");
    client.post(&path, change).await.map_err(|error| client.explain(error))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        args: PortsArgs,
    }

    #[test]
    fn showing_and_changing_are_told_apart() {
        let parse = |words: &[&str]| Line::try_parse_from([&["x"], words].concat());
        assert!(parse(&["web"]).unwrap().args.vm.is_some());
        assert!(parse(&["publish", "web", "8080:80"]).unwrap().args.change.is_some());
        assert!(parse(&["unpublish", "web", "8080", "53/udp"]).is_ok());
        assert!(parse(&["unpublish", "web", "--all"]).is_ok());
        for bad in [
            &[][..],
            &["publish", "web"],
            &["publish", "web", "80"],
            &["publish", "web", "1:2:3"],
            &["unpublish", "web"],
            &["unpublish", "web", "8080", "--all"],
        ] {
            assert!(parse(bad).is_err(), "{bad:?}");
        }
    }
}
