//! Disks after a clean stop, and a full disk under a start.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use banger_harness::{Contents, Environment, flatten_qcow2};

/// Runs `e2fsck -fn`, which must find a clean file system with nothing to do.
fn must_be_clean(environment: &Environment, disk: &Path) {
    let checked = environment.host("e2fsck", &["-fn", disk.to_str().unwrap()]);
    assert!(!checked.err().contains("recover"), "{checked}");
    let state = environment.host("dumpe2fs", &["-h", disk.to_str().unwrap()]).out();
    assert!(state.contains("Filesystem state:         clean"), "{state}");
    assert!(!state.contains("needs_recovery"), "{} has a journal to replay", disk.display());
}

/// Checks every disk of a stopped VM.
pub(super) fn disks_are_clean(environment: &Environment, vm: &str) {
    let disks = environment.show(vm)["disks"].as_array().unwrap().clone();
    assert_eq!(disks.len(), 2, "{disks:?}");
    for disk in disks {
        let path = Path::new(disk["path"].as_str().unwrap()).to_owned();
        if disk["kind"] == "qcow2-overlay" {
            let flat = environment.home().join("flat.ext4");
            flatten_qcow2(&path, &flat);
            must_be_clean(environment, &flat);
            std::fs::remove_file(&flat).unwrap();
        } else {
            must_be_clean(environment, &path);
        }
    }
}

#[test]
fn a_clean_stop_leaves_clean_disks() {
    let environment = Environment::new(Contents::Busybox);
    environment.start_busybox("box");
    let script =
        "for i in $(seq 300); do echo $i > /root/$i; echo $i > /etc/$i; done; sleep 1000 & exit 0";
    environment.exec("box", ["sh", "-c", script]).ok();
    // A command that ignores its end does not spoil the stop.
    let mut deaf = environment
        .exec("box", ["sh", "-c", "trap '' TERM HUP INT; echo ready; while :; do sleep 1; done"])
        .spawn();
    deaf.wait_for_output("ready");
    environment.banger(["vm", "stop", "box"]).ok();
    let _ = deaf.finish();
    disks_are_clean(&environment, "box");
    environment.finish();
}

#[test]
fn the_image_is_never_changed() {
    let environment = Environment::new(Contents::Busybox);
    let image = environment.state().join("images/busybox/rootfs.ext4");
    // Blocks and times, because reading the holes of a large file takes long.
    let state = || {
        let found = image.metadata().unwrap();
        (found.mtime(), found.mtime_nsec(), found.blocks(), found.mode())
    };
    let before = state();
    environment.start_busybox("one");
    environment.exec("one", ["sh", "-c", "echo changed > /etc/passwd; rm /bin/awk; sync"]).ok();
    environment.banger(["vm", "stop", "one"]).ok();
    assert_eq!(state(), before);
    environment.start_busybox("two");
    environment.exec("two", ["grep", "-q", "^alice:", "/etc/passwd"]).ok();
    environment.finish();
}
