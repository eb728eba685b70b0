//! Jailed machines in cgroups of their own, below the machines' unit: Firecracker's "cgroup v2 with a
//! custom parent", and with one that is not there yet.

use std::fs;
use std::os::unix::fs::chown;
use std::path::Path;
use std::time::Duration;

use banger_gates::request::{self, Launch};
use banger_gates::{JailRoot, Owner, Policy};
use banger_host::{Host, HostError};
use banger_privileged_tests::vmm::{Scene, launch_params, wait_until_gone};
use banger_privileged_tests::{Directories, OWNER};
use serde_json::{Value, json};

use crate::Inside;

const UNIT: &str = "/sys/fs/cgroup/system.slice/banger-vms.service";

fn read(path: impl AsRef<Path>) -> String {
    fs::read_to_string(path).expect("a file of the kernel's").trim().to_owned()
}

/// A helper of another owner, and what it launches a machine `one` by.
fn another_owner(scene: &Scene, directories: &Directories, limits: Value) -> (Host, Launch) {
    let kernel = directories.state.join("kernel");
    fs::copy(scene.fixture.state.join("kernel"), &kernel).expect("a kernel");
    for path in [&directories.state, &directories.runtime, &kernel] {
        chown(path, Some(OWNER + 1), Some(OWNER + 1)).expect("another owner's");
    }
    let owner = Owner::new(OWNER + 1, OWNER + 1).expect("an owner");
    let policy = Policy { owner, ..directories.policy() };
    let host = Host::open(policy.clone(), &directories.own).expect("a host");
    let mut params = launch_params(directories, "one");
    params["jailer"]["uid"] = (OWNER + 1).into();
    params["jailer"]["gid"] = (OWNER + 1).into();
    params["limits"] = limits;
    let params = serde_json::from_value(params).expect("parameters");
    let grant = request::launch_firecracker(params, &policy).expect("a grant");
    (host, grant)
}

/// That one of two who do the same at the same moment had its way, the other not because of the
/// cgroup; which of them.
fn winner(results: [Result<u32, HostError>; 2]) -> usize {
    let [one, other] = &results;
    let (at, refused) = match (one, other) {
        (Ok(_), Err(error)) => (0, error),
        (Err(error), Ok(_)) => (1, error),
        both => panic!("not one of two: {both:?}"),
    };
    let is_cgroup = matches!(refused, HostError::Refused(it) if it.reason.contains("cgroup"));
    assert!(is_cgroup, "{refused:?}");
    at
}

#[test]
fn of_two_helpers_that_launch_one_id_at_once_one_has_the_cgroup() {
    let Some(inside) = Inside::get() else { return };
    let had_unit = Path::new(UNIT).exists();
    let scene = Scene::with(&inside.data);
    let others = Directories::new();
    let (other, others_grant) = another_owner(&scene, &others, json!({}));
    let jail = others.jails.join("firecracker/one/root");
    let jail = jail.to_str().expect("a path that is text");
    let others_jail = JailRoot::parse("root", jail, other.policy()).expect("a jail");
    let grant = scene.grant(scene.params("one"));
    let clean = |whose: usize| match whose {
        0 => scene.clean_up("one"),
        _ => other.cleanup_jailer_chroot(&others_jail),
    };
    for round in 0..4 {
        let begins = std::sync::Barrier::new(2);
        let launch = |host: &Host, grant: &Launch| {
            begins.wait();
            host.launch_firecracker(grant)
        };
        let results = std::thread::scope(|scope| {
            let theirs = scope.spawn(|| launch(&other, &others_grant));
            let own = launch(scene.host(), &grant);
            [own, theirs.join().expect("an answer")]
        });
        let pids = [&results[0], &results[1]].map(|result| result.as_ref().ok().copied());
        let winner = winner(results);
        let pid = i32::try_from(pids[winner].expect("a pid")).expect("a pid");
        // Who lost takes nothing of it away, whatever it cleans up.
        let cgroup = Path::new(UNIT).join("one");
        clean(1 - winner).expect("nothing to clean up");
        assert_eq!(read(cgroup.join("cgroup.procs")), pid.to_string(), "round {round}");
        [scene.host(), &other][winner].kill_process(&scene.pid(pid)).expect("its own");
        wait_until_gone(pid);
        clean(winner).expect("a clean jail");
        assert!(!cgroup.exists());
    }
    // An empty one that another has just claimed is not removed by who has a jail of that id.
    let cgroup = Path::new(UNIT).join("one");
    fs::create_dir_all(&cgroup).expect("a cgroup");
    let flags = rustix::fs::XattrFlags::CREATE;
    let whose = others.jails.as_os_str().as_encoded_bytes();
    rustix::fs::setxattr(&cgroup, "trusted.banger", whose, flags).expect("a claim");
    clean(0).expect("nothing to clean up");
    assert!(cgroup.exists());
    clean(1).expect("nothing but its cgroup");
    assert!(!cgroup.exists());
    if !had_unit {
        let removed = || fs::remove_dir(UNIT).ok();
        banger_harness::wait_for("an empty unit", Duration::from_secs(10), removed);
    }
}

#[test]
fn limits_are_kept_below_the_unit_and_prove_whose_process_it_is() {
    let Some(inside) = Inside::get() else { return };
    let had_unit = Path::new(UNIT).exists();
    let scene = Scene::with(&inside.data);
    for round in 0..2 {
        let mut params = scene.params("one");
        params["limits"] = json!({ "memory_max_mib": 192, "cpu_percent": 50, "pids_max": 64 });
        let pid = scene.launch(params).expect("a machine");
        scene.wait_for_words("one", "hello from the jail");
        let cgroup = Path::new(UNIT).join("one");
        assert_eq!(read(cgroup.join("memory.max")), (192 << 20).to_string(), "round {round}");
        assert_eq!(read(cgroup.join("cpu.max")), "50000 100000");
        assert_eq!(read(cgroup.join("pids.max")), "64");
        assert_eq!(read(cgroup.join("cgroup.procs")), pid.to_string());
        let path = read(format!("/proc/{pid}/cgroup"));
        assert_eq!(path, "0::/system.slice/banger-vms.service/one");
        // Without its record and its jail's name, the cgroup still proves it.
        fs::remove_file(scene.fixture.own.join("records/launch.one.json")).expect("a record");
        scene.next_helper().kill_process(&scene.pid(pid)).expect("a Firecracker of the owner's");
        wait_until_gone(pid);
        scene.clean_up("one").expect("a clean jail");
        assert!(!cgroup.exists());
        fs::remove_file(scene.fixture.runtime.join("fc-one.sock")).expect("a link");
        scene.assert_clean();
    }
    // Another owner's machine of the same id would have its cgroup, and set its limits.
    let pid = scene.launch(scene.params("one")).expect("a machine");
    let others = Directories::new();
    let limits = json!({ "memory_max_mib": 128, "pids_max": 1 });
    let (other, grant) = another_owner(&scene, &others, limits);
    let error = other.launch_firecracker(&grant).expect_err("its cgroup is another's");
    assert!(matches!(&error, HostError::Refused(it) if it.parameter == "vm_id"), "{error:?}");
    assert_eq!(read(Path::new(UNIT).join("one/memory.max")), "max");
    scene.end("one", pid);
    // A machine without limits has a cgroup of its own, too: the unit has no process itself.
    let pid = scene.launch(scene.params("two")).expect("a machine");
    assert_eq!(read(Path::new(UNIT).join("two/memory.max")), "max");
    assert_eq!(read(Path::new(UNIT).join("cgroup.procs")), "");
    scene.end("two", pid);
    scene.assert_clean();
    if !had_unit {
        let removed = || fs::remove_dir(UNIT).ok();
        banger_harness::wait_for("an empty unit", Duration::from_secs(10), removed);
    }
}
