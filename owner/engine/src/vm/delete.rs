//! Deleting a VM: to the end, and "already gone" is success.

use banger_daemon_api::vm::VmState;

use super::{Body, Control, clean_runtime, end_process, remove_file, remove_tree};
use crate::error::{EngineError, Failure};
use crate::step::Step;

/// Deletes the VM; the row goes last, and only when nothing is left. On failure the VM is half
/// deleted (or, where its VMM would not end, as it was).
pub(crate) async fn delete(body: &mut Body, control: &Control) -> Result<(), Failure> {
    let before = body.record.state;
    body.set_state(VmState::Deleting);
    body.save_or_log(false).await;
    if let Err(error) = end_process(body, control).await {
        body.set_state(before);
        body.save_or_log(false).await;
        return Err(error.into());
    }
    let mut errors = clean_runtime(body, control).await;
    errors.extend(step(body, control, Step::RemoveDisks).await);
    errors.extend(step(body, control, Step::RemoveVmDirectory).await);
    if errors.is_empty() {
        errors.extend(step(body, control, Step::RemoveRow).await);
    }
    let mut errors = errors.into_iter();
    match errors.next() {
        None => {
            body.vanish();
            Ok(())
        }
        Some(cause) => {
            let failure = Failure { cause, not_undone: errors.collect() };
            body.record.last_error = Some(failure.to_api());
            body.set_state(VmState::Deleting);
            body.save_or_log(false).await;
            Err(failure)
        }
    }
}

async fn step(body: &mut Body, control: &Control, step: Step) -> Vec<EngineError> {
    if let Err(error) = control.enter(body, step).await {
        // Without a row there is nothing to record an intent for: an earlier deletion removed it and
        // was not told so, and this one goes on.
        if body.shared.store.has_vm(body.id()).await.unwrap_or(true) {
            return vec![error];
        }
    }
    let mut errors = match step {
        Step::RemoveDisks => remove_disks(body).await,
        Step::RemoveVmDirectory => remove_tree(body.files.dir()).await.err().into_iter().collect(),
        _ => match body.shared.store.delete_vm(body.id()).await {
            Ok(_) => Vec::new(),
            Err(error) => vec![error.into()],
        },
    };
    errors.extend(control.done(body, step).await.err());
    errors
}

async fn remove_disks(body: &mut Body) -> Vec<EngineError> {
    let Some(disks) = &body.record.disks else { return Vec::new() };
    let mut errors = Vec::new();
    let kind = &disks.root.kind;
    let driver = body.shared.root_disks().into_iter().find(|driver| driver.kind() == kind);
    // A kind that needs more than removing its file has a driver; without one the directory's
    // removal takes the file.
    if let Some(driver) = driver {
        errors.extend(driver.remove(&disks.root).await.err().map(EngineError::from));
    }
    errors.extend(remove_file(&disks.work.path).await.err());
    errors
}

/// Deletes a VM whose creation failed: everything is undone already but the row, or the failure
/// says what is not. The cause stays the one of the creation.
pub(super) async fn discard(body: &mut Body, control: &Control, mut failure: Failure) -> Failure {
    if let Err(more) = delete(body, control).await {
        failure.not_undone.push(more.cause);
        failure.not_undone.extend(more.not_undone);
    }
    failure
}
