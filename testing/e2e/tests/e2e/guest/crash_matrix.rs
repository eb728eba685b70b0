//! A failure in, and the daemon's death at, every step of every action.
//!
//! `BANGER_TEST_FAULT_BANGERD` names a `bangerd` built with the feature
//! `banger-daemon/fault-hooks`; `cargo xtask test` builds one. What counts after each
//! strike: the next daemon has every VM whole or not at all, nothing of the others is left, and
//! what was on a VM's disk still is.

use std::path::PathBuf;

use banger_engine::Action;
use banger_harness::{Contents, Environment, skip};

fn armed_daemon() -> Option<PathBuf> {
    let path = std::env::var_os("BANGER_TEST_FAULT_BANGERD").map(PathBuf::from);
    if path.is_none() {
        skip("fault hooks", "BANGER_TEST_FAULT_BANGERD names no bangerd built with them");
    }
    path
}

fn faults(action: Action) -> impl Iterator<Item = String> {
    action.steps().into_iter().flat_map(|step| {
        ["", ".done"].into_iter().flat_map(move |moment| {
            ["error", "kill"].map(|kind| format!("{}{moment}={kind}", step.name()))
        })
    })
}

/// Runs a command against a daemon that fails where `fault` says, and ends that daemon.
fn strike(environment: &Environment, bangerd: &PathBuf, fault: &str, arguments: &[&str]) {
    environment.stop_daemon();
    let hook = environment.state().join("fault");
    std::fs::write(&hook, fault).unwrap();
    std::fs::set_permissions(&hook, std::os::unix::fs::PermissionsExt::from_mode(0o644)).unwrap();
    let struck = environment.banger(arguments).env("BANGER_BANGERD", bangerd).run();
    std::fs::remove_file(&hook).unwrap();
    // A step that cannot fail any more may be struck to no effect, a death never is.
    if fault.ends_with("kill") {
        assert_ne!(struck.exit_code(), Some(0), "{fault}: {}", struck.err());
    }
    if struck.exit_code() != Some(0) {
        struck.is_a_clear_error();
    }
    if environment.daemon().is_some() {
        environment.stop_daemon();
    }
}

fn entries(folder: PathBuf) -> usize {
    std::fs::read_dir(folder).map_or(0, Iterator::count)
}

/// Checks that what the next daemon knows is what there is; returns how many VMs it knows.
#[track_caller]
fn consistent(environment: &Environment, fault: &str) -> usize {
    let known = environment.banger(["vm", "list", "--json"]).ok().json();
    let known = known.as_array().unwrap();
    let running = known.iter().filter(|vm| vm["state"] == "running").count();
    let processes = environment.processes();
    let vmms = processes.iter().filter(|process| process.program().starts_with("qemu")).count();
    assert_eq!(vmms, running, "{fault}: {processes:?} for {known:?}");
    assert_eq!(entries(environment.state().join("vms")), known.len(), "{fault}: {known:?}");
    assert_eq!(entries(environment.runtime().join("vms")), running, "{fault}: {known:?}");
    known.len()
}

fn delete(environment: &Environment, fault: &str) {
    if consistent(environment, fault) > 0 {
        environment.banger(["vm", "delete", "box"]).ok();
    }
    assert_eq!(consistent(environment, fault), 0, "{fault}");
}

#[test]
fn a_start_that_fails_or_is_cut_off_leaves_all_or_nothing() {
    let Some(bangerd) = armed_daemon() else { return };
    let environment = Environment::new(Contents::Busybox);
    for fault in faults(Action::Create) {
        let create = ["vm", "run", "--image", "busybox", "--name", "box", "-d"];
        strike(&environment, &bangerd, &fault, &create);
        if consistent(&environment, &fault) > 0 {
            // It is whole, then.
            environment.exec("box", ["true"]).ok();
        }
        delete(&environment, &fault);
    }
    environment.finish();
}

#[test]
fn a_restarted_vm_keeps_its_data_whatever_fails() {
    let Some(bangerd) = armed_daemon() else { return };
    let environment = Environment::new(Contents::Busybox);
    environment.start_busybox("box");
    environment.exec("box", ["sh", "-c", "cat > /root/f; sync"]).input("kept").ok();
    environment.banger(["vm", "stop", "box"]).ok();
    for fault in faults(Action::Start) {
        strike(&environment, &bangerd, &fault, &["vm", "start", "box"]);
        assert_eq!(consistent(&environment, &fault), 1, "{fault}");
        if environment.show("box")["state"] == "running" {
            environment.banger(["vm", "stop", "box"]).ok();
        }
    }
    environment.banger(["vm", "start", "box"]).ok();
    assert_eq!(environment.exec("box", ["cat", "/root/f"]).ok().out(), "kept");
    environment.finish();
}

#[test]
fn a_stop_that_fails_or_is_cut_off_loses_nothing() {
    let Some(bangerd) = armed_daemon() else { return };
    let environment = Environment::new(Contents::Busybox);
    environment.start_busybox("box");
    for fault in faults(Action::Stop) {
        let write = environment.exec("box", ["sh", "-c", "cat > /root/f; sync"]);
        write.input(fault.as_str()).ok();
        strike(&environment, &bangerd, &fault, &["vm", "stop", "box"]);
        assert_eq!(consistent(&environment, &fault), 1, "{fault}");
        if environment.show("box")["state"] != "running" {
            environment.banger(["vm", "start", "box"]).ok();
        }
        assert_eq!(environment.exec("box", ["cat", "/root/f"]).ok().out(), fault);
    }
    environment.finish();
}

#[test]
fn a_deletion_that_fails_or_is_cut_off_can_be_finished() {
    let Some(bangerd) = armed_daemon() else { return };
    let environment = Environment::new(Contents::Busybox);
    for fault in faults(Action::Delete) {
        environment.start_busybox("box");
        strike(&environment, &bangerd, &fault, &["vm", "delete", "box"]);
        delete(&environment, &fault);
    }
    environment.finish();
}
