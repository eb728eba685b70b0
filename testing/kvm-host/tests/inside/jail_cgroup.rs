//! Jailed machines in cgroups of their own, below the machines' unit: Firecracker's "cgroup v2 with a
//! custom parent", and with one that is not there yet.

use std::fs;
use std::os::unix::fs::chown;
use std::path::Path;
use std::time::Duration;

use banger_gates::{Owner, Policy, request};
use banger_host::{Host, HostError};
use banger_privileged_tests::vmm::{Scene, launch_params, wait_until_gone};
use banger_privileged_tests::{Directories, OWNER};
use serde_json::json;

use crate::Inside;

const UNIT: &str = "/sys/fs/cgroup/system.slice/banger-vms.service";

fn read(path: impl AsRef<Path>) -> String {
    fs::read_to_string(path).expect("a file of the kernel's").trim().to_owned()
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
    let kernel = others.state.join("kernel");
    fs::copy(scene.fixture.state.join("kernel"), &kernel).expect("a kernel");
    for path in [&others.state, &others.runtime, &kernel] {
        chown(path, Some(OWNER + 1), Some(OWNER + 1)).expect("another owner's");
    }
    let owner = Owner::new(OWNER + 1, OWNER + 1).expect("an owner");
    let policy = Policy { owner, ..others.policy() };
    let other = Host::open(policy.clone(), &others.own).expect("a host");
    let mut params = launch_params(&others, "one");
    params["jailer"]["uid"] = (OWNER + 1).into();
    params["jailer"]["gid"] = (OWNER + 1).into();
    params["limits"] = json!({ "memory_max_mib": 128, "pids_max": 1 });
    let params = serde_json::from_value(params).expect("parameters");
    let grant = request::launch_firecracker(params, &policy).expect("a grant");
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
