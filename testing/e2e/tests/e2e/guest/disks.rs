//! Disks after a clean stop, and a full disk under a start.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use banger_harness::{Contents, Environment, flatten_qcow2, is_root, skip};

use crate::full_disk::SmallDisk;

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

#[test]
fn a_start_on_a_full_disk_says_so_and_leaves_nothing() {
    if !is_root() {
        return skip("root", "mounts a tmpfs");
    }
    let environment = Environment::new(Contents::Busybox);
    let disk = SmallDisk::under(&environment.state(), 400);
    environment.banger(["vm", "list"]).ok();
    // Everything that is left, down to the last block.
    let filler = environment.state().join("filler");
    let mut file = std::fs::File::create(&filler).unwrap();
    let block = vec![1; 1 << 16];
    while std::io::Write::write_all(&mut file, &block).is_ok() {}
    drop(file);
    let run =
        environment.banger(["vm", "run", "--image", "busybox", "--name", "box", "--", "true"]);
    run.run().code(125).is_a_clear_error().says(&["space"]);
    assert_eq!(environment.vms(), [""; 0]);
    let left = std::fs::read_dir(environment.state().join("vms")).into_iter().flatten().count();
    assert_eq!(left, 0, "nothing is left of the machine");
    std::fs::remove_file(&filler).unwrap();
    environment.start_busybox("box");
    environment.exec("box", ["true"]).ok();
    environment.banger(["vm", "delete", "box"]).ok();
    environment.stop_daemon();
    drop(disk);
    environment.finish();
}
