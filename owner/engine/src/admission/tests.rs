use super::*;
use proptest::prelude::*;

const STOP: Request = Request::Stop { force: false };
const FORCE: Request = Request::Stop { force: true };

fn accepted(decision: Decision) -> (Ticket, Interrupt) {
    match decision {
        Decision::Accept { ticket, interrupt, .. } => (ticket, interrupt),
        other => panic!("{other:?}"),
    }
}

#[test]
fn asking_for_what_is_so_changes_nothing() {
    for (settled, request) in
        [(Settled::On, Request::Start), (Settled::Off, STOP), (Settled::Gone, Request::Delete)]
    {
        let mut admission = Admission::new(settled);
        assert_eq!(
            admission.admit(request),
            Decision::AlreadySo { joins: None, interrupt: Interrupt::No }
        );
        assert_eq!(admission.take_next(), None);
    }
}

#[test]
fn only_what_is_off_and_will_be_is_deleted_as_idle() {
    for settled in [Settled::Off, Settled::NotCleaned, Settled::HalfDeleted] {
        let mut admission = Admission::new(settled);
        accepted(admission.admit(Request::DeleteIdle));
        let deletion = admission.take_next().unwrap().1;
        assert_eq!(deletion, Action::Asked(Request::Delete));
    }
    let mut admission = Admission::new(Settled::On);
    assert_eq!(admission.admit(Request::DeleteIdle), Decision::Deny(DenyReason::NotIdle));
    // Also where a stop is under way, which a start may follow.
    accepted(admission.admit(STOP));
    assert_eq!(admission.admit(Request::DeleteIdle), Decision::Deny(DenyReason::NotIdle));
    let mut admission = Admission::new(Settled::Off);
    accepted(admission.admit(Request::Start));
    assert_eq!(admission.admit(Request::DeleteIdle), Decision::Deny(DenyReason::NotIdle));
}

#[test]
fn a_second_start_joins_the_first() {
    let mut admission = Admission::new(Settled::Off);
    let (ticket, _) = accepted(admission.admit(Request::Start));
    assert_eq!(
        admission.admit(Request::Start),
        Decision::AlreadySo { joins: Some(ticket), interrupt: Interrupt::No }
    );
    admission.take_next().unwrap();
    assert_eq!(
        admission.admit(Request::Restart),
        Decision::AlreadySo { joins: Some(ticket), interrupt: Interrupt::No }
    );
}

#[test]
fn nothing_but_deletion_is_possible_once_deletion_is_admitted() {
    let (mut admission, created) = Admission::creating();
    admission.take_next().unwrap();
    let (stop, interrupt) = accepted(admission.admit(FORCE));
    assert_eq!(interrupt, Interrupt::No, "a stop never undoes a creation");
    match admission.admit(Request::Delete) {
        Decision::Accept { interrupt, overtaken, .. } => {
            assert_eq!((interrupt, overtaken), (Interrupt::Force, vec![stop]));
        }
        other => panic!("{other:?}"),
    }
    for request in [Request::Start, STOP, FORCE, Request::Restart, Request::Set] {
        assert_eq!(admission.admit(request), Decision::Deny(DenyReason::BeingDeleted));
    }
    assert_eq!(admission.active(), Some((created, Action::Create)));
}

#[test]
fn a_half_deleted_vm_can_only_be_deleted() {
    let mut admission = Admission::new(Settled::HalfDeleted);
    for request in [Request::Start, STOP, Request::Restart, Request::Set] {
        assert_eq!(admission.admit(request), Decision::Deny(DenyReason::HalfDeleted));
    }
    accepted(admission.admit(Request::Delete));
}

#[test]
fn a_vm_that_was_not_cleaned_is_stopped_once_more() {
    let mut admission = Admission::new(Settled::NotCleaned);
    let (ticket, interrupt) = accepted(admission.admit(STOP));
    assert_eq!(interrupt, Interrupt::No);
    let joins = Decision::AlreadySo { joins: Some(ticket), interrupt: Interrupt::No };
    assert_eq!(admission.admit(STOP), joins);
    for request in [Request::Start, Request::Restart, Request::Set, Request::Delete] {
        accepted(Admission::new(Settled::NotCleaned).admit(request));
    }
    // Cleaning never touches one that runs or will.
    accepted(Admission::new(Settled::NotCleaned).admit(Request::Clean));
    let nothing = Decision::AlreadySo { joins: None, interrupt: Interrupt::No };
    for settled in [Settled::On, Settled::Off, Settled::HalfDeleted, Settled::Gone] {
        assert_eq!(Admission::new(settled).admit(Request::Clean), nothing);
    }
    let mut admission = Admission::new(Settled::NotCleaned);
    accepted(admission.admit(Request::Start));
    assert_eq!(admission.admit(Request::Clean), nothing);
}

#[test]
fn stopping_a_start_cancels_it_and_force_hurries_a_stop() {
    let mut admission = Admission::new(Settled::Off);
    accepted(admission.admit(Request::Start));
    admission.take_next().unwrap();
    assert_eq!(accepted(admission.admit(STOP)).1, Interrupt::Cancel);
    admission.finished(Settled::Off);
    let (ticket, _) = admission.take_next().unwrap();
    assert_eq!(
        admission.admit(FORCE),
        Decision::AlreadySo { joins: Some(ticket), interrupt: Interrupt::Force }
    );
}

#[test]
fn what_a_vm_is_changes_only_while_it_is_off() {
    let mut admission = Admission::new(Settled::On);
    assert_eq!(admission.admit(Request::Set), Decision::Deny(DenyReason::NotStopped));
    let (stop, _) = accepted(admission.admit(STOP));
    accepted(admission.admit(Request::Set));
    // Who stops it waits for the stop, not for the change.
    let joins = Decision::AlreadySo { joins: Some(stop), interrupt: Interrupt::No };
    assert_eq!(admission.admit(STOP), joins);
    accepted(admission.admit(Request::Start));
    assert_eq!(admission.admit(Request::Set), Decision::Deny(DenyReason::NotStopped));
    // Under way, it is not cut off by a stop.
    let mut admission = Admission::new(Settled::Off);
    accepted(admission.admit(Request::Set));
    admission.take_next().unwrap();
    let off = Decision::AlreadySo { joins: None, interrupt: Interrupt::No };
    assert_eq!(admission.admit(FORCE), off);
}

fn requests() -> impl Strategy<Value = Option<Request>> {
    // `None`: the action under way ends.
    prop_oneof![
        2 => Just(Some(Request::Start)),
        2 => Just(Some(STOP)),
        2 => Just(Some(FORCE)),
        2 => Just(Some(Request::Restart)),
        2 => Just(Some(Request::Set)),
        4 => Just(None),
        1 => Just(Some(Request::Delete)),
    ]
}

fn effect(action: Action) -> Settled {
    match action {
        Action::Create | Action::Asked(Request::Start | Request::Restart) => Settled::On,
        Action::Asked(Request::Stop { .. } | Request::Set | Request::Clean) => Settled::Off,
        Action::Asked(Request::Delete | Request::DeleteIdle) => Settled::Gone,
    }
}

proptest! {
    /// Against a model that simply does everything accepted, in order: every request that is not
    /// denied is true at its turn, tickets end exactly once, and the queue stays short.
    #[test]
    fn what_is_not_denied_comes_true(
        start: u8,
        steps in proptest::collection::vec((requests(), any::<bool>()), 0..60),
    ) {
        let settled = [Settled::Off, Settled::On, Settled::NotCleaned][usize::from(start) % 3];
        let mut admission = Admission::new(settled);
        let mut open: Vec<Ticket> = Vec::new();
        let mut deleted = false;
        for (request, fails) in steps {
            let Some(request) = request else {
                if let Some((ticket, action)) = admission.take_next().or(admission.active()) {
                    prop_assert_eq!(open.remove(0), ticket, "in order");
                    // A failed action leaves the VM off; a failed deletion, half deleted.
                    let settled = match (fails, action) {
                        (false, action) => effect(action),
                        (true, Action::Asked(Request::Delete)) => Settled::HalfDeleted,
                        (true, Action::Asked(Request::Stop { .. })) => Settled::NotCleaned,
                        (true, _) => Settled::Off,
                    };
                    admission.finished(settled);
                    deleted = settled == Settled::Gone;
                }
                continue;
            };
            let before = admission.target();
            match admission.admit(request) {
                Decision::Accept { ticket, overtaken, .. } => {
                    prop_assert!(!deleted && before != Settled::Gone);
                    open.retain(|one| !overtaken.contains(one));
                    prop_assert!(overtaken.is_empty() || request == Request::Delete);
                    open.push(ticket);
                    prop_assert_eq!(admission.target(), effect(Action::Asked(request)));
                }
                Decision::AlreadySo { joins, .. } => {
                    prop_assert_eq!(admission.target(), before);
                    prop_assert_eq!(before, effect(Action::Asked(request)));
                    if let Some(ticket) = joins {
                        prop_assert!(open.contains(&ticket));
                    }
                    // Asking once more is the same.
                    let again = matches!(admission.admit(request), Decision::AlreadySo { .. });
                    prop_assert!(again);
                }
                Decision::Deny(reason) => {
                    prop_assert_eq!(admission.target(), before);
                    prop_assert!(request != Request::Delete, "deletion is always possible");
                    let why = match before {
                        Settled::Gone if deleted => DenyReason::Deleted,
                        Settled::Gone => DenyReason::BeingDeleted,
                        Settled::HalfDeleted => DenyReason::HalfDeleted,
                        Settled::On if request == Request::Set => DenyReason::NotStopped,
                        _ => DenyReason::Busy,
                    };
                    prop_assert_eq!(reason, why);
                }
            }
            prop_assert!(open.len() <= MAX_QUEUE + 2);
        }
    }
}
