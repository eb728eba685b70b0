//! Ending a VM's VMM, cleanly or at once, and removing what it left.
//!
//! What could not be removed is recorded (`VmRecord::leftovers`) and tried again: when the VM is asked
//! to stop or start, when any other VM's request has succeeded, and when the daemon starts.

use std::time::Duration;

use banger_daemon_api::error::{ApiError, ErrorCode};
use banger_daemon_api::vm::VmState;

use super::{Body, Control, collected, main_exit, remove_file, remove_tree};
use crate::error::{EngineError, Failure};
use crate::fault::Moment;
use crate::guest;
use crate::record::Handles;
use crate::seams;
use crate::step::Step;

/// How a VM is to be stopped.
#[derive(Clone, Copy, Debug)]
pub(super) struct Stop {
    /// How long the guest may take to power off.
    pub(super) grace: Duration,
    /// Do not ask the guest.
    pub(super) force: bool,
}

/// Stops the VM and cleans up to the end. A failure means that its VMM still runs, or that it does
/// not and something of it is left; a guest that had to be killed is the VM's last error.
pub(super) async fn stop(body: &mut Body, control: &Control, how: Stop) -> Result<(), Failure> {
    body.record.last_error = None;
    let before = body.record.state;
    body.set_state(VmState::Stopping);
    body.save_or_log(false).await;
    let mut warning = None;
    if !how.force
        && let Some(process) = body.process.clone()
    {
        warning = power_off(body, control, process.as_ref(), how.grace).await;
    }
    if let Err(error) = end_process(body, control).await {
        body.set_state(before);
        body.save_or_log(false).await;
        return Err(error.into());
    }
    main_exit::record(body);
    clean_runtime(body, control).await;
    body.record.last_error = body.record.leftovers.clone().or(warning);
    body.set_state(VmState::Stopped);
    body.save_or_log(true).await;
    cleaned(body)
}

/// Tries again to remove what is left of a VM that does not run.
pub(super) async fn clean_again(body: &mut Body, control: &Control) -> Result<(), Failure> {
    if body.record.leftovers.is_none() {
        return Ok(());
    }
    let before = body.record.leftovers.clone();
    clean_runtime(body, control).await;
    if body.record.last_error == before {
        body.record.last_error.clone_from(&body.record.leftovers);
    }
    body.publish();
    body.save_or_log(true).await;
    cleaned(body)
}

/// Fails if something is left.
fn cleaned(body: &Body) -> Result<(), Failure> {
    let vm = body.record.name.clone();
    match body.record.leftovers.clone().map(Box::new) {
        Some(problem) => Err(EngineError::Leftovers { vm, problem }.into()),
        None => Ok(()),
    }
}

/// Asks the guest to power off and waits for it; returns what is worth telling when it did not.
async fn power_off(
    body: &Body,
    control: &Control,
    process: &dyn seams::VmmProcess,
    grace: Duration,
) -> Option<ApiError> {
    if let Err(error) = control.enter(body, Step::StopGuest).await {
        tracing::warn!(vm = %body.record.id, %error, "the intent to stop was not recorded");
    }
    let channel = process.channel();
    let asked = async {
        let begun = tokio::time::Instant::now();
        guest::power_off(&channel, grace).await?;
        let left = grace.saturating_sub(begun.elapsed());
        Ok::<bool, EngineError>(tokio::time::timeout(left, process.wait()).await.is_ok())
    };
    let vm = &body.record.name;
    let ended = tokio::select! {
        biased;
        () = control.force.cancelled() => return None,
        // It may be gone before its answer has arrived.
        _ = process.wait() => Ok(true),
        ended = asked => ended,
    };
    log_intent(body, control.done(body, Step::StopGuest).await);
    match ended {
        Ok(true) => None,
        Ok(false) => Some(ApiError::new(
            ErrorCode::Timeout,
            format!(
                "the guest of VM {vm} had not powered off after {} s and was killed",
                grace.as_secs()
            ),
        )),
        Err(error) => {
            let mut warning = ApiError::new(
                ErrorCode::AgentUnreachable,
                format!("the guest of VM {vm} could not be asked to power off and was killed"),
            );
            let cause = error.to_api();
            warning.causes.push(cause.message);
            warning.causes.extend(cause.causes);
            Some(warning)
        }
    }
}

/// Ends the VMM if it runs. On failure the VM keeps it.
pub(crate) async fn end_process(body: &mut Body, control: &Control) -> Result<(), EngineError> {
    log_intent(body, control.enter(body, Step::EndVmm).await);
    if let Some(process) = body.process.clone() {
        process.kill().await?;
        body.process = None;
        body.publish();
    }
    log_intent(body, control.done(body, Step::EndVmm).await);
    Ok(())
}

/// Removes what the VMM, which has ended, left, and what it was given; goes on to the end and returns
/// what failed, which the record keeps until it has been done. What tells of the VMM is removed last,
/// and only if nothing else is left. Cut off, all of it is done again.
pub(crate) async fn clean_runtime(body: &mut Body, control: &Control) -> Vec<EngineError> {
    body.shared.ports.withdraw(body.id());
    let mut errors = attempt(body, control, Step::CleanRuntime, clean_vmm(body)).await;
    body.shared.release_memory(body.id());
    errors.extend(attempt(body, control, Step::DetachRootDisk, detach_root_disk(body)).await);
    if let Some(network) = body.shared.network.clone() {
        network.withdraw(body.id());
        // A VM that is known to have had no tap needs no helper to be ended.
        if body.record.running.as_ref().is_none_or(|running| running.on_bridge) {
            let op_id = control.reporter.id();
            let detach = async {
                let detached = network.detach(body.id(), &op_id).await;
                detached.err().map(EngineError::from).into_iter().collect()
            };
            errors.extend(attempt(body, control, Step::DetachNetwork, detach).await);
        }
    }
    if errors.is_empty() {
        errors.extend(remove_tree(body.files.runtime_dir()).await.err());
        errors.extend(remove_file(&body.files.handles()).await.err());
    }
    body.record.running = None;
    body.record.leftovers = collected(&errors);
    errors
}

/// Takes a step of an end. It does not stop where the store does, but where its act fails.
async fn attempt(
    body: &Body,
    control: &Control,
    step: Step,
    act: impl Future<Output = Vec<EngineError>>,
) -> Vec<EngineError> {
    log_intent(body, control.intend(body, step).await);
    if let Err(error) = control.strike(body, step, Moment::Before).await {
        return vec![error];
    }
    let mut errors = act.await;
    errors.extend(control.done(body, step).await.err());
    errors
}

async fn clean_vmm(body: &Body) -> Vec<EngineError> {
    let mut errors = Vec::new();
    let dir = body.files.runtime_dir();
    let kind = body.record.running.as_ref().map(|running| running.identity.kind);
    let drivers = body.shared.vmms.iter().filter(|vmm| kind.is_none_or(|kind| vmm.kind() == kind));
    for vmm in drivers {
        errors.extend(vmm.clean(dir).await.err().map(EngineError::from));
    }
    errors
}

async fn detach_root_disk(body: &Body) -> Vec<EngineError> {
    let mut errors = Vec::new();
    let disk_kind = body.record.disks.as_ref().map(|disks| disks.root.kind.as_str());
    for driver in body.shared.root_disks() {
        // A daemon that was killed while the VM was created had not written its disks down.
        if disk_kind.is_none_or(|kind| kind == driver.kind()) {
            errors.extend(driver.detach(body.id()).await.err().map(EngineError::from));
        }
    }
    errors
}

/// Ending a VM does not stop where the store does.
fn log_intent(body: &Body, result: Result<(), EngineError>) {
    if let Err(error) = result {
        tracing::warn!(vm = %body.record.id, %error, "a step of ending a VM was not recorded");
    }
}

/// Records the end of a VMM that ended by itself. `expected`: someone sent it a signal.
pub(super) async fn reap(
    body: &mut Body,
    control: &Control,
    reason: Option<String>,
    expected: bool,
) {
    body.process = None;
    main_exit::record(body);
    clean_runtime(body, control).await;
    body.record.last_error = match reason {
        Some(reason) if !expected => Some(ApiError::new(
            ErrorCode::GuestFailed,
            format!("the VMM of VM {} ended: {reason}", body.record.name),
        )),
        _ => body.record.leftovers.clone(),
    };
    let failed =
        body.record.last_error.as_ref().is_some_and(|error| error.code == ErrorCode::GuestFailed);
    body.set_state(if failed { VmState::Failed } else { VmState::Stopped });
    body.save_or_log(true).await;
}

/// Returns the identity in `handles.json`, if it can be read.
pub(crate) fn read_handles(body: &Body) -> Option<Handles> {
    match Handles::read(&body.files.handles(), body.id()) {
        Ok(handles) => handles,
        Err(problem) => {
            tracing::warn!(vm = %body.record.id, problem, "handles.json cannot be read");
            None
        }
    }
}
