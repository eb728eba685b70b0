//! An owner that works against its helper: it moves what lies in its directories, and asks for more
//! than there may be.

use std::fs;
use std::os::unix::fs::{MetadataExt, chown};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use banger_host::HostError;
use banger_privileged_sys::as_file_user;
use banger_privileged_tests::OWNER;
use banger_privileged_tests::vmm::{Scene, children, scene, set_mode};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

/// The most machines of an owner, as docs/privileges.md has it.
const MACHINES: usize = 256;

#[test]
fn an_owner_has_so_many_machines_and_no_more() {
    let Some(scene) = scene() else { return };
    let folder = scene.jail("x").parent().unwrap().to_owned();
    fs::create_dir(&folder).unwrap();
    set_mode(&folder, 0o750);
    for number in 0..MACHINES - 1 {
        fs::create_dir(folder.join(format!("left-{number}"))).unwrap();
    }
    let pid = scene.launch(scene.params("one")).unwrap();
    let before = scene.everything();
    for host in [scene.host(), &scene.next_helper()] {
        match host.launch_firecracker(&scene.grant(scene.params("two"))) {
            Err(HostError::Refused(refusal)) => {
                assert_eq!(refusal.parameter, "vm_id");
                assert!(refusal.reason.contains("256 machines of 256"), "{refusal}");
            }
            other => panic!("not refused: {other:?}"),
        }
    }
    // The owner cannot take one away from where they are counted.
    let from = folder.join("left-0");
    let moves = || fs::rename(&from, scene.fixture.state.join("left"));
    as_file_user(OWNER, OWNER, moves).unwrap_err();
    assert_eq!(scene.everything(), before);
    fs::remove_dir(from).unwrap();
    let other = scene.launch(scene.params("two")).unwrap();
    for (id, pid) in [("one", pid), ("two", other)] {
        scene.end(id, pid);
    }
}

#[test]
fn nothing_of_roots_can_be_moved_from_a_jail_or_the_runtime_directory() {
    let Some(scene) = scene() else { return };
    let pid = scene.launch(scene.params("one")).unwrap();
    let root = scene.jail("one").join("root");
    let away = scene.fixture.state.join("away");
    for name in ["firecracker", "firecracker.pid", "vmlinux", "run", "dev"] {
        let moves = || fs::rename(root.join(name), &away);
        as_file_user(OWNER, OWNER, moves).unwrap_err();
        assert!(root.join(name).exists(), "{name}");
    }
    // What it can move is its own.
    let link = scene.fixture.runtime.join("fc-one.sock");
    as_file_user(OWNER, OWNER, || fs::rename(&link, &away)).unwrap();
    let metadata = away.symlink_metadata().unwrap();
    assert_eq!((metadata.uid(), metadata.gid()), (OWNER, OWNER));
    assert!(metadata.is_symlink());
    fs::remove_file(away).unwrap();
    scene.end("one", pid);
    scene.assert_clean();
}

/// By the root of the process the owner is in the jail from the first moment of its Firecracker on.
#[test]
fn what_is_moved_in_a_jail_that_just_starts_ends_the_launch() {
    let Some(scene) = scene() else { return };
    let (ends, moved) = (AtomicBool::new(false), AtomicUsize::new(0));
    let mover = || {
        as_file_user(OWNER, OWNER, || {
            while !ends.load(Ordering::Relaxed) {
                for pid in children() {
                    let root = Path::new("/proc").join(pid.to_string()).join("root");
                    if fs::rename(root.join("firecracker"), root.join("run/moved")).is_ok() {
                        moved.fetch_add(1, Ordering::Relaxed);
                    }
                }
            }
        });
    };
    std::thread::scope(|scope| {
        scope.spawn(mover);
        for round in 0..20 {
            let copy = scene.jail("one").join("root/firecracker");
            match scene.launch(scene.params("one")) {
                Ok(pid) => {
                    assert_eq!(copy.metadata().unwrap().uid(), 0, "round {round}");
                    scene.end("one", pid);
                }
                Err(error) => assert!(!scene.jail("one").exists(), "{error:?}"),
            }
        }
        ends.store(true, Ordering::Relaxed);
    });
    println!("moved {} times in 20 launches", moved.into_inner());
    scene.assert_clean();
}

#[test]
fn a_jail_never_has_a_node_of_userfaultfd() {
    let Some(scene) = scene() else { return };
    if !fs::read_to_string("/proc/misc").unwrap().contains(" userfaultfd\n") {
        return banger_harness::skip("userfaultfd", "the jailer makes no node of it here");
    }
    let ends = AtomicBool::new(false);
    let node = scene.jail("one").join("root/dev/userfaultfd");
    let urandom = node.with_file_name("urandom");
    let (seen, there) = std::thread::scope(|scope| {
        let watcher = scope.spawn(|| {
            let (mut seen, mut there) = (false, false);
            while !ends.load(Ordering::Relaxed) {
                seen |= urandom.exists();
                there |= node.exists();
            }
            (seen, there)
        });
        for _ in 0..5 {
            let pid = scene.launch(scene.params("one")).unwrap();
            scene.end("one", pid);
        }
        ends.store(true, Ordering::Relaxed);
        watcher.join().unwrap()
    });
    assert!(seen && !there, "the jailer's nodes were seen: {seen}, this one: {there}");
    // Nobody else's view of it has changed.
    assert!(fs::read_to_string("/proc/misc").unwrap().contains(" userfaultfd\n"));
}

/// The owner's: a directory with a folder on which root has mounted something.
fn roots_mount(scene: &Scene) -> std::path::PathBuf {
    let folder = scene.fixture.state.join("folder");
    fs::create_dir_all(folder.join("mounted")).unwrap();
    for path in [&folder, &folder.join("mounted")] {
        chown(path, Some(OWNER), Some(OWNER)).unwrap();
    }
    mount("tmpfs", folder.join("mounted"), "tmpfs", MountFlags::empty(), c"size=1m,mode=755")
        .unwrap();
    fs::write(folder.join("mounted/precious"), b"keep").unwrap();
    folder
}

#[test]
fn what_root_has_mounted_stays_so_when_it_is_moved_into_a_jail() {
    let Some(scene) = scene() else { return };
    let folder = roots_mount(&scene);
    let pid = scene.launch(scene.params("one")).unwrap();
    let place = scene.jail("one").join("root/run/folder");
    as_file_user(OWNER, OWNER, || fs::rename(&folder, &place)).unwrap();
    let precious = place.join("mounted/precious");
    assert_eq!(fs::read(&precious).unwrap(), b"keep");
    scene.host().kill_process(&scene.pid(pid)).unwrap();
    banger_privileged_tests::vmm::wait_until_gone(pid);
    for host in [scene.host(), &scene.next_helper()] {
        let error = host.cleanup_jailer_chroot(&scene.jail_root("one")).unwrap_err();
        assert!(banger_host::chain(&error).contains("mounted"), "{error:?}");
        assert_eq!(fs::read(&precious).unwrap(), b"keep");
    }
    unmount(place.join("mounted"), UnmountFlags::empty()).unwrap();
    scene.clean_up("one").unwrap();
    scene.assert_clean();
}
