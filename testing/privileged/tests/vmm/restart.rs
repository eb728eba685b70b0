//! Machines of an earlier helper.

use std::fs;

use banger_gates::request::Running;

use banger_privileged_tests::vmm::{children, scene, wait_until_gone};

#[test]
fn another_helper_knows_the_machine_by_its_record() {
    let Some(scene) = scene() else { return };
    let pid = scene.launch(scene.params("one")).unwrap();
    let next = scene.next_helper();
    let at = scene.runtime_path("fc-one.sock");
    assert_eq!(next.find_firecracker_pid(&at).unwrap(), pid.unsigned_abs());
    let asked = Running { pid: scene.pid(pid), api_socket: at.clone() };
    assert!(next.process_running(&asked).unwrap());
    // The owner took the link away: the record still knows it.
    fs::remove_file(scene.fixture.runtime.join("fc-one.sock")).unwrap();
    assert!(next.process_running(&asked).unwrap());
    let error = next.cleanup_jailer_chroot(&scene.jail_root("one")).unwrap_err();
    assert!(error.to_string().contains("its Firecracker runs"), "{error}");
    next.signal_process(&(scene.pid(pid), banger_gates::Signal::Usr2)).ok();
    next.kill_process(&scene.pid(pid)).unwrap();
    wait_until_gone(pid);
    assert!(!next.process_running(&asked).unwrap());
    next.cleanup_jailer_chroot(&scene.jail_root("one")).unwrap();
    scene.assert_clean();
}

#[test]
fn a_machine_whose_record_is_lost_is_known_by_what_it_executes() {
    let Some(scene) = scene() else { return };
    let pid = scene.launch(scene.params("one")).unwrap();
    let other = scene.launch(scene.params("other")).unwrap();
    for entry in fs::read_dir(scene.fixture.own.join("records")).unwrap() {
        fs::remove_file(entry.unwrap().path()).unwrap();
    }
    let next = scene.next_helper();
    let at = scene.runtime_path("fc-one.sock");
    assert_eq!(next.find_firecracker_pid(&at).unwrap(), pid.unsigned_abs());
    let error = next.cleanup_jailer_chroot(&scene.jail_root("one")).unwrap_err();
    assert!(error.to_string().contains("its Firecracker runs"), "{error}");
    next.kill_process(&scene.pid(pid)).unwrap();
    wait_until_gone(pid);
    next.find_firecracker_pid(&at).unwrap_err();
    next.cleanup_jailer_chroot(&scene.jail_root("one")).unwrap();
    assert_eq!(children(), [other]);
    next.kill_process(&scene.pid(other)).unwrap();
    wait_until_gone(other);
    next.cleanup_jailer_chroot(&scene.jail_root("other")).unwrap();
    for id in ["one", "other"] {
        // Only the record knew the links.
        fs::remove_file(scene.fixture.runtime.join(format!("fc-{id}.sock"))).unwrap();
    }
    scene.assert_clean();
}

/// A helper that was killed while it made a jail: the record has the links and no process.
#[test]
fn a_launch_that_was_cut_off_can_be_cleaned_up() {
    let Some(scene) = scene() else { return };
    let pid = scene.launch(scene.params("one")).unwrap();
    scene.host().kill_process(&scene.pid(pid)).unwrap();
    wait_until_gone(pid);
    let record = scene.fixture.own.join("records/launch.one.json");
    let mut value: serde_json::Value = serde_json::from_slice(&fs::read(&record).unwrap()).unwrap();
    value["process"] = serde_json::Value::Null;
    fs::write(&record, value.to_string()).unwrap();
    let next = scene.next_helper();
    next.cleanup_jailer_chroot(&scene.jail_root("one")).unwrap();
    scene.assert_clean();
}
