//! One VM: its state, and the task that alone changes it.
//!
//! ```text
//!  requests -> mailbox -> task -> admission -> one action at a time (start, stop, delete)
//!                          |                      owns the Body while it acts
//!                          +-> watch: View (record, VMM) -> list, show, exec
//! ```

mod console;
mod delete;
mod main_exit;
mod network;
pub(crate) mod ports;
mod rename;
mod set;
mod space;
mod start;
mod stop;
mod task;

use std::sync::Arc;

use banger_daemon_api::error::ApiError;
use banger_daemon_api::vm::VmState;
use banger_store::Durability;
use banger_types::{OperationId, VmId};
use jiff::Timestamp;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::admission::Request;
use crate::error::EngineError;
use crate::fault::Moment;
use crate::layout::VmFiles;
use crate::operation::Reporter;
use crate::record::VmRecord;
use crate::seams::{Vmm, VmmKind, VmmProcess};
use crate::shared::Shared;
use crate::step::Step;

pub(crate) use delete::delete;
pub(crate) use main_exit::watch as watch_main;
pub(crate) use network::NetworkChange;
pub(crate) use stop::{clean_runtime, end_process, read_handles};
pub(crate) use task::{Begin, Change, Details, Message, Order, spawn, task_gone};

/// What others see of a VM.
#[derive(Clone)]
pub(crate) struct View {
    pub(crate) record: Arc<VmRecord>,
    pub(crate) process: Option<Arc<dyn VmmProcess>>,
    /// The VM is deleted.
    pub(crate) gone: bool,
}

impl View {
    /// Returns the request that takes up an end which did not succeed, where there was one and
    /// nothing is under way.
    pub(crate) fn cleaning(&self) -> Option<Request> {
        let record = &self.record;
        match record.state {
            _ if self.gone || self.process.is_some() => None,
            VmState::Deleting => record.last_error.as_ref().map(|_| Request::Delete),
            VmState::Stopped | VmState::Failed => record.leftovers.as_ref().map(|_| Request::Clean),
            _ => None,
        }
    }
}

/// A VM in the hands of whoever acts on it.
pub(crate) struct Body {
    pub(crate) shared: Arc<Shared>,
    pub(crate) record: VmRecord,
    pub(crate) files: VmFiles,
    pub(crate) process: Option<Arc<dyn VmmProcess>>,
    heard_exit: main_exit::HeardExit,
    view: watch::Sender<View>,
}

impl Body {
    pub(crate) fn new(
        shared: Arc<Shared>,
        record: VmRecord,
        process: Option<Arc<dyn VmmProcess>>,
    ) -> Self {
        let files = VmFiles::new(&shared.vms_dir, &shared.runtime_root, &record.id);
        let view = View { record: Arc::new(record.clone()), process: process.clone(), gone: false };
        let heard_exit = main_exit::HeardExit::default();
        Self { shared, record, files, process, heard_exit, view: watch::Sender::new(view) }
    }

    pub(crate) fn watch(&self) -> watch::Receiver<View> {
        self.view.subscribe()
    }

    pub(crate) fn id(&self) -> &VmId {
        &self.record.id
    }

    /// Lets others see the VM as it is now.
    pub(crate) fn publish(&self) {
        self.show(false);
    }

    /// Lets others see that the VM is deleted, and frees its name: before its operation ends, so
    /// that whoever waited for that can use the name.
    pub(crate) fn vanish(&self) {
        self.show(true);
        self.shared.forget(&self.record.id);
    }

    fn show(&self, gone: bool) {
        self.view.send_replace(View {
            record: Arc::new(self.record.clone()),
            process: self.process.clone(),
            gone,
        });
    }

    /// Changes the state and lets others see it; [`Body::save`] makes it last.
    pub(crate) fn set_state(&mut self, state: VmState) {
        self.record.state = state;
        self.record.updated_at = Timestamp::now();
        self.publish();
    }

    /// Makes the record last; `settled` when nothing is half done any more.
    pub(crate) async fn save(&self, settled: bool) -> Result<(), EngineError> {
        // A VM that goes with its client's connection need not survive a power cut.
        let durability = if settled && self.record.lease.is_none() {
            Durability::Power
        } else {
            Durability::Process
        };
        Ok(self.shared.store.update_vm(&self.record.id, &self.record, durability, settled).await?)
    }

    /// Makes the record last where there is no one to tell of a failure.
    pub(crate) async fn save_or_log(&self, settled: bool) {
        if let Err(error) = self.save(settled).await {
            tracing::error!(vm = %self.record.id, error = %error.to_api(), "a VM's state was not recorded");
        }
    }

    pub(crate) fn vmm(&self, kind: VmmKind) -> Option<Arc<dyn Vmm>> {
        self.shared.vmms.iter().find(|vmm| vmm.kind() == kind).cloned()
    }
}

/// An action's ties to the outside: whom it tells and who may interrupt it.
pub(crate) struct Control {
    pub(crate) reporter: Reporter,
    /// The client's wish to cancel, or a stop that cancels a start.
    pub(crate) cancel: CancellationToken,
    /// The wish of a deletion or a forced stop that a clean stop become a kill.
    pub(crate) force: CancellationToken,
}

impl Control {
    pub(crate) fn new(reporter: Reporter) -> Self {
        Self { cancel: reporter.cancellation(), force: CancellationToken::new(), reporter }
    }

    /// Begins a step: tells people, records the intent, lets faults strike.
    pub(crate) async fn enter(&self, body: &Body, step: Step) -> Result<(), EngineError> {
        self.intend(body, step).await?;
        self.strike(body, step, Moment::Before).await
    }

    /// Tells people of a step and records the intent.
    async fn intend(&self, body: &Body, step: Step) -> Result<(), EngineError> {
        let op_id: OperationId = self.reporter.id();
        tracing::debug!(vm = %body.record.id, %op_id, step = step.name(), "step");
        self.reporter.stage(step.stage());
        Ok(body.shared.store.intend(&body.record.id, step.name(), &op_id).await?)
    }

    /// Ends a step that cannot fail any more but by a fault.
    pub(crate) async fn done(&self, body: &Body, step: Step) -> Result<(), EngineError> {
        self.strike(body, step, Moment::Done).await
    }

    async fn strike(&self, body: &Body, step: Step, moment: Moment) -> Result<(), EngineError> {
        tokio::select! {
            biased;
            struck = body.shared.faults.strike(step, moment) => struck,
            // A step that hangs is still cancelled, at the next one.
            () = self.cancel.cancelled() => Ok(()),
            () = self.force.cancelled() => Ok(()),
        }
    }

    fn interrupted(&self) -> bool {
        self.cancel.is_cancelled() || self.force.is_cancelled()
    }
}

/// Turns errors that did not stop a clean-up into one that can be shown.
fn collected(errors: &[EngineError]) -> Option<ApiError> {
    let mut errors = errors.iter();
    let mut first = errors.next()?.to_api();
    for error in errors {
        let error = error.to_api();
        first.causes.push(format!("and: {}", error.message));
        first.causes.extend(error.causes);
    }
    Some(first)
}

/// Removes a directory and all in it; returns whether there was one.
pub(crate) async fn remove_tree(path: &std::path::Path) -> Result<bool, EngineError> {
    match tokio::fs::remove_dir_all(path).await {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(false),
        Err(source) => Err(io("removing", path)(source)),
    }
}

/// Removes a file; returns whether there was one.
async fn remove_file(path: &std::path::Path) -> Result<bool, EngineError> {
    match tokio::fs::remove_file(path).await {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(false),
        Err(source) => Err(io("removing", path)(source)),
    }
}

fn io(
    act: &'static str,
    path: &std::path::Path,
) -> impl FnOnce(std::io::Error) -> EngineError + use<> {
    let object = path.display().to_string();
    move |source| EngineError::Io { act, object, source }
}
