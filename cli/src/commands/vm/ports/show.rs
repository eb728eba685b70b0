//! `banger vm ports VM`: what a machine listens on, and where that is published.

use std::collections::BTreeMap;

use banger_daemon_api::routes;
use banger_daemon_api::vm::VmPorts;
use banger_types::{PortProtocol, VmReference};

use crate::commands::vm;
use crate::error::CliError;
use crate::ui::Ui;
use crate::{daemon, table};

/// Runs the verb.
pub async fn run(ui: &Ui, vm: &VmReference, json: bool) -> Result<(), CliError> {
    let client = daemon::connect(ui).await?;
    let vm = vm::get(&client, vm).await?;
    let path = routes::vm(&VmReference::from(&vm.id), "/ports");
    let ports: VmPorts = client.get(&path).await.map_err(|error| client.explain(error))?;
    if json {
        return ui.json(&ports);
    }
    if let Some(problem) = &ports.problem {
        ui.warning(problem);
    }
    match render(&ports) {
        Some(text) => ui.line(text),
        None => {
            ui.status(format_args!("VM {} publishes nothing and listens on nothing", vm.name));
            Ok(())
        }
    }
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
    use super::*;

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
