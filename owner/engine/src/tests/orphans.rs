//! What belongs to no VM, beside what looks like it and stays.

use std::os::unix::fs::symlink;
use std::path::PathBuf;

use banger_daemon_api::orphan::{Orphan, OrphanKind};

use super::*;
use crate::DamagedVm;

/// A daemon that comes up with one VM known, and another whose row, mirror and handles are lost.
async fn with_a_lost_vm(machine: &Arc<Machine>) -> (Engine, Vm, Vm) {
    let (engine, _) = open(machine, Faults::default()).await;
    let (kept, lost) = (create(&engine, "kept").await, create(&engine, "lost").await);
    engine.shutdown().await;
    drop(engine);
    drop(lock(machine).await);
    for suffix in ["", "-wal", "-shm"] {
        let _ = std::fs::remove_file(machine.state_dir().join(format!("banger.db{suffix}")));
    }
    for file in ["vm.json", "handles.json"] {
        std::fs::write(folder(machine, &lost).join(file), "{").unwrap();
    }
    let (engine, report) = open(machine, Faults::default()).await;
    assert_eq!(report.adopted.len(), 1, "{report:?}");
    (engine, kept, lost)
}

fn folder(machine: &Machine, vm: &Vm) -> PathBuf {
    machine.state_dir().join("vms").join(vm.id.as_str())
}

fn kinds(orphans: &[Orphan]) -> Vec<OrphanKind> {
    orphans.iter().map(|orphan| orphan.kind).collect()
}

#[tokio::test]
async fn orphans_are_removed_and_nothing_else() {
    let machine = Machine::new();
    let (engine, kept, lost) = with_a_lost_vm(&machine).await;
    let vms = machine.state_dir().join("vms");
    let sockets = machine.dir.path().join("run/vms");
    // Names that are not ours, and ours for something else.
    let foreign = [vms.join("notes"), vms.join(&lost.id.as_str()[..31]), sockets.join("backup")];
    for path in &foreign {
        std::fs::create_dir(path).unwrap();
    }
    std::fs::write(vms.join("00112233445566778899aabbccddeeff"), "a file").unwrap();
    let target = machine.dir.path().join("elsewhere");
    std::fs::create_dir(&target).unwrap();
    std::fs::write(target.join("data"), "kept").unwrap();
    let link = vms.join("ffeeddccbbaa99887766554433221100");
    symlink(&target, &link).unwrap();
    symlink(&target, folder(&machine, &lost).join("link")).unwrap();

    let wanted = [OrphanKind::Vmm, OrphanKind::Sockets, OrphanKind::Folder];
    assert_eq!(kinds(&engine.orphans(&[]).await.unwrap()), wanted);
    assert_eq!(machine.alive().len(), 2, "looking changes nothing");
    let outcome = engine.remove_orphans(&[]).await.unwrap();
    assert_eq!(kinds(&outcome.removed), wanted, "{outcome:?}");
    assert_eq!(outcome.kept, []);
    assert_eq!(engine.orphans(&[]).await.unwrap(), []);

    assert_eq!(machine.alive(), [kept.runtime.unwrap().pid]);
    assert!(!folder(&machine, &lost).exists());
    assert!(foreign.iter().all(|path| path.is_dir()));
    assert!(link.is_symlink() && target.join("data").exists());
    assert_eq!(engine.list().await.len(), 1);
    stop(&engine, "kept").await;
    start(&engine, "kept").await;
}

#[tokio::test]
async fn what_cannot_be_removed_keeps_what_it_may_use() {
    let machine = Machine::new();
    let (engine, _, lost) = with_a_lost_vm(&machine).await;
    let sockets = engine.orphans(&[]).await.unwrap().remove(1);
    // Its directory becomes one that nobody can empty: a file that is in the way of the removal.
    std::fs::remove_dir_all(&sockets.name).unwrap();
    let told = Orphan {
        kind: OrphanKind::Firewall,
        name: "tap-fc-x".to_owned(),
        vm: lost.id.as_str()[..4].to_owned(),
    };
    // Four digits may be anybody's.
    assert!(!engine.orphans(&[told]).await.unwrap().iter().any(|it| it.name == "tap-fc-x"));
    machine.script(|script| script.failing.push("end"));
    let outcome = engine.remove_orphans(&[]).await.unwrap();
    let kept: Vec<OrphanKind> = outcome.kept.iter().map(|kept| kept.orphan.kind).collect();
    assert_eq!(kept, [OrphanKind::Vmm, OrphanKind::Folder], "{outcome:?}");
    assert!(outcome.kept[1].reason.contains("may use it"), "{outcome:?}");
    assert!(folder(&machine, &lost).exists());
}

#[tokio::test]
async fn a_vm_that_only_the_database_has_lost_is_no_orphan() {
    let machine = Machine::new();
    let (engine, _) = open(&machine, Faults::default()).await;
    let lost = create(&engine, "lost").await;
    engine.shutdown().await;
    drop(engine);
    let other = Machine::new();
    drop(open(&other, Faults::default()).await);
    drop((lock(&machine).await, lock(&other).await));
    // An older database, from a backup.
    for suffix in ["", "-wal", "-shm"] {
        let name = format!("banger.db{suffix}");
        let _ = std::fs::remove_file(machine.state_dir().join(&name));
        let _ = std::fs::copy(other.state_dir().join(&name), machine.state_dir().join(&name));
    }
    let (engine, _) = open(&machine, Faults::default()).await;
    assert_eq!(engine.list().await.len(), 0);
    assert_eq!(engine.remove_orphans(&[]).await.unwrap().removed, []);
    assert_eq!(engine.unlisted().await, [folder(&machine, &lost).display().to_string()]);
    assert_eq!(machine.alive().len(), 1);
}

#[tokio::test]
async fn a_record_without_disks_is_removed_and_one_with_a_disk_is_not() {
    let machine = Machine::new();
    let (engine, _) = open(&machine, Faults::default()).await;
    create(&engine, "kept").await;
    let (lost, no_root, no_work) = (
        create(&engine, "lost").await,
        create(&engine, "no-root").await,
        create(&engine, "no-work").await,
    );
    let path = |vm: &Vm, number: usize| PathBuf::from(&vm.disks[number].path);
    let gone = [path(&lost, 0), path(&lost, 1), path(&no_root, 0), path(&no_work, 1)];
    let aside = machine.dir.path().join("aside");
    for disk in &gone {
        std::fs::rename(disk, &aside).unwrap();
    }
    assert_eq!(engine.orphans(&[]).await.unwrap(), [], "they run");
    assert_eq!(engine.damaged(), []);
    for name in ["kept", "lost", "no-root", "no-work"] {
        stop(&engine, name).await;
    }
    let damaged = |vm: &Vm, gone, left| DamagedVm {
        name: vm.name.clone(),
        gone: vec![path(vm, gone)],
        left: vec![path(vm, left)],
    };
    let known = [damaged(&no_root, 0, 1), damaged(&no_work, 1, 0)];
    assert_eq!(engine.damaged(), known);
    let found = engine.orphans(&[]).await.unwrap();
    assert_eq!(kinds(&found), [OrphanKind::Row]);
    assert_eq!(found[0].name, "lost");
    assert_eq!(engine.remove_orphans(&[]).await.unwrap().removed, found);
    let left: Vec<_> = engine.list().await.into_iter().map(|vm| vm.name.to_string()).collect();
    assert_eq!(left, ["kept", "no-root", "no-work"]);
    assert_eq!(engine.damaged(), known);
    assert!(path(&no_root, 1).exists() && path(&no_work, 0).exists());
    start(&engine, "kept").await;
    // Back in its place it serves as before, and a deletion takes the rest.
    std::fs::rename(&aside, path(&no_work, 1)).unwrap();
    start(&engine, "no-work").await;
    delete(&engine, "no-root").await;
    assert_eq!(engine.damaged(), []);
}
