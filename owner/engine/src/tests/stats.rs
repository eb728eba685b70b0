//! What a VM uses, and disks that fill up or break.

use std::collections::HashMap;

use super::*;
use banger_daemon_api::error::ErrorCode;
use banger_daemon_api::vm::DISK_NOTE;

#[tokio::test]
async fn a_vm_is_measured_running_or_not() {
    let machine = Machine::new();
    let (engine, _) = open(&machine, Faults::default()).await;
    create(&engine, "box").await;
    let stats = engine.stats(&vm("box")).await.unwrap();
    let host = stats.host.expect("it runs");
    assert_eq!((host.cpu_time_ms, host.cpu_milli, host.vcpus), (7000, 0, 1));
    assert_eq!(host.memory_limit_bytes, 512 << 20);
    // The scripted agent knows only who it is: that is said, and no failure.
    assert!(stats.guest.is_none() && stats.guest_problem.is_some(), "{:?}", stats.guest_problem);
    assert_eq!(stats.disks.len(), 2);
    stop(&engine, "box").await;
    let stats = engine.stats(&vm("box")).await.unwrap();
    assert_eq!((stats.state, stats.host, stats.guest_problem), (VmState::Stopped, None, None));
    assert_eq!(stats.disks.len(), 2);
    let missing = engine.stats(&vm("nothing")).await.unwrap_err();
    assert_eq!(missing.code(), ErrorCode::NotFound);
}

#[tokio::test]
async fn a_disk_that_fills_up_is_said_in_time_and_once() {
    let machine = Machine::new();
    let (engine, _) = open(&machine, Faults::default()).await;
    create(&engine, "box").await;
    let mut said = HashMap::new();
    let mut look = async |percent| {
        machine.script(|script| script.fill_percent = Some(percent));
        let note = engine.get(&vm("box")).await.unwrap().notes.get(DISK_NOTE).cloned();
        (engine.look_at_disks(&mut said).await.len(), note.is_some())
    };
    for (percent, expected) in [
        (0, (0, false)),
        (79, (0, false)),
        (80, (1, true)),
        (80, (0, true)),
        (84, (0, true)),
        (85, (1, true)),
        (100, (1, true)),
        (100, (0, true)),
    ] {
        assert_eq!(look(percent).await, expected, "{percent} %");
    }
    machine.script(|script| script.failing.push("check root disk"));
    assert_eq!(look(100).await, (1, true), "broken is another matter");
    assert_eq!(look(100).await, (0, true));
    let shown = engine.get(&vm("box")).await.unwrap();
    assert!(shown.notes[DISK_NOTE].contains("overflowed"), "{:?}", shown.notes);
    assert!(shown.disks[0].broken.is_some() && shown.disks[1].broken.is_none());
}

#[tokio::test]
async fn a_broken_disk_is_not_started_and_what_is_whole_is_said() {
    let machine = Machine::new();
    let (engine, _) = open(&machine, Faults::default()).await;
    create(&engine, "box").await;
    stop(&engine, "box").await;
    machine.script(|script| script.failing.push("check root disk"));
    let started = engine.start(&vm("box"), op()).await.unwrap();
    let error = ended(&started.operation).await.error.expect("it is refused");
    assert_eq!(error.code, ErrorCode::Corrupt);
    assert!(error.message.contains("overflowed") && error.message.contains("work.ext4"));
    assert!(error.hint.unwrap().contains("banger vm delete box"));
    assert!(machine.alive().is_empty());
    delete(&engine, "box").await;
    assert_eq!(machine.leftovers(), Vec::<String>::new());
}
