//! Disks after a clean stop, and a full disk under a start and under a running machine.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use banger_harness::{Contents, Environment, flatten_qcow2, is_root, skip, wait_for};

use crate::full_disk::SmallDisk;

const PATIENCE: Duration = Duration::from_secs(60);

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

/// Returns what `df` says of a place in the guest, in MiB.
fn space(environment: &Environment, vm: &str, place: &str) -> u64 {
    let out = environment.exec(vm, ["df", "-m", place]).ok().out();
    let size = out.lines().last().and_then(|line| line.split_whitespace().nth(1));
    size.and_then(|size| size.parse().ok()).unwrap_or_else(|| panic!("{out}"))
}

/// A file system has its bookkeeping on its disk, too.
fn fills(space: u64, disk: u64) {
    assert!((disk * 93 / 100..=disk).contains(&space), "{space} of {disk} MiB");
}

/// Boots three times: as made, larger, and larger on a disk that an earlier boot has grown.
#[test]
fn file_systems_have_the_size_of_their_disks() {
    let environment = Environment::new(Contents::Busybox);
    let words = ["vm", "run", "-d", "--image", "busybox", "--name", "box", "--root-size", "12G"];
    environment.banger([&words[..], &["--disk-size", "1G"]].concat()).ok();
    fills(space(&environment, "box", "/"), 12 << 10);
    fills(space(&environment, "box", "/root"), 1 << 10);
    let script = "echo kept > /root/kept; dd if=/dev/zero bs=1M count=5 | tr '\\0' x > /kept";
    environment.exec("box", ["sh", "-c", script]).ok();
    let change = ["vm", "set", "box", "--root-size", "13G", "--disk-size", "2G"];
    let change = [&change[..], &["--vcpu", "1", "--memory", "300M", "--disk-ops", "2000"]].concat();
    let refused = environment.banger(change.clone()).run().code(1).is_a_clear_error();
    refused.says(&["runs", "banger vm stop box"]);
    environment.banger(["vm", "stop", "box"]).ok();
    disks_are_clean(&environment, "box");
    for (option, size, words) in [
        ("--root-size", "11G", ["12G", "only grow"]),
        ("--disk-size", "512M", ["1G", "only grow"]),
        ("--memory", "1T", ["1T", "this host has"]),
    ] {
        let refused = environment.banger(["vm", "set", "box", option, size]).run();
        refused.code(1).is_a_clear_error().says(&words);
    }
    environment.banger(change).ok();
    environment.banger(["vm", "start", "box"]).ok();
    fills(space(&environment, "box", "/"), 13 << 10);
    fills(space(&environment, "box", "/root"), 2 << 10);
    let shown = environment.banger(["vm", "show", "box"]).ok().out();
    assert!(shown.contains("2000 operations/s"), "{shown}");
    let stats = environment.banger(["vm", "stats", "box", "--json"]).ok().json();
    let pid = environment.vmm("box").pid;
    assert_eq!(stats[0]["host"]["pid"].as_u64(), Some(u64::from(pid)), "{stats}");
    let size = stats[0]["guest"]["root_total_bytes"].as_u64().unwrap_or(0);
    fills(size >> 20, 13 << 10);
    let machine = environment.exec("box", ["sh", "-c", "nproc; free -m"]).ok().out();
    assert!(machine.starts_with("1\n"), "{machine}");
    let check = "[ $(cat /root/kept) = kept ]; [ $(stat -c %s /kept) = 5242880 ]; \
                 ! tr -d x < /kept | grep -q .; dmesg | grep EXT4-fs; cat /proc/mounts";
    let said = environment.exec("box", ["sh", "-ec", check]).ok().out();
    assert!(!said.contains("noinit_itable") && !said.contains("error"), "{said}");
    environment.banger(["vm", "stop", "box"]).ok();
    disks_are_clean(&environment, "box");
    // What the host could not hold once it is full is refused, with the numbers, unless that is allowed.
    let grow = ["vm", "set", "box", "--root-size", "15T"];
    let refused = environment.banger(grow).run().code(1).is_a_clear_error();
    refused.says(&["root 15T", "by 15.0T", "free below", "--root-size", "storage.overcommit true"]);
    environment.banger(["config", "set", "storage.overcommit", "true"]).ok();
    let warning = environment.banger(grow).ok().err();
    assert!(warning.contains("may still grow by 15.0T") && warning.contains("free"), "{warning}");
    environment.banger(["config", "set", "storage.overcommit", "false"]).ok();
    let refused = environment.banger(["vm", "start", "box"]).run().code(1).is_a_clear_error();
    refused.says(&["root 15T", "storage.overcommit true"]);
    let words = ["vm", "create", "--image", "busybox", "--name", "other", "--disk-size", "1T"];
    let refused = environment.banger(words).run().code(1).is_a_clear_error();
    refused.says(&["work 1T", "--disk-size", "is the largest beside a root disk of 8G"]);
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

/// Takes everything that is left, down to the last block; returns the file that does.
fn fill(environment: &Environment) -> PathBuf {
    let filler = environment.state().join("filler");
    let mut file = std::fs::File::create(&filler).unwrap();
    let block = vec![1; 1 << 16];
    while std::io::Write::write_all(&mut file, &block).is_ok() {}
    filler
}

#[test]
fn a_start_on_a_full_disk_says_so_and_leaves_nothing() {
    if !is_root() {
        return skip("root", "mounts a tmpfs");
    }
    let environment = Environment::new(Contents::Busybox);
    let disk = SmallDisk::under(&environment.state(), 600);
    environment.banger(["vm", "list"]).ok();
    let filler = fill(&environment);
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

#[test]
fn a_machine_on_a_full_disk_is_held_and_goes_on_when_there_is_room() {
    if !is_root() {
        return skip("root", "mounts a tmpfs");
    }
    let environment = Environment::new(Contents::Busybox);
    let disk = SmallDisk::under(&environment.state(), 400);
    // So its disks have their usual size, far more than there is.
    environment.banger(["config", "set", "storage.overcommit", "true"]).ok();
    environment.start_busybox("box");
    let filler = fill(&environment);
    // In the background: it must outlive the daemon that its command came through.
    let script = "(dd if=/dev/zero bs=1M count=48 | tr '\\0' x > /root/big; sync; \
                  touch /root/written) > /dev/null 2>&1 < /dev/null &";
    environment.exec("box", ["sh", "-c", script]).ok();
    let held = || environment.show("box")["notes"]["held"].as_str().map(str::to_owned);
    let why = wait_for("the machine to be held", PATIENCE, held);
    assert!(why.contains("disk") || why.contains("space"), "{why}");
    let shown = environment.banger(["vm", "show", "box"]).ok().out();
    assert!(shown.contains(&why), "{shown}");
    // A new daemon takes it over as it is.
    environment.stop_daemon();
    wait_for("the next daemon to know it", PATIENCE, held);
    std::fs::remove_file(&filler).unwrap();
    wait_for("it to go on", PATIENCE, || held().is_none().then_some(()));
    let check = "while [ ! -e /root/written ]; do sleep 0.1; done; \
                 [ $(stat -c %s /root/big) = 50331648 ]; ! tr -d x < /root/big | grep -q .";
    environment.exec("box", ["sh", "-ec", check]).ok();
    environment.banger(["vm", "delete", "box"]).ok();
    environment.stop_daemon();
    drop(disk);
    environment.finish();
}
