//! Changing a VM.

use super::*;
use banger_daemon_api::error::ErrorCode;
use banger_daemon_api::vm::{SPACE_NOTE, SetVm};
use machine::Guest;

async fn set(engine: &Engine, change: SetVm) -> Operation {
    let started = engine.set(&vm("box"), change, op()).await.unwrap();
    ended(&started.operation).await
}

fn larger() -> SetVm {
    SetVm {
        vcpus: Some(3.try_into().unwrap()),
        memory_mib: Some(1024.try_into().unwrap()),
        root_size: Some("2G".parse().unwrap()),
        work_size: Some("3G".parse().unwrap()),
        disk_ops: Some(Some(100.try_into().unwrap())),
        ..SetVm::default()
    }
}

#[tokio::test]
async fn a_stopped_vm_changes_and_keeps_it() {
    let machine = Machine::new();
    let (engine, _) = open(&machine, Faults::default()).await;
    create(&engine, "box").await;
    // Not while it runs.
    let error = engine.set(&vm("box"), larger(), op()).await.unwrap_err();
    assert_eq!(error.code(), ErrorCode::InUse);
    assert!(error.hint().unwrap().contains("banger vm stop box"));
    stop(&engine, "box").await;
    let changed = set(&engine, larger()).await;
    assert_eq!(changed.state, OperationState::Succeeded, "{changed:?}");
    let shown = engine.get(&vm("box")).await.unwrap();
    let spec = shown.spec.clone();
    assert_eq!((spec.vcpus.get(), spec.memory_mib.mib()), (3, 1024));
    assert_eq!(spec.disk_limits.ops.map(|ops| ops.get()), Some(100));
    assert_eq!(shown.disks.iter().map(|disk| disk.size).collect::<Vec<_>>(), [2 << 30, 3 << 30]);
    // Kept over the daemon's end, and by a start.
    drop(engine);
    let (engine, _) = open(&machine, Faults::default()).await;
    assert_eq!(engine.get(&vm("box")).await.unwrap().spec, spec);
    start(&engine, "box").await;
    assert_eq!(engine.get(&vm("box")).await.unwrap().spec, spec);
    delete(&engine, "box").await;
    assert_eq!(machine.leftovers(), Vec::<String>::new());
}

/// Returns why an operation was refused.
async fn refusal(operation: &OperationHandle, parts: &[&str]) {
    let error = ended(operation).await.error.expect("it is refused");
    assert_eq!(error.code, ErrorCode::InsufficientResources, "{error:?}");
    let said = format!("{} {}", error.message, error.hint.clone().unwrap_or_default());
    for part in parts.iter().chain(&["100.0G free", "storage.overcommit"]) {
        assert!(said.contains(part), "{part}: {said}");
    }
}

#[tokio::test]
async fn disks_that_the_host_cannot_hold_are_refused_by_every_verb() {
    let machine = Machine::new();
    let (engine, _) = open(&machine, Faults::default()).await;
    let mut large = request(Some("large"));
    large.spec.work_size = "900G".parse().unwrap();
    let created = engine.create(large.clone(), op()).unwrap();
    // 100 GiB less the floor and the root disk, in whole MiB.
    refusal(&created, &["work 900G", "901.0G", "--disk-size 101120M"]).await;
    gone(&engine, "large").await;
    assert_eq!(machine.leftovers(), Vec::<String>::new());
    create(&engine, "box").await;
    stop(&engine, "box").await;
    let before = engine.get(&vm("box")).await.unwrap();
    let work = SetVm { work_size: Some("200G".parse().unwrap()), ..SetVm::default() };
    let root = SetVm { root_size: Some("300G".parse().unwrap()), ..SetVm::default() };
    for (change, fits) in [(&work, "--disk-size 101120M"), (&root, "--root-size 101120M")] {
        let changed = engine.set(&vm("box"), change.clone(), op()).await.unwrap();
        refusal(&changed.operation, &[fits]).await;
        assert_eq!(engine.get(&vm("box")).await.unwrap(), before, "{change:?}");
    }
    // What else changes is not refused for it, and a start is.
    engine.set_overcommit(true);
    assert_eq!(set(&engine, work).await.error, None);
    engine.set_overcommit(false);
    let cpus = SetVm { vcpus: Some(2.try_into().unwrap()), ..SetVm::default() };
    assert_eq!(set(&engine, cpus).await.error, None);
    let started = engine.start(&vm("box"), op()).await.unwrap();
    refusal(&started.operation, &["work 200G"]).await;
    machine.script(|script| script.disk = 300 << 30);
    start(&engine, "box").await;
}

#[tokio::test]
async fn what_is_allowed_and_what_all_want_together_is_warned_of() {
    let machine = Machine::new();
    let (engine, _) = open(&machine, Faults::default()).await;
    assert_eq!(create(&engine, "box").await.notes.get(SPACE_NOTE), None);
    assert_eq!(engine.disk_headroom().unwrap(), Some((100 << 30) - (256 << 20)));
    stop(&engine, "box").await;
    let half = SetVm { work_size: Some("60G".parse().unwrap()), ..larger() };
    assert_eq!(set(&engine, half).await.error, None);
    assert_eq!(engine.get(&vm("box")).await.unwrap().notes.get(SPACE_NOTE), None);
    let mut other = request(Some("other"));
    other.spec.work_size = "50G".parse().unwrap();
    succeed(&engine.create(other, op()).unwrap()).await;
    let note = engine.get(&vm("other")).await.unwrap().notes[SPACE_NOTE].clone();
    for part in ["51.0G", "other VMs by 61.9G", "100.0G free"] {
        assert!(note.contains(part), "{part}: {note}");
    }
    delete(&engine, "other").await;
    start(&engine, "box").await;
    assert_eq!(engine.get(&vm("box")).await.unwrap().notes.get(SPACE_NOTE), None);
    delete(&engine, "box").await;
    engine.set_overcommit(true);
    assert_eq!(engine.disk_headroom().unwrap(), None);
    let mut large = request(Some("large"));
    large.spec.work_size = "900G".parse().unwrap();
    succeed(&engine.create(large, op()).unwrap()).await;
    let note = engine.get(&vm("large")).await.unwrap().notes[SPACE_NOTE].clone();
    assert!(note.contains("901.0G") && note.contains("100.0G free"), "{note}");
    // One that cannot be made is refused before anything of it is.
    let mut larger = request(Some("larger"));
    larger.spec.work_size = "1025G".parse().unwrap();
    let error = engine.create(larger, op()).unwrap_err().to_api();
    assert_eq!(error.code, ErrorCode::BadParams);
    assert!(error.message.contains("1T") && error.hint.is_some(), "{error:?}");
    engine.get(&vm("larger")).await.unwrap_err();
}

#[tokio::test]
async fn a_change_that_is_refused_or_fails_changes_nothing() {
    let machine = Machine::new();
    let (engine, _) = open(&machine, Faults::default()).await;
    create(&engine, "box").await;
    stop(&engine, "box").await;
    let before = engine.get(&vm("box")).await.unwrap();
    let shrink = SetVm { root_size: Some("512M".parse().unwrap()), ..larger() };
    let beyond = SetVm { memory_mib: Some("9G".parse().unwrap()), ..larger() };
    for (change, code) in [
        (SetVm::default(), ErrorCode::BadParams),
        (shrink, ErrorCode::BadParams),
        (beyond, ErrorCode::InsufficientResources),
    ] {
        let error = set(&engine, change.clone()).await.error.expect("it is refused");
        assert_eq!(error.code, code, "{change:?}: {error:?}");
        assert!(error.hint.is_some(), "{error:?}");
        assert_eq!(engine.get(&vm("box")).await.unwrap(), before, "{change:?}");
    }
    machine.script(|script| script.failing.push("grow root disk"));
    let error = set(&engine, larger()).await.error.expect("its disk cannot grow");
    assert_eq!(error.code, ErrorCode::NoSpace);
    assert_eq!(engine.get(&vm("box")).await.unwrap(), before);
    machine.script(|script| script.failing.clear());
    assert_eq!(set(&engine, larger()).await.state, OperationState::Succeeded);
}

#[tokio::test]
async fn a_change_behind_a_stop_that_failed_is_refused() {
    let machine = Machine::new();
    let (engine, _) = open(&machine, Faults::default()).await;
    create(&engine, "box").await;
    let before = engine.get(&vm("box")).await.unwrap().spec;
    machine.script(|script| {
        script.guest = Guest::Good;
        script.failing.push("kill");
    });
    let how = StopVm { force: true, ..StopVm::default() };
    let stop = engine.stop(&vm("box"), &how, op()).await.unwrap();
    let change = engine.set(&vm("box"), larger(), op()).await;
    assert_eq!(ended(&stop.operation).await.state, OperationState::Failed);
    // Admitted behind the stop, or come too late for that: refused either way.
    match change {
        Ok(change) => {
            let error = ended(&change.operation).await.error.expect("it runs");
            assert_eq!(error.code, ErrorCode::InUse);
        }
        Err(error) => assert_eq!(error.code(), ErrorCode::InUse),
    }
    assert_eq!(engine.get(&vm("box")).await.unwrap().spec, before);
    machine.script(|script| script.failing.clear());
}

/// Cut off between the disks and the record, the VM is whole, and the same change works.
#[tokio::test]
async fn a_change_that_is_cut_off_can_be_made_again() {
    let machine = Machine::new();
    let (engine, _) = open(&machine, Faults::default()).await;
    create(&engine, "box").await;
    stop(&engine, "box").await;
    drop(engine);
    let faults = Faults::at("create_root_disk.done=error");
    let (engine, _) = open(&machine, faults).await;
    assert_eq!(set(&engine, larger()).await.state, OperationState::Failed);
    let shown = engine.get(&vm("box")).await.unwrap();
    assert_eq!(shown.spec.vcpus.get(), 1);
    assert_eq!(shown.disks[0].size, 2 << 30, "the disks have grown");
    drop(engine);
    let (engine, _) = open(&machine, Faults::default()).await;
    let smaller = SetVm { root_size: Some("1G".parse().unwrap()), ..SetVm::default() };
    assert!(set(&engine, smaller).await.error.is_some(), "what it has is what counts");
    assert_eq!(set(&engine, larger()).await.state, OperationState::Succeeded);
    start(&engine, "box").await;
}
