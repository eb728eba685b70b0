//! Bringing the store and the host together when the daemon starts.
//!
//! | the row says | VMM | then |
//! |---|---|---|
//! | not complete (creation was interrupted) | any | ended, everything removed |
//! | deleting | any | ended, everything removed |
//! | bound to a lease | any | ended, everything removed: its client's connection is gone |
//! | running | alive | adopted; one that does not answer too ([`crate::late`]) |
//! | stopping | alive | ended, marked stopped |
//! | starting | alive | ended, marked failed |
//! | running, stopping | gone | cleaned, marked stopped, with what is known of its end |
//! | starting | gone | cleaned, marked failed |
//! | stopped, failed | alive (a lost write) | ended, cleaned |
//! | stopped, failed, with something left | gone | cleaned |
//!
//! Where a VMM is, three sources say: `handles.json`, the row, and the host itself (command lines
//! of our VMMs). Any one of them is enough. Only what is known to have ended is cleaned up after.
//! Rows are taken at once, so that a VMM that does not answer holds up no other.

use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::Arc;

use banger_daemon_api::error::{ApiError, ErrorCode};
use banger_daemon_api::operation::OperationKind;
use banger_daemon_api::orphan::Orphan;
use banger_daemon_api::vm::{PORTS_NOTE, VmState};
use banger_types::{OperationId, VmName};
use futures::stream::{self, StreamExt as _, TryStreamExt as _};

use crate::error::EngineError;
use crate::late::{self, Taken};
use crate::record::{Handles, Running, VmRecord};
use crate::seams::{VmmIdentity, VmmProcess};
use crate::shared::Shared;
use crate::vm::{
    Body, Control, clean_runtime, delete, end_process, ports, read_handles, watch_main,
};

/// What reconciling found and did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ReconcileReport {
    /// VMs whose VMM runs on.
    pub adopted: Vec<VmName>,
    /// VMs that were thought to run and are marked as stopped or failed.
    pub ended: Vec<VmName>,
    /// VMs that were half made, half deleted or bound to a lost connection, and are removed.
    pub removed: Vec<VmName>,
    /// What of ours is on the host and belongs to no VM.
    pub orphans: Vec<Orphan>,
    /// What could not be read or cleaned, in words.
    pub warnings: Vec<String>,
}

/// How many rows are taken at a time: each may wait for its VMM's answer.
const AT_ONCE: usize = 32;

/// VMMs found on the host, by runtime directory.
type Found = HashMap<PathBuf, Vec<VmmIdentity>>;

pub(crate) async fn reconcile(
    shared: &Arc<Shared>,
) -> Result<(Vec<Body>, ReconcileReport), EngineError> {
    let mut report = ReconcileReport::default();
    let rows = shared.store.vms::<VmRecord>().await?;
    for row in rows.unreadable {
        report.warnings.push(format!("VM {} cannot be read: {}", row.id, row.problem));
    }
    for intent in shared.store.intents().await? {
        tracing::info!(vm = %intent.vm, step = intent.step, op_id = %intent.op_id, "the daemon ended in this step");
    }
    // Those that have an address keep it, before any other gets one.
    for row in &rows.rows {
        if let Some(number) = row.document.address_number {
            shared.address_number(&row.document.id, Some(number));
        }
    }
    let mut found = find_vmms(shared, &mut report).await;
    let mut rest = Vec::new();
    for row in rows.rows {
        let mut body = Body::new(Arc::clone(shared), row.document, None);
        let number = shared.address_number(&body.record.id, body.record.address_number);
        body.record.address_number = Some(number);
        let on_host = found.remove(body.files.runtime_dir()).unwrap_or_default();
        rest.push(one(body, on_host));
    }
    let dealt: Vec<_> = stream::iter(rest).buffered(AT_ONCE).try_collect().await?;
    let mut bodies = Vec::new();
    for (body, of_one) in dealt {
        bodies.extend(body);
        report.adopted.extend(of_one.adopted);
        report.ended.extend(of_one.ended);
        report.removed.extend(of_one.removed);
        report.warnings.extend(of_one.warnings);
    }
    for warning in &report.warnings {
        tracing::warn!("{warning}");
    }
    Ok((bodies, report))
}

async fn find_vmms(shared: &Arc<Shared>, report: &mut ReconcileReport) -> Found {
    let mut found = Found::new();
    for vmm in &shared.vmms {
        match vmm.find(&shared.runtime_root).await {
            Ok(list) => {
                for (dir, identity) in list {
                    found.entry(dir).or_default().push(identity);
                }
            }
            Err(error) => report.warnings.push(format!("looking for VMMs: {error}")),
        }
    }
    found
}

/// Deals with one row; returns the VM unless it is removed, and what was done.
///
/// # Errors
/// Whether its VMM runs cannot be told: to go on would be to run a second one on the same disks.
async fn one(
    mut body: Body,
    on_host: Vec<VmmIdentity>,
) -> Result<(Option<Body>, ReconcileReport), EngineError> {
    let mut report = ReconcileReport::default();
    let name = body.record.name.clone();
    let remove = !body.record.complete
        || body.record.state == VmState::Deleting
        || body.record.lease.is_some();
    let handles = read_handles(&body);
    if body.record.disks.is_none() {
        body.record.disks = handles.as_ref().map(|handles| handles.disks.clone());
    }
    let network = handles.as_ref().map(|handles| (handles.guest_ip, handles.on_bridge));
    let recorded = body.record.running.as_ref().map(|running| running.identity.clone());
    let was_running = recorded.is_some();
    let mut identities: Vec<VmmIdentity> = Vec::new();
    let in_file = handles.map(|handles| handles.identity);
    for identity in in_file.iter().cloned().chain(recorded).chain(on_host) {
        if !identities.contains(&identity) {
            identities.push(identity);
        }
    }
    let keep = !remove && body.record.state == VmState::Running;
    for identity in &identities {
        if body.process.is_none() {
            report.warnings.extend(take_hold(&mut body, identity, keep).await?);
        } else if let Some(vmm) = body.vmm(identity.kind)
            && let Err(error) = vmm.end(identity).await
        {
            let error = EngineError::from(error).to_api();
            let causes = error.causes.join(": ");
            report.warnings.push(format!("VM {name} has a second VMM: {error}: {causes}"));
        }
    }
    let vm = body.record.id.clone();
    let reporter = |kind| body.shared.operations.begin(kind, OperationId::random());
    if remove {
        let control = Control::new(reporter(OperationKind::VmDelete { vm }));
        let deleted = delete(&mut body, &control).await.map_err(|failure| failure.to_api());
        let kept = match &deleted {
            Ok(()) => {
                report.removed.push(name);
                None
            }
            Err(error) => {
                report.warnings.push(format!("VM {name} could not be removed: {error}"));
                Some(body)
            }
        };
        control.reporter.finish(deleted);
        return Ok((kept, report));
    }
    if let Some(process) = body.process.clone().filter(|_| keep) {
        adopted(&mut body, process.as_ref(), network).await;
        if in_file.as_ref() != Some(process.identity()) {
            write_handles(&body, process.identity());
        }
        watch_main(&mut body);
        report.adopted.push(name);
        return Ok((Some(body), report));
    }
    let settled =
        matches!(body.record.state, VmState::Stopped | VmState::Failed | VmState::Created);
    let is_clean = body.record.leftovers.is_none() && !body.files.runtime_dir().exists();
    if settled && identities.is_empty() && !was_running && is_clean {
        return Ok((Some(body), report));
    }
    let control = Control::new(reporter(OperationKind::VmStop { vm }));
    let ended = tear_down(&mut body, &control).await;
    if let Err(error) = &ended {
        report.warnings.push(format!("VM {name} could not be ended: {error}"));
    }
    control.reporter.finish(ended);
    report.ended.push(name);
    Ok((Some(body), report))
}

/// Takes hold of the VMM if it is alive. One that is to be kept is asked; returns what a person should
/// know of it.
async fn take_hold(
    body: &mut Body,
    identity: &VmmIdentity,
    keep: bool,
) -> Result<Option<String>, EngineError> {
    let Some(vmm) = body.vmm(identity.kind) else { return Ok(None) };
    if !keep {
        // Its end needs no word from it.
        body.process = vmm.hold(identity)?;
        return Ok(None);
    }
    let runtime_dir = body.files.runtime_dir().to_owned();
    match late::take(vmm, identity, runtime_dir, body.files.console_log()).await? {
        Taken::Ended => Ok(None),
        Taken::Answering(process) => {
            body.process = Some(process);
            Ok(None)
        }
        Taken::Silent(process) => {
            body.process = Some(process);
            let (name, pid) = (&body.record.name, identity.pid);
            Ok(Some(format!(
                "VM {name}: its VMM, process {pid}, ran and did not answer when this daemon started"
            )))
        }
    }
}

async fn adopted(
    body: &mut Body,
    process: &dyn VmmProcess,
    network: Option<(Option<Ipv4Addr>, bool)>,
) {
    let identity = process.identity().clone();
    let overhead = body.vmm(identity.kind).map_or(0, |vmm| vmm.overhead(identity.acceleration));
    body.shared.note_memory(body.id(), body.record.spec.memory_mib, overhead, identity.pid);
    let known = body.record.running.as_ref().is_some_and(|running| running.identity == identity);
    if !known {
        // The row was rebuilt from an old mirror; who the guest is can be asked again.
        let (guest_ip, on_bridge) = network.unwrap_or_default();
        body.record.running = Some(Running { guest_ip, on_bridge, ..Running::new(identity) });
        body.save_or_log(true).await;
    }
    if let (Some(network), Some(running)) = (&body.shared.network, &body.record.running) {
        let address = running.guest_ip.filter(|_| running.on_bridge);
        network.announce(body.record.guest(address));
    }
    if let Err(error) = ports::open(body, Some(process)) {
        // Somebody took a port while no daemon ran; the VM is more than its ports.
        let error = error.to_api();
        let causes = error.causes.join(": ");
        tracing::warn!(vm = %body.record.id, %error, causes, "a VM's ports are not published");
        let why = [error.message, causes].join(": ");
        body.record.notes.insert(PORTS_NOTE.to_owned(), why);
    } else {
        body.record.notes.remove(PORTS_NOTE);
    }
    body.publish();
}

/// Writes `handles.json` anew where it is lost, damaged or of an earlier VMM.
fn write_handles(body: &Body, identity: &VmmIdentity) {
    let (Some(disks), Some(running)) = (&body.record.disks, &body.record.running) else { return };
    let handles = Handles {
        vm: body.record.id.clone(),
        identity: identity.clone(),
        disks: disks.clone(),
        guest_ip: running.guest_ip,
        on_bridge: running.on_bridge,
    };
    match handles.write(&body.files.handles()) {
        Ok(()) => tracing::info!(vm = %body.record.id, "handles.json was written anew"),
        Err(error) => tracing::warn!(vm = %body.record.id, %error, "handles.json was not written"),
    }
}

async fn tear_down(body: &mut Body, control: &Control) -> Result<(), ApiError> {
    let before = body.record.state;
    end_process(body, control).await.map_err(|error| error.to_api())?;
    let running = body.record.running.clone();
    let leftovers = body.record.leftovers.clone();
    let errors = clean_runtime(body, control).await;
    if body.record.last_error == leftovers {
        body.record.last_error.clone_from(&body.record.leftovers);
    }
    let vm = &body.record.name;
    let (state, message) = match before {
        VmState::Running => {
            let rebooted = running.is_some_and(|running| {
                host_boot_id().is_some_and(|now| now != running.identity.host_boot_id)
            });
            // By itself, with nobody there to see why: that is told, and the VM is at rest.
            let message = if rebooted {
                format!("the host was restarted while VM {vm} ran")
            } else {
                format!("the VMM of VM {vm} ended while no daemon ran")
            };
            (VmState::Stopped, Some(message))
        }
        VmState::Starting => {
            (VmState::Failed, Some(format!("the daemon ended while VM {vm} was being started")))
        }
        VmState::Stopping => (VmState::Stopped, None),
        other => (other, None),
    };
    if let Some(message) = message {
        body.record.last_error = Some(ApiError::new(ErrorCode::GuestFailed, message));
    }
    body.set_state(state);
    body.save_or_log(true).await;
    match errors.into_iter().next() {
        Some(error) => Err(error.to_api()),
        None => Ok(()),
    }
}

/// Returns the id of the host's boot, which changes with each.
pub(crate) fn host_boot_id() -> Option<String> {
    let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    Some(text.trim().to_owned())
}
