//! Failure and cancellation at every step: everything is undone, and the cause is told.

use super::*;
use crate::{Action, Step};
use banger_daemon_api::error::ErrorCode;

fn moments(steps: &[Step], kind: &str) -> Vec<(Step, String)> {
    let fault = |step: &Step, done: &str| (*step, format!("{}{done}={kind}", step.name()));
    steps.iter().flat_map(|step| [fault(step, ""), fault(step, ".done")]).collect()
}

#[tokio::test]
async fn a_creation_that_fails_at_any_step_leaves_nothing() {
    for (kind, code) in [("error", ErrorCode::OperationFailed), ("enospc", ErrorCode::NoSpace)] {
        for (_, fault) in moments(&Action::Create.steps(), kind) {
            let machine = Machine::new();
            let (engine, _) = open(&machine, Faults::at(&fault)).await;
            let operation = ended(&engine.create(request(Some("box")), op()).unwrap()).await;
            let error = operation.error.expect(&fault);
            assert_eq!(error.code, code, "{fault}: {error:?}");
            assert!(!error.causes.iter().any(|cause| cause.contains("not undone")), "{error:?}");
            gone(&engine, "box").await;
            assert_eq!(machine.leftovers(), Vec::<String>::new(), "{fault}");
            drop(engine);
            let (engine, report) = open(&machine, Faults::default()).await;
            assert_eq!(report, ReconcileReport::default(), "{fault}");
            create(&engine, "box").await;
        }
    }
}

#[tokio::test]
async fn a_creation_cancelled_at_any_step_leaves_nothing() {
    for (_, fault) in moments(&Action::Create.steps(), "hang") {
        let machine = Machine::new();
        let (engine, _) = open(&machine, Faults::at(&fault)).await;
        let operation = engine.create(request(Some("box")), op()).unwrap();
        let mut seen = operation.snapshot();
        let stage = fault.split(['.', '=']).next().unwrap();
        let step = Step::ALL.iter().find(|step| step.name() == stage).unwrap();
        while seen.stage != step.stage() {
            seen = operation.changed_after(seen.generation).await;
        }
        operation.cancel();
        let operation = ended(&operation).await;
        // Once everything is done there is nothing to cancel.
        if *step == Step::RecordRunning {
            assert_eq!(operation.state, OperationState::Succeeded, "{fault}");
            delete(&engine, "box").await;
        } else {
            assert_eq!(operation.state, OperationState::Cancelled, "{fault}");
        }
        gone(&engine, "box").await;
        assert_eq!(machine.leftovers(), Vec::<String>::new(), "{fault}");
    }
}

#[tokio::test]
async fn a_start_that_fails_at_any_step_keeps_the_disks() {
    for (_, fault) in moments(&Action::Start.steps(), "error") {
        let machine = Machine::new();
        let (engine, _) = open(&machine, Faults::default()).await;
        let created = create(&engine, "box").await;
        stop(&engine, "box").await;
        drop(engine);
        let (engine, _) = open(&machine, Faults::at(&fault)).await;
        let operation = ended(&engine.start(&vm("box"), op()).await.unwrap().operation).await;
        assert_eq!(operation.state, OperationState::Failed, "{fault}");
        let failed = engine.get(&vm("box")).await.unwrap();
        assert_eq!((failed.state, failed.runtime.as_ref()), (VmState::Failed, None), "{fault}");
        assert_eq!(failed.last_error.unwrap().op_id, None);
        assert_eq!(failed.disks, created.disks, "{fault}");
        assert!(machine.alive().is_empty(), "{fault}");
        assert!(created.disks.iter().all(|disk| std::path::Path::new(&disk.path).exists()));
        drop(engine);
        let (engine, _) = open(&machine, Faults::default()).await;
        start(&engine, "box").await;
        delete(&engine, "box").await;
        gone(&engine, "box").await;
        assert_eq!(machine.leftovers(), Vec::<String>::new(), "{fault}");
    }
}

#[tokio::test]
async fn a_half_deleted_vm_is_deleted_by_trying_again() {
    let steps = [Step::RemoveDisks, Step::RemoveVmDirectory, Step::RemoveRow];
    for (_, fault) in moments(&steps, "error") {
        let machine = Machine::new();
        let (engine, _) = open(&machine, Faults::at(&fault)).await;
        create(&engine, "box").await;
        let operation = ended(&engine.delete(&vm("box"), op()).await.unwrap().operation).await;
        assert_eq!(operation.state, OperationState::Failed, "{fault}");
        assert!(machine.alive().is_empty());
        let half = engine.get(&vm("box")).await.unwrap();
        assert_eq!(half.state, VmState::Deleting, "{fault}");
        assert!(half.last_error.is_some());
        let denied = engine.start(&vm("box"), op()).await.unwrap_err();
        assert_eq!(denied.code(), ErrorCode::InUse);
        drop(engine);
        let (engine, report) = open(&machine, Faults::default()).await;
        // The row may have been the last thing to go.
        assert!(report.removed.len() <= 1, "{fault}: {report:?}");
        gone(&engine, "box").await;
        assert_eq!(machine.leftovers(), Vec::<String>::new(), "{fault}");
    }
}

#[tokio::test]
async fn a_host_that_fails_is_undone_like_a_fault() {
    for call in ["create root disk", "work disk", "initrd", "launch", "resume"] {
        let machine = Machine::new();
        let (engine, _) = open(&machine, Faults::default()).await;
        machine.script(|script| script.failing.push(call));
        let operation = ended(&engine.create(request(Some("box")), op()).unwrap()).await;
        let error = operation.error.unwrap();
        assert!(error.message.contains(call) || error.causes.join(" ").contains(call), "{error:?}");
        gone(&engine, "box").await;
        assert_eq!(machine.leftovers(), Vec::<String>::new(), "{call}");
    }
}

#[tokio::test]
async fn an_undo_that_fails_is_told_beside_the_cause_and_finished_later() {
    let machine = Machine::new();
    let (engine, _) = open(&machine, Faults::at("wait_for_agent=error")).await;
    machine.script(|script| script.failing.push("kill"));
    let operation = ended(&engine.create(request(Some("box")), op()).unwrap()).await;
    let error = operation.error.unwrap();
    assert!(error.causes.iter().any(|cause| cause.contains("not undone: kill")), "{error:?}");
    // Nothing that the living VMM uses was taken from under it.
    assert_eq!(machine.alive().len(), 1);
    let stuck = engine.get(&vm("box")).await.unwrap();
    assert!(stuck.disks.iter().all(|disk| std::path::Path::new(&disk.path).exists()));
    machine.script(|script| script.failing.clear());
    delete(&engine, "box").await;
    gone(&engine, "box").await;
    assert_eq!(machine.leftovers(), Vec::<String>::new());
}

#[tokio::test]
async fn a_vmm_that_cannot_be_killed_keeps_its_vm() {
    let machine = Machine::new();
    let (engine, _) = open(&machine, Faults::default()).await;
    create(&engine, "box").await;
    machine.script(|script| script.failing.push("kill"));
    let force = StopVm { force: true, grace_ms: None };
    for deletes in [false, true] {
        let started = if deletes {
            engine.delete(&vm("box"), op()).await
        } else {
            engine.stop(&vm("box"), &force, op()).await
        };
        assert_eq!(ended(&started.unwrap().operation).await.state, OperationState::Failed);
        let vm = engine.get(&vm("box")).await.unwrap();
        assert_eq!(vm.state, VmState::Running);
        assert!(vm.runtime.is_some() && vm.disks.len() == 2);
    }
    machine.script(|script| script.failing.clear());
    delete(&engine, "box").await;
    gone(&engine, "box").await;
    assert_eq!(machine.leftovers(), Vec::<String>::new());
}

#[tokio::test]
async fn a_row_that_is_gone_although_its_removal_failed_does_not_keep_the_vm() {
    let machine = Machine::new();
    let fault = machine.dir.path().join("fault");
    let (engine, _) = open(&machine, Faults::told_by(machine.dir.path())).await;
    create(&engine, "box").await;
    std::fs::write(&fault, "remove_row.done=error").unwrap();
    let deletion = engine.delete(&vm("box"), op()).await.unwrap().operation;
    assert_eq!(ended(&deletion).await.state, OperationState::Failed);
    std::fs::remove_file(&fault).unwrap();
    delete(&engine, "box").await;
    gone(&engine, "box").await;
    assert_eq!(machine.leftovers(), Vec::<String>::new());
    create(&engine, "box").await;
}
