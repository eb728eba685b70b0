//! Which ports a VM's guest listens on, and which of them are published.

use banger_agent_api::printable_excerpt;
use banger_daemon_api::vm::{GuestPort, PORTS_NOTE, PortPublished, VmPorts};
use banger_guest_client::AgentClient;
use banger_types::VmReference;

use super::Engine;
use crate::error::EngineError;
use crate::record::VmRecord;

/// Longest process name shown; Linux cuts them at 15 bytes, a guest may say anything.
const NAME_MOST: usize = 32;

impl Engine {
    /// Returns what a VM publishes and what its guest listens on.
    pub async fn ports(&self, vm: &VmReference) -> Result<VmPorts, EngineError> {
        let view = self.view(vm)?;
        let mut ports = VmPorts {
            published: self.published(&view.record),
            listening: None,
            problem: view.record.notes.get(PORTS_NOTE).cloned(),
        };
        let Some(process) = &view.process else { return Ok(ports) };
        match AgentClient::new(process.channel()).ports().await {
            Ok(reply) => {
                let mut listening: Vec<GuestPort> = reply
                    .ports
                    .into_iter()
                    .map(|port| GuestPort {
                        port: port.port,
                        protocol: port.protocol,
                        address: port.address,
                        process: port.process.map(|name| printable_excerpt(&name, NAME_MOST)),
                    })
                    .collect();
                listening.sort();
                listening.dedup();
                ports.listening = Some(listening);
            }
            Err(error) => {
                let error = EngineError::from(error).to_api();
                let words = std::iter::once(error.message).chain(error.causes);
                ports.problem = Some(words.collect::<Vec<_>>().join(": "));
            }
        }
        Ok(ports)
    }

    pub(super) fn published(&self, record: &VmRecord) -> Vec<PortPublished> {
        let open = self.shared.ports.open(&record.id);
        let address = |publication| {
            let found = open.iter().find(|(one, _)| one == publication);
            found.map(|(_, address)| *address)
        };
        let published = record.spec.ports.iter();
        published
            .map(|publication| PortPublished {
                publication: *publication,
                address: address(publication),
            })
            .collect()
    }
}
