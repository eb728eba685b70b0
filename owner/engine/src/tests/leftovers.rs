//! What an end could not remove: recorded, told, and tried again until it is gone.

use super::*;
use crate::{Action, Step};
use banger_daemon_api::error::{ApiError, ErrorCode};
use banger_daemon_api::orphan::OrphanKind;
use banger_daemon_api::vm::LEFTOVERS_NOTE;

/// The acts of an end that may fail, on the scripted host.
const ACTS: [&str; 3] = ["clean", "detach root disk", "detach"];

fn fail(machine: &Machine, act: &'static str) {
    machine.script(|script| script.failing.push(act));
}

fn mend(machine: &Machine) {
    machine.script(|script| script.failing.clear());
}

/// What is on the host of a VM that does not run, beside its directory.
fn left(machine: &Machine) -> Vec<String> {
    let mut left = machine.leftovers();
    left.retain(|one| !one.contains("/state/vms/"));
    left
}

/// Asks for a stop and returns how it failed.
async fn failed_stop(engine: &Engine) -> ApiError {
    let stop = engine.stop(&vm("box"), &StopVm::default(), op()).await.unwrap().operation;
    ended(&stop).await.error.expect("a stop that left something succeeded")
}

/// A VM that was stopped while the host refused `act`.
async fn stopped_with_leftovers(engine: &Engine, machine: &Machine, act: &'static str) {
    create(engine, "box").await;
    fail(machine, act);
    // Asking again changes nothing while the host refuses, and says so each time.
    for _ in 0..2 {
        let error = failed_stop(engine).await;
        assert_eq!(error.code, ErrorCode::OperationFailed, "{act}");
        assert!(error.causes.iter().any(|cause| cause.contains(act)), "{act}: {error:?}");
        assert!(error.hint.unwrap().contains("banger vm stop box"), "{act}");
        let shown = engine.get(&vm("box")).await.unwrap();
        assert_eq!((shown.state, shown.runtime.as_ref()), (VmState::Stopped, None), "{act}");
        assert!(shown.notes[LEFTOVERS_NOTE].contains(act), "{act}: {:?}", shown.notes);
        assert_ne!(left(machine), Vec::<String>::new(), "{act}");
    }
}

async fn assert_clean(engine: &Engine, machine: &Machine, what: &str) {
    assert_eq!(left(machine), Vec::<String>::new(), "{what}");
    let shown = engine.get(&vm("box")).await.unwrap();
    assert_eq!(shown.notes.get(LEFTOVERS_NOTE), None, "{what}");
    assert_eq!(shown.last_error, None, "{what}");
}

#[tokio::test]
async fn a_second_stop_removes_what_the_first_could_not() {
    for act in ACTS {
        let machine = Machine::new();
        let (engine, _) = open(&machine, Faults::default()).await;
        stopped_with_leftovers(&engine, &machine, act).await;
        mend(&machine);
        stop(&engine, "box").await;
        assert_clean(&engine, &machine, act).await;
    }
}

#[tokio::test]
async fn the_next_daemon_removes_what_the_last_could_not() {
    for act in ACTS {
        let machine = Machine::new();
        let (engine, _) = open(&machine, Faults::default()).await;
        stopped_with_leftovers(&engine, &machine, act).await;
        drop(engine);
        // One that cannot either says so, and does not forget it.
        let (engine, report) = open(&machine, Faults::default()).await;
        assert_eq!(report.warnings.len(), 1, "{act}: {report:?}");
        drop(engine);
        mend(&machine);
        let (engine, report) = open(&machine, Faults::default()).await;
        assert_eq!(report.warnings, Vec::<String>::new(), "{act}");
        assert_eq!(engine.get(&vm("box")).await.unwrap().state, VmState::Stopped, "{act}");
        assert_clean(&engine, &machine, act).await;
    }
}

#[tokio::test]
async fn a_success_of_another_vm_has_it_tried_again() {
    let machine = Machine::new();
    let (engine, _) = open(&machine, Faults::default()).await;
    stopped_with_leftovers(&engine, &machine, "detach").await;
    // A creation that fails while the helper is away stays half deleted, and goes as well.
    fail(&machine, "launch");
    let half = ended(&engine.create(request(Some("half")), op()).unwrap()).await.error.unwrap();
    let told = half.causes.iter().filter(|cause| cause.contains("not undone: detach")).count();
    assert_eq!(told, 1, "{half:?}");
    assert_eq!(engine.get(&vm("half")).await.unwrap().state, VmState::Deleting);
    mend(&machine);
    create(&engine, "other").await;
    gone(&engine, "half").await;
    let clean = async {
        while engine.get(&vm("box")).await.unwrap().notes.contains_key(LEFTOVERS_NOTE) {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(SOON, clean).await.expect("something stays");
    delete(&engine, "other").await;
    assert_clean(&engine, &machine, "after another's success").await;
}

#[tokio::test]
async fn a_start_cleans_first_and_does_not_pass_over_what_stays() {
    let machine = Machine::new();
    let (engine, _) = open(&machine, Faults::default()).await;
    stopped_with_leftovers(&engine, &machine, "detach").await;
    // A run without a bridge would never look for the tap again.
    fail(&machine, "bridge");
    let started = engine.start(&vm("box"), op()).await.unwrap().operation;
    assert_eq!(ended(&started).await.state, OperationState::Failed);
    assert!(engine.get(&vm("box")).await.unwrap().notes.contains_key(LEFTOVERS_NOTE));
    machine.script(|script| script.failing.retain(|act| *act == "bridge"));
    start(&engine, "box").await;
    assert_eq!(machine.taps.taps.lock().unwrap().len(), 0);
    stop(&engine, "box").await;
    assert_clean(&engine, &machine, "after a run without a bridge").await;
}

#[tokio::test]
async fn a_vmm_that_ended_by_itself_and_a_start_that_failed_leave_nothing_unrecorded() {
    for act in ["detach root disk", "detach"] {
        let machine = Machine::new();
        let (engine, _) = open(&machine, Faults::default()).await;
        let pid = create(&engine, "box").await.runtime.unwrap().pid;
        fail(&machine, act);
        machine.end(pid, Some("oom"));
        let failed = until_state(&engine, "box", VmState::Failed).await;
        assert!(failed.last_error.unwrap().message.contains("oom"));
        assert!(failed.notes[LEFTOVERS_NOTE].contains(act), "{act}");
        mend(&machine);
        stop(&engine, "box").await;
        assert_eq!(left(&machine), Vec::<String>::new(), "{act}");
        fail(&machine, "launch");
        fail(&machine, act);
        let started = engine.start(&vm("box"), op()).await.unwrap().operation;
        assert_eq!(ended(&started).await.state, OperationState::Failed);
        assert!(engine.get(&vm("box")).await.unwrap().notes[LEFTOVERS_NOTE].contains(act));
        mend(&machine);
        stop(&engine, "box").await;
        assert_eq!(left(&machine), Vec::<String>::new(), "{act}");
    }
}

#[tokio::test]
async fn doctor_lists_what_is_left_and_its_fix_removes_it() {
    let machine = Machine::new();
    let (engine, _) = open(&machine, Faults::default()).await;
    stopped_with_leftovers(&engine, &machine, "clean").await;
    let seen = engine.left_by_resting().await.unwrap();
    let kinds: Vec<OrphanKind> = seen.iter().map(|(_, orphan)| orphan.kind).collect();
    assert_eq!(kinds, [OrphanKind::Sockets], "{seen:?}");
    let outcome = engine.remove_orphans(&[]).await.unwrap();
    assert_eq!((outcome.removed.len(), outcome.kept.len()), (0, 1), "{outcome:?}");
    mend(&machine);
    let outcome = engine.remove_orphans(&[]).await.unwrap();
    assert_eq!(outcome.removed.len(), 1, "{outcome:?}");
    assert_clean(&engine, &machine, "doctor --fix").await;
    assert_eq!(engine.left_by_resting().await.unwrap(), []);
    create(&engine, "running").await;
    assert_eq!(engine.left_by_resting().await.unwrap(), []);
}

#[tokio::test]
async fn an_end_goes_on_whatever_fails_and_the_next_one_does_the_rest() {
    for action in [Action::Stop, Action::Delete] {
        for step in action.steps() {
            for done in ["", ".done"] {
                let fault = format!("{}{done}=error", step.name());
                let machine = Machine::new();
                let hook = machine.dir.path().join("fault");
                let (engine, _) = open(&machine, Faults::told_by(machine.dir.path())).await;
                create(&engine, "box").await;
                std::fs::write(&hook, &fault).unwrap();
                let ending = if action == Action::Stop {
                    engine.stop(&vm("box"), &StopVm::default(), op()).await
                } else {
                    engine.delete(&vm("box"), op()).await
                };
                let outcome = ended(&ending.unwrap().operation).await;
                std::fs::remove_file(&hook).unwrap();
                assert!(machine.alive().is_empty(), "{fault}");
                // Of these, only what is recorded of them is lost.
                let is_told = !matches!(step, Step::StopGuest | Step::EndVmm);
                assert_eq!(outcome.error.is_some(), is_told, "{fault}: {outcome:?}");
                if action == Action::Stop {
                    stop(&engine, "box").await;
                    assert_eq!(left(&machine), Vec::<String>::new(), "{fault}");
                    start(&engine, "box").await;
                }
                if engine.get(&vm("box")).await.is_ok() {
                    delete(&engine, "box").await;
                }
                gone(&engine, "box").await;
                assert_eq!(machine.leftovers(), Vec::<String>::new(), "{fault}");
            }
        }
    }
}
