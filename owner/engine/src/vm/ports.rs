//! A VM's published ports: which may be, and changing them while it runs.

use banger_types::{Publication, PublishedPort, VmName};

use super::Body;
use crate::error::EngineError;
use crate::seams::VmmProcess;

/// The most published ports of one VM: each is a socket and a task of the daemon's.
const MOST: usize = 64;

/// Checks what a VM is to publish: not too much, and nothing twice.
pub(crate) fn check(ports: &[Publication]) -> Result<(), EngineError> {
    if ports.len() > MOST {
        return Err(EngineError::TooManyPorts { most: MOST });
    }
    for (number, one) in ports.iter().enumerate() {
        let same_place = |other: &Publication| {
            other.host == one.host && other.protocol == one.protocol && one.host.port() != 0
        };
        let before = ports.get(..number).unwrap_or_default();
        if before.iter().any(|other| other == one || same_place(other)) {
            return Err(EngineError::PublishedTwice { publication: *one });
        }
    }
    Ok(())
}

/// Returns what a VM publishes after a change. What is published already may be asked for again; what
/// is to end must be there.
pub(super) fn changed(
    body: &Body,
    publish: &[Publication],
    unpublish: &[PublishedPort],
) -> Result<Vec<Publication>, EngineError> {
    let open = body.shared.ports.open(body.id());
    let bound = |publication: &Publication| {
        let found = open.iter().find(|(one, _)| one == publication);
        found.map(|(_, address)| address.port())
    };
    let mut ports = body.record.spec.ports.clone();
    for wanted in unpublish {
        let before = ports.len();
        ports.retain(|publication| !wanted.is(publication, bound(publication)));
        if ports.len() == before {
            let vm: VmName = body.record.name.clone();
            return Err(EngineError::NotPublished { vm, port: *wanted });
        }
    }
    for wanted in publish {
        if !ports.contains(wanted) {
            ports.push(*wanted);
        }
    }
    check(&ports)?;
    Ok(ports)
}

/// Opens the VM's ports on the host, no others, and leads them to its guest, if there is one.
pub(crate) fn open(body: &Body, process: Option<&dyn VmmProcess>) -> Result<(), EngineError> {
    let ports = &body.shared.ports;
    ports.publish(body.id(), &body.record.name, &body.record.spec.ports)?;
    if let Some(process) = process {
        ports.serve(body.id(), process.channel());
    }
    Ok(())
}
