//! `banger vm ports`.

use std::collections::BTreeMap;

use banger_daemon_api::routes;
use banger_daemon_api::vm::{ChangePorts, Vm, VmPorts};
use banger_types::{PortProtocol, Publication, PublishedPort, VmReference};
use clap::{Args, Subcommand};

use crate::commands::JsonArgs;
use crate::error::CliError;
use crate::ui::Ui;
use crate::{completion, daemon, table};

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
    Publish(PublishArgs),
    /// End that, and the connections through them
    Unpublish(UnpublishArgs),
}

#[derive(Args, Debug)]
struct PublishArgs {
    /// The machine: its name, its id or the beginning of its id, 4 digits or more
    #[arg(value_name = "VM", add = completion::vms())]
    vm: VmReference,
    /// The ports; on 127.0.0.1 alone unless HOST_IP is another; HOST 0 is any that is free
    #[arg(required = true, value_name = "[HOST_IP:]HOST:GUEST[/udp]")]
    ports: Vec<Publication>,
}

#[derive(Args, Debug)]
struct UnpublishArgs {
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

/// Shows a machine's ports, or changes which are published.
pub async fn run(ui: &Ui, args: &PortsArgs) -> Result<(), CliError> {
    let client = daemon::connect(ui).await?;
    let (vm, change) = match (&args.change, &args.vm) {
        (Some(Change::Publish(args)), _) => {
            let publish = args.ports.clone();
            (super::get(&client, &args.vm).await?, ChangePorts { publish, unpublish: Vec::new() })
        }
        (Some(Change::Unpublish(args)), _) => {
            let vm = super::get(&client, &args.vm).await?;
            let all = || vm.spec.ports.iter().map(|port| PublishedPort::Exactly(*port)).collect();
            let unpublish = if args.all { all() } else { args.ports.clone() };
            (vm, ChangePorts { publish: Vec::new(), unpublish })
        }
        (None, Some(vm)) => {
            let vm = super::get(&client, vm).await?;
            let path = routes::vm(&VmReference::from(&vm.id), "/ports");
            let ports: VmPorts = client.get(&path).await.map_err(|error| client.explain(error))?;
            if args.json.json {
                return ui.json(&ports);
            }
            if let Some(problem) = &ports.problem {
                ui.warning(problem);
            }
            return match render(&ports) {
                Some(text) => ui.line(text),
                None => {
                    ui.status(format_args!(
                        "VM {} publishes nothing and listens on nothing",
                        vm.name
                    ));
                    Ok(())
                }
            };
        }
        (None, None) => return Err(CliError::new("which machine is not said")),
    };
    let path = routes::vm(&VmReference::from(&vm.id), "/ports");
    let changed: Vm = client.post(&path, &change).await.map_err(|error| client.explain(error))?;
    for published in changed.ports.iter().filter(|port| change.publish.contains(&port.publication))
    {
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

/// A row for each port of the guest: who listens, and where on this host it is.
#[derive(Default)]
struct Row {
    listens: Vec<String>,
    processes: Vec<String>,
    published: Vec<String>,
}

fn render(ports: &VmPorts) -> Option<String> {
    let mut rows: BTreeMap<(u16, PortProtocol), Row> = BTreeMap::new();
    for port in ports.listening.iter().flatten() {
        let row = rows.entry((port.port, port.protocol)).or_default();
        row.listens.push(port.address.to_string());
        let name = port.process.iter().filter(|name| !row.processes.contains(name));
        let name: Vec<String> = name.cloned().collect();
        row.processes.extend(name);
    }
    for port in &ports.published {
        let publication = &port.publication;
        let row = rows.entry((publication.guest.get(), publication.protocol)).or_default();
        row.published.push(match port.address {
            Some(address) => address.to_string(),
            None => format!("({}, not open)", publication.host),
        });
    }
    if rows.is_empty() {
        return None;
    }
    let join = |words: Vec<String>| match words.is_empty() {
        true => "-".to_owned(),
        false => words.join(", "),
    };
    let knows = ports.listening.is_some();
    let line = |((port, protocol), row): ((u16, PortProtocol), Row)| {
        let listens = if knows { join(row.listens) } else { "?".to_owned() };
        [format!("{port}/{protocol}"), listens, join(row.processes), join(row.published)]
    };
    let rows: Vec<_> = rows.into_iter().map(line).collect();
    Some(table::table(["PORT", "LISTENS ON", "PROCESS", "ON THIS HOST"], &rows))
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

    #[test]
    fn ports_are_shown_with_who_listens_and_where_they_are() {
        let ports: VmPorts = serde_json::from_value(serde_json::json!({
            "published": [
                { "publication": "127.0.0.1:0:80/tcp", "address": "127.0.0.1:34567" },
                { "publication": "0.0.0.0:5353:53/udp" },
            ],
            "listening": [
                { "port": 80, "protocol": "tcp", "address": "0.0.0.0", "process": "nginx" },
                { "port": 80, "protocol": "tcp", "address": "::", "process": "nginx" },
                { "port": 22, "protocol": "tcp", "address": "127.0.0.1" },
            ],
        }))
        .unwrap();
        insta::assert_snapshot!(render(&ports).unwrap(), @r"
        PORT    LISTENS ON   PROCESS  ON THIS HOST
        22/tcp  127.0.0.1    -        -
        53/udp  -            -        (0.0.0.0:5353, not open)
        80/tcp  0.0.0.0, ::  nginx    127.0.0.1:34567
        ");
        let none = VmPorts { published: Vec::new(), listening: Some(Vec::new()), problem: None };
        assert_eq!(render(&none), None);
    }
}
