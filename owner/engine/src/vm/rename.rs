//! A VM's name, changed between two actions.

use std::time::Duration;

use banger_daemon_api::vm::{HOSTNAME_NOTE, VmState};
use banger_types::VmName;

use super::Body;
use crate::error::EngineError;
use crate::guest;

/// How long a guest may take to answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// Renames the VM: in the store first, which has each name once, then where others look it up, then in
/// its guest. A guest that does not answer has the name from its next start on, and a note says so.
pub(super) async fn rename(body: &mut Body, name: VmName) -> Result<(), EngineError> {
    if name != body.record.name {
        reserve(body, &name)?;
        let before = std::mem::replace(&mut body.record.name, name.clone());
        let stored = body.shared.store.rename_vm(body.id(), &name, &body.record).await;
        let mut table = body.shared.table();
        table.wanted_names.remove(&name);
        if let Err(error) = stored {
            body.record.name = before;
            return Err(error.into());
        }
        if let Some(entry) = table.vms.get_mut(&body.record.id) {
            entry.name = name;
        }
        drop(table);
        announce(body);
    }
    body.publish();
    tell_guest(body).await;
    body.publish();
    body.save_or_log(true).await;
    Ok(())
}

fn reserve(body: &Body, name: &VmName) -> Result<(), EngineError> {
    let mut table = body.shared.table();
    if table.is_taken(name) {
        return Err(EngineError::NameTaken { name: name.clone() });
    }
    table.wanted_names.insert(name.clone());
    Ok(())
}

/// Lets other guests and the host find a VM that runs by its new name.
fn announce(body: &Body) {
    if let (Some(network), Some(running)) = (&body.shared.network, &body.record.running) {
        let address = running.guest_ip.filter(|_| running.on_bridge);
        network.announce(body.record.guest(address));
    }
}

async fn tell_guest(body: &mut Body) {
    body.record.notes.remove(HOSTNAME_NOTE);
    let Some(process) = body.process.clone().filter(|_| body.record.state == VmState::Running)
    else {
        return;
    };
    let channel = process.channel();
    let told = guest::set_name(&channel, body.record.name.clone());
    // The VM does nothing else meanwhile, and a guest may say nothing at all.
    let failure = match tokio::time::timeout(PATIENCE, told).await {
        Ok(Ok(())) => return,
        Ok(Err(error)) => error.to_string(),
        Err(_) => format!("no answer within {} s", PATIENCE.as_secs()),
    };
    tracing::warn!(vm = %body.record.id, error = failure, "a guest was not told its name");
    let note = "the guest keeps its earlier host name until its next start: its agent did not take \
                the new one";
    body.record.notes.insert(HOSTNAME_NOTE.to_owned(), note.to_owned());
}
