//! The task of one VM: the only place where its state changes.

use std::collections::{HashMap, VecDeque};
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use banger_daemon_api::error::ErrorCode;
use banger_daemon_api::operation::OperationKind;
use banger_daemon_api::vm::{SetVm, VmState};
use banger_types::{OperationId, VmName};
use rustix::process::Signal;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use super::delete::{delete, discard};
use super::network::{NetworkChange, change_network};
use super::rename::rename;
use super::set::set;
use super::space;
use super::start::start;
use super::stop::{Stop, clean_again, reap, stop};
use super::{Body, Control};
use crate::admission::{Action, Admission, Decision, Interrupt, Request, Settled, Ticket};
use crate::error::{EngineError, Failure};
use crate::operation::{OperationHandle, Reporter};
use crate::record::VmRecord;
use crate::seams::{self, VmmProcess};
use crate::shared::Shared;

/// What an order says beside what is asked for.
#[derive(Clone, Debug, Default)]
pub(crate) struct Details {
    /// How long a stop waits for the guest.
    pub(crate) grace: Option<Duration>,
    /// A stop does not wait.
    pub(crate) force: bool,
    /// What a change changes.
    pub(crate) change: SetVm,
}

/// Something a client asks for.
pub(crate) struct Order {
    pub(crate) request: Request,
    pub(crate) details: Details,
    pub(crate) op_id: OperationId,
}

/// What became of an order.
pub(crate) struct Answer {
    pub(crate) operation: OperationHandle,
    /// Another order's operation does it, or has done it.
    pub(crate) joined: bool,
}

/// What arrives in a VM's mailbox.
pub(crate) enum Message {
    Order(Order, oneshot::Sender<Result<Answer, EngineError>>),
    Signal(Signal, oneshot::Sender<Result<(), EngineError>>),
    /// What its guest may, or its name, to be changed between two actions.
    Change(Change, oneshot::Sender<Result<(), EngineError>>),
}

/// What changes between two actions, whether the VM runs or not.
pub(crate) enum Change {
    Network(Box<NetworkChange>),
    Name(VmName),
}

/// How a VM's task begins.
pub(crate) enum Begin {
    /// Insert the row and start the VM.
    Create(Reporter),
    /// Take over what is there.
    Idle,
}

type Acting = Pin<Box<dyn Future<Output = (Body, bool)> + Send>>;

/// The action under way, from outside.
struct Active {
    future: Acting,
    cancel: CancellationToken,
    force: CancellationToken,
}

struct Task {
    shared: Arc<Shared>,
    record_of: Arc<VmRecord>,
    admission: Admission,
    mailbox: mpsc::Receiver<Message>,
    waiting: HashMap<Ticket, (Reporter, Details)>,
    handles: HashMap<Ticket, OperationHandle>,
    /// Changes that wait for the action under way to end.
    changes: VecDeque<(Change, oneshot::Sender<Result<(), EngineError>>)>,
    /// A signal that ends the VMM was sent: its end is no failure.
    end_expected: bool,
}

/// Starts the task of a VM.
pub(crate) fn spawn(body: Body, begin: Begin, mailbox: mpsc::Receiver<Message>) {
    let shared = Arc::clone(&body.shared);
    let record_of = Arc::new(body.record.clone());
    let (mut waiting, mut handles) = (HashMap::new(), HashMap::new());
    let admission = match begin {
        Begin::Create(reporter) => {
            let (admission, ticket) = Admission::creating();
            handles.insert(ticket, reporter.handle());
            waiting.insert(ticket, (reporter, Details::default()));
            admission
        }
        Begin::Idle => Admission::new(settled(&body)),
    };
    let task = Task {
        shared,
        record_of,
        admission,
        mailbox,
        waiting,
        handles,
        changes: VecDeque::new(),
        end_expected: false,
    };
    tokio::spawn(task.run(body));
}

fn settled(body: &Body) -> Settled {
    if body.view.borrow().gone {
        Settled::Gone
    } else if body.process.is_some() {
        Settled::On
    } else if body.record.state == VmState::Deleting {
        Settled::HalfDeleted
    } else if body.record.leftovers.is_some() {
        Settled::NotCleaned
    } else {
        Settled::Off
    }
}

impl Task {
    async fn run(mut self, body: Body) {
        let mut idle = Some(body);
        let mut active: Option<Active> = None;
        // Without an engine there are no more messages; what is under way is still finished.
        let mut closed = false;
        loop {
            if let Some(mut body) = idle.take() {
                if body.view.borrow().gone {
                    return self.end();
                }
                while let Some((change, answer)) = self.changes.pop_front() {
                    let changed = match change {
                        Change::Network(change) => change_network(&mut body, *change).await,
                        Change::Name(name) => rename(&mut body, name).await,
                    };
                    self.record_of = Arc::new(body.record.clone());
                    let _ = answer.send(changed);
                }
                match self.admission.take_next() {
                    Some((ticket, action)) => active = self.begin(body, ticket, action),
                    // The VMM stays; the next daemon adopts it.
                    None if closed => return,
                    None => idle = Some(body),
                }
            }
            let process = idle.as_ref().and_then(|body| body.process.clone());
            tokio::select! {
                message = self.mailbox.recv(), if !closed => match message {
                    Some(message) => self.receive(message, active.as_ref(), idle.as_ref()),
                    None => closed = true,
                },
                (body, succeeded) = finish(&mut active), if active.is_some() => {
                    active = None;
                    if succeeded {
                        // What failed for others may succeed now, too.
                        self.shared.retry_cleaning(body.id());
                    }
                    if let Some((ticket, _)) = self.admission.active() {
                        self.handles.remove(&ticket);
                    }
                    self.admission.finished(settled(&body));
                    idle = Some(body);
                }
                end = wait(process.as_ref()), if process.is_some() => {
                    if let Some(body) = idle.as_mut() {
                        self.reap(body, end).await;
                    }
                }
            }
        }
    }

    /// Judges and queues an order, or sends a signal; never waits.
    fn receive(&mut self, message: Message, active: Option<&Active>, idle: Option<&Body>) {
        match message {
            Message::Order(order, answer) => {
                let result = self.order(order, active);
                let _ = answer.send(result);
            }
            Message::Signal(signal, answer) => {
                let _ = answer.send(self.signal(signal, idle));
            }
            Message::Change(change, answer) => self.changes.push_back((change, answer)),
        }
    }

    fn order(&mut self, order: Order, active: Option<&Active>) -> Result<Answer, EngineError> {
        let interrupt = |interrupt| {
            let Some(active) = active else { return };
            match interrupt {
                Interrupt::No => {}
                Interrupt::Cancel => active.cancel.cancel(),
                Interrupt::Force => active.force.cancel(),
            }
        };
        match self.admission.admit(order.request) {
            Decision::Accept { ticket, interrupt: how, overtaken } => {
                interrupt(how);
                self.overtake(overtaken);
                let reporter = self.begin_operation(&order);
                let operation = reporter.handle();
                self.handles.insert(ticket, operation.clone());
                self.waiting.insert(ticket, (reporter, order.details));
                Ok(Answer { operation, joined: false })
            }
            Decision::AlreadySo { joins, interrupt: how } => {
                interrupt(how);
                let operation = joins.and_then(|ticket| self.handles.get(&ticket)).cloned();
                let operation = operation.unwrap_or_else(|| {
                    let reporter = self.begin_operation(&order);
                    let operation = reporter.handle();
                    reporter.finish(Ok(()));
                    operation
                });
                Ok(Answer { operation, joined: true })
            }
            Decision::Deny(reason) => {
                Err(EngineError::Denied { vm: self.record_of.name.clone(), reason })
            }
        }
    }

    fn begin_operation(&self, order: &Order) -> Reporter {
        let vm = self.record_of.id.clone();
        let kind = match order.request {
            Request::Start => OperationKind::VmStart { vm },
            Request::Stop { .. } | Request::Clean => OperationKind::VmStop { vm },
            Request::Restart => OperationKind::VmRestart { vm },
            Request::Set => OperationKind::VmSet { vm },
            Request::Delete | Request::DeleteIdle => OperationKind::VmDelete { vm },
        };
        self.shared.operations.begin(kind, order.op_id.clone())
    }

    fn overtake(&mut self, tickets: Vec<Ticket>) {
        for ticket in tickets {
            self.handles.remove(&ticket);
            if let Some((reporter, _)) = self.waiting.remove(&ticket) {
                let error = EngineError::Overtaken { vm: self.record_of.name.clone() };
                reporter.finish(Err(error.to_api()));
            }
        }
    }

    fn signal(&mut self, signal: Signal, idle: Option<&Body>) -> Result<(), EngineError> {
        let (process, state) = match idle {
            Some(body) => (body.process.clone(), body.record.state),
            None => self
                .shared
                .view(&self.record_of.id)
                .map_or((None, VmState::Stopped), |view| (view.process, view.record.state)),
        };
        let denied = |state| EngineError::Denied {
            vm: self.record_of.name.clone(),
            reason: crate::admission::DenyReason::NotRunning(state),
        };
        let process = process.ok_or_else(|| denied(state))?;
        if process.signal(signal)? {
            self.end_expected |= !matches!(signal, Signal::USR1 | Signal::USR2);
            Ok(())
        } else {
            Err(denied(VmState::Stopped))
        }
    }

    fn begin(&mut self, body: Body, ticket: Ticket, action: Action) -> Option<Active> {
        self.end_expected = false;
        // Every ticket has its reporter; without one there is no one to tell.
        let (reporter, details) = self.waiting.remove(&ticket).unwrap_or_else(|| {
            let kind = OperationKind::VmDelete { vm: self.record_of.id.clone() };
            (self.shared.operations.begin(kind, OperationId::random()), Details::default())
        });
        let control = Control::new(reporter);
        let (cancel, force) = (control.cancel.clone(), control.force.clone());
        Some(Active { future: Box::pin(act(body, control, action, details)), cancel, force })
    }

    async fn reap(&mut self, body: &mut Body, end: seams::VmmState) {
        let reason = match end {
            seams::VmmState::Dead { reason } => reason,
            seams::VmmState::Alive => None,
        };
        tracing::info!(vm = %body.record.id, reason, expected = self.end_expected, "the VMM ended");
        let kind = OperationKind::VmStop { vm: body.record.id.clone() };
        let control = Control::new(self.shared.operations.begin(kind, OperationId::random()));
        reap(body, &control, reason, self.end_expected).await;
        self.end_expected = false;
        self.admission.finished(settled(body));
        control.reporter.finish(Ok(()));
        // A client that is there learns of the end before it lets the VM go.
        let client_is_gone = body
            .record
            .lease
            .as_ref()
            .is_some_and(|lease| !self.shared.table().leases.contains(lease));
        if client_is_gone {
            let order = Order {
                request: Request::Delete,
                details: Details::default(),
                op_id: OperationId::random(),
            };
            let _ = self.order(order, None);
        }
    }

    /// The VM is gone: nothing that waits will be done.
    fn end(mut self) {
        let (deletions, others): (Vec<Ticket>, Vec<Ticket>) =
            self.admission.drain().into_iter().partition(|ticket| {
                self.waiting.get(ticket).is_some_and(|(reporter, _)| {
                    matches!(reporter.handle().snapshot().kind, OperationKind::VmDelete { .. })
                })
            });
        for ticket in deletions {
            if let Some((reporter, _)) = self.waiting.remove(&ticket) {
                reporter.finish(Ok(()));
            }
        }
        self.overtake(others);
        // Orders that arrive from now on find the mailbox closed, which is "no such VM".
        self.mailbox.close();
    }
}

async fn finish(active: &mut Option<Active>) -> (Body, bool) {
    match active {
        Some(active) => (&mut active.future).await,
        None => std::future::pending().await,
    }
}

async fn wait(process: Option<&Arc<dyn VmmProcess>>) -> seams::VmmState {
    match process {
        Some(process) => process.wait().await,
        None => std::future::pending().await,
    }
}

/// Does one action and ends its operation; returns whether it succeeded.
async fn act(mut body: Body, control: Control, action: Action, details: Details) -> (Body, bool) {
    let result = if action != Action::Create && control.cancel.is_cancelled() {
        let what = format!("a request to VM {}", body.record.name);
        Err(EngineError::Cancelled { what }.into())
    } else {
        match action {
            Action::Create => create(&mut body, &control).await,
            Action::Asked(Request::Start) => restart(&mut body, &control, None).await,
            Action::Asked(Request::Stop { force }) => {
                let how = stop_how(&body, &details, force);
                match body.process {
                    Some(_) => stop(&mut body, &control, how).await,
                    None => clean_again(&mut body, &control).await,
                }
            }
            Action::Asked(Request::Clean) => clean_again(&mut body, &control).await,
            Action::Asked(Request::Restart) => {
                let how = stop_how(&body, &details, details.force);
                restart(&mut body, &control, Some(how)).await
            }
            Action::Asked(Request::Set) => {
                set(&mut body, &control, &details.change).await.map_err(Failure::from)
            }
            Action::Asked(Request::Delete | Request::DeleteIdle) => {
                delete(&mut body, &control).await
            }
        }
    };
    let result = result.map_err(|failure| failure.to_api());
    if let Err(error) = &result {
        tracing::warn!(vm = %body.record.id, op_id = %control.reporter.id(), code = %error.code, error = %error, causes = ?error.causes, "an operation failed");
    }
    let succeeded = result.is_ok();
    control.reporter.finish(result);
    (body, succeeded)
}

fn stop_how(body: &Body, details: &Details, force: bool) -> Stop {
    Stop { grace: details.grace.unwrap_or(body.shared.timing.stop_grace), force }
}

async fn create(body: &mut Body, control: &Control) -> Result<(), Failure> {
    let durability = if body.record.lease.is_some() {
        banger_store::Durability::Process
    } else {
        banger_store::Durability::Power
    };
    let record = &body.record;
    let inserted = body.shared.store.insert_vm(&record.id, &record.name, record, durability).await;
    if let Err(error) = inserted {
        body.vanish();
        return Err(EngineError::from(error).into());
    }
    match start(body, control).await {
        Ok(()) => Ok(()),
        Err(failure) => Err(discard(body, control, failure).await),
    }
}

async fn restart(body: &mut Body, control: &Control, how: Option<Stop>) -> Result<(), Failure> {
    if body.process.is_some() {
        let Some(how) = how else { return Ok(()) };
        // What could not be started again is not stopped for it.
        space::judge_restart(body).await?;
        let stopped = stop(body, control, how).await;
        // What is left of it is for the start to clean.
        if body.process.is_some() {
            return stopped;
        }
    }
    let before = body.record.state;
    match start(body, control).await {
        Ok(()) => Ok(()),
        Err(failure) => {
            let error = failure.to_api();
            body.set_state(if body.process.is_some() {
                // Its VMM would not end; what became of it is for a stop or a deletion to say.
                VmState::Running
            } else if error.code == ErrorCode::Cancelled && before != VmState::Failed {
                VmState::Stopped
            } else {
                VmState::Failed
            });
            body.record.last_error = Some(error);
            body.publish();
            body.save_or_log(true).await;
            Err(failure)
        }
    }
}

/// The error of an order that reached no task.
pub(crate) fn task_gone(record: &VmRecord) -> EngineError {
    EngineError::Denied { vm: record.name.clone(), reason: crate::admission::DenyReason::Deleted }
}
