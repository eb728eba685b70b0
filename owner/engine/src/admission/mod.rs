//! Who may do what to a VM now: pure decisions, no I/O, no clock.
//!
//! Each VM has one [`Admission`]: at most one action under way and a short queue behind it. A
//! request is judged against the state the VM will be in once everything admitted has been done,
//! so that asking twice is the same as asking once.
//!
//! | request | VM will be off | off, not cleaned | VM will be on | deletion admitted | half deleted |
//! |---|---|---|---|---|---|
//! | start | accept | accept | already so | deny | deny |
//! | stop | already so | accept | accept; cancels a start under way | deny | deny |
//! | restart | accept | accept | accept; joins a start under way | deny | deny |
//! | set | accept | accept | deny | deny | deny |
//! | clean | already so | accept | already so | already so | already so |
//! | delete | accept | accept | accept; forces what is under way, overtakes what waits | already so | accept |
//!
//! A deletion of what is idle is a deletion where the VM is off and nothing is admitted, and else
//! denied.

mod change;
mod host;
mod space;

use std::collections::VecDeque;
use std::fmt;

use banger_daemon_api::error::ErrorCode;
use banger_daemon_api::vm::VmState;
use banger_types::VmName;

pub use change::{Bounds, change};
pub use host::{DISK_FLOOR, disk_room, memory_room};
pub use space::{Growth, HostSpace, Largest, SpaceRequest, disk_headroom, judge_space};

/// Most actions that wait behind the one under way.
pub const MAX_QUEUE: usize = 4;

/// What a client may ask of a VM that exists.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// Let it run.
    Start,
    /// Let it end; by force: at once.
    Stop {
        /// Kill the VMM at once.
        force: bool,
    },
    /// End it and let it run again.
    Restart,
    /// Change its size and shape.
    Set,
    /// Remove what its last end could not, if it still does not run.
    Clean,
    /// Remove it and its disks.
    Delete,
    /// The same, if it does not run and nothing is under way or waits.
    DeleteIdle,
}

/// What can be under way for a VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Its first start, at whose failure it is removed.
    Create,
    /// As asked.
    Asked(Request),
}

/// Names an admitted action.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Ticket(u64);

/// What a VM is when nothing is under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Settled {
    /// It does not run.
    Off,
    /// It does not run, and not all that its VMM was given could be taken back.
    NotCleaned,
    /// It runs.
    On,
    /// A deletion failed halfway.
    HalfDeleted,
    /// It is no more.
    Gone,
}

/// What is to happen to the action under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Interrupt {
    /// It goes on.
    No,
    /// A start is undone; anything else goes on.
    Cancel,
    /// A start is undone, a clean stop becomes a kill.
    Force,
}

/// The answer to a request.
#[must_use]
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// It will be done.
    Accept {
        /// Its name.
        ticket: Ticket,
        /// What happens to the action under way.
        interrupt: Interrupt,
        /// Actions that waited and will not be done.
        overtaken: Vec<Ticket>,
    },
    /// The VM is, or will be, as asked.
    AlreadySo {
        /// The admitted action that makes it so, where there is one.
        joins: Option<Ticket>,
        /// What happens to the action under way.
        interrupt: Interrupt,
    },
    /// It will not be done.
    Deny(DenyReason),
}

/// Why a request was denied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DenyReason {
    /// It is being deleted.
    BeingDeleted,
    /// An earlier deletion failed halfway.
    HalfDeleted,
    /// It is deleted.
    Deleted,
    /// Too much is waiting.
    Busy,
    /// It does not run.
    NotRunning(VmState),
    /// It runs, or will.
    NotStopped,
    /// It runs, or something is under way.
    NotIdle,
}

impl DenyReason {
    /// Returns the stable code.
    #[must_use]
    pub const fn code(self) -> ErrorCode {
        match self {
            Self::BeingDeleted
            | Self::HalfDeleted
            | Self::Busy
            | Self::NotStopped
            | Self::NotIdle => ErrorCode::InUse,
            Self::Deleted => ErrorCode::NotFound,
            Self::NotRunning(_) => ErrorCode::NotRunning,
        }
    }

    /// Returns what to do next.
    #[must_use]
    pub fn hint(self, vm: &VmName) -> Option<String> {
        match self {
            Self::HalfDeleted => Some(format!("`banger vm delete {vm}` tries again")),
            Self::Busy => Some("wait for what is under way".to_owned()),
            Self::NotRunning(VmState::Starting) => Some("wait until it has started".to_owned()),
            Self::NotRunning(VmState::Created | VmState::Stopped | VmState::Failed) => {
                Some(format!("`banger vm start {vm}` starts it"))
            }
            Self::NotStopped => Some(format!("`banger vm stop {vm}`, then again")),
            _ => None,
        }
    }
}

impl fmt::Display for DenyReason {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::BeingDeleted => formatter.write_str("is being deleted"),
            Self::HalfDeleted => formatter.write_str("is half deleted"),
            Self::Deleted => formatter.write_str("is deleted"),
            Self::Busy => formatter.write_str("has too many requests waiting"),
            Self::NotRunning(state) => write!(formatter, "is not running but {state}"),
            Self::NotStopped => {
                formatter.write_str("runs, and what it is made of changes only while it does not")
            }
            Self::NotIdle => formatter.write_str("is in use by now, and is kept"),
        }
    }
}

/// Returns whether a VM in this state can be reached through its agent.
pub const fn may_reach_agent(state: VmState) -> Result<(), DenyReason> {
    match state {
        VmState::Running => Ok(()),
        VmState::Deleting => Err(DenyReason::BeingDeleted),
        other => Err(DenyReason::NotRunning(other)),
    }
}

/// One VM's queue.
#[derive(Clone, Debug)]
pub struct Admission {
    settled: Settled,
    active: Option<(Ticket, Action)>,
    queue: VecDeque<(Ticket, Action)>,
    next_ticket: u64,
}

impl Admission {
    /// Makes the queue of a VM for which nothing is under way.
    #[must_use]
    pub const fn new(settled: Settled) -> Self {
        Self { settled, active: None, queue: VecDeque::new(), next_ticket: 0 }
    }

    /// Makes the queue of a new VM, its creation admitted.
    pub fn creating() -> (Self, Ticket) {
        let mut admission = Self::new(Settled::Off);
        let ticket = admission.enqueue(Action::Create);
        (admission, ticket)
    }

    fn enqueue(&mut self, action: Action) -> Ticket {
        let ticket = Ticket(self.next_ticket);
        self.next_ticket += 1;
        self.queue.push_back((ticket, action));
        ticket
    }

    fn last(&self) -> Option<(Ticket, Action)> {
        self.queue.back().copied().or(self.active)
    }

    /// Returns what the VM will be once everything admitted is done.
    #[must_use]
    pub fn target(&self) -> Settled {
        match self.last() {
            None => self.settled,
            Some((_, Action::Create | Action::Asked(Request::Start | Request::Restart))) => {
                Settled::On
            }
            // It is admitted only where the VM will be off.
            Some((_, Action::Asked(Request::Stop { .. } | Request::Set | Request::Clean))) => {
                Settled::Off
            }
            Some((_, Action::Asked(Request::Delete | Request::DeleteIdle))) => Settled::Gone,
        }
    }

    /// Returns the action under way.
    #[must_use]
    pub const fn active(&self) -> Option<(Ticket, Action)> {
        self.active
    }

    /// Returns the last action that makes the VM run or not.
    fn last_of_state(&self) -> Option<Ticket> {
        let of_state = |one: &&(Ticket, Action)| !matches!(one.1, Action::Asked(Request::Set));
        self.queue
            .iter()
            .rev()
            .chain(self.active.as_ref())
            .find(of_state)
            .map(|(ticket, _)| *ticket)
    }

    /// Judges a request and admits it where it can be done.
    pub fn admit(&mut self, request: Request) -> Decision {
        let joins = self.last_of_state();
        let target = self.target();
        match (request, target) {
            (Request::Clean, Settled::NotCleaned) => {
                let ticket = self.enqueue(Action::Asked(request));
                Decision::Accept { ticket, interrupt: Interrupt::No, overtaken: Vec::new() }
            }
            // Nobody waits for what else makes it so.
            (Request::Clean, _) => Decision::AlreadySo { joins: None, interrupt: Interrupt::No },
            (Request::DeleteIdle, _) if self.last().is_some() || target == Settled::On => {
                Decision::Deny(DenyReason::NotIdle)
            }
            (Request::DeleteIdle, _) => self.admit(Request::Delete),
            (Request::Delete, Settled::Gone) => {
                Decision::AlreadySo { joins, interrupt: Interrupt::No }
            }
            (Request::Delete, _) => {
                let overtaken = self.queue.drain(..).map(|(ticket, _)| ticket).collect();
                let ticket = self.enqueue(Action::Asked(request));
                Decision::Accept { ticket, interrupt: Interrupt::Force, overtaken }
            }
            (_, Settled::Gone) if joins.is_some() => Decision::Deny(DenyReason::BeingDeleted),
            (_, Settled::Gone) => Decision::Deny(DenyReason::Deleted),
            (_, Settled::HalfDeleted) => Decision::Deny(DenyReason::HalfDeleted),
            (Request::Start, Settled::On) => {
                Decision::AlreadySo { joins, interrupt: Interrupt::No }
            }
            (Request::Restart, Settled::On) if joins.is_some() => {
                Decision::AlreadySo { joins, interrupt: Interrupt::No }
            }
            (Request::Stop { force }, Settled::Off) => {
                Decision::AlreadySo { joins, interrupt: self.hurry(force) }
            }
            (Request::Set, Settled::On) => Decision::Deny(DenyReason::NotStopped),
            _ if self.queue.len() >= MAX_QUEUE => Decision::Deny(DenyReason::Busy),
            (Request::Stop { force }, Settled::On | Settled::NotCleaned) => {
                let interrupt =
                    if self.queue.is_empty() { self.hurry(force) } else { Interrupt::No };
                let ticket = self.enqueue(Action::Asked(request));
                Decision::Accept { ticket, interrupt, overtaken: Vec::new() }
            }
            (Request::Start | Request::Restart | Request::Set, _) => {
                let ticket = self.enqueue(Action::Asked(request));
                Decision::Accept { ticket, interrupt: Interrupt::No, overtaken: Vec::new() }
            }
        }
    }

    /// Returns what a stop does to the action under way. A creation is never interrupted by it:
    /// that would delete the VM.
    fn hurry(&self, force: bool) -> Interrupt {
        match self.active {
            None
            | Some((
                _,
                Action::Create
                | Action::Asked(
                    Request::Delete | Request::DeleteIdle | Request::Set | Request::Clean,
                ),
            )) => Interrupt::No,
            Some(_) if force => Interrupt::Force,
            Some((_, Action::Asked(Request::Start | Request::Restart))) => Interrupt::Cancel,
            Some((_, Action::Asked(Request::Stop { .. }))) => Interrupt::No,
        }
    }

    /// Takes the next action, if none is under way.
    pub fn take_next(&mut self) -> Option<(Ticket, Action)> {
        if self.active.is_none() {
            self.active = self.queue.pop_front();
            return self.active;
        }
        None
    }

    /// Says what the VM is now that the action under way has ended, well or badly.
    pub fn finished(&mut self, settled: Settled) {
        self.active = None;
        self.settled = settled;
    }

    /// Drops everything that waits, for a VM that is gone.
    pub fn drain(&mut self) -> Vec<Ticket> {
        self.queue.drain(..).map(|(ticket, _)| ticket).collect()
    }
}

#[cfg(test)]
mod tests;
