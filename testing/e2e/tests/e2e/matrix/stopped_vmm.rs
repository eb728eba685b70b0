//! A VMM that says nothing when the daemon comes up: it is kept, shown, and taken up again. QEMU is
//! stopped by SIGSTOP, its guest is held.

use std::time::{Duration, Instant};

use banger_harness::Process;
use rustix::process::Signal;
use serde_json::Value;

use super::scene::{Scene, kill};

/// Less than a VMM that answers is given for its first word.
const AT_ONCE: Duration = Duration::from_secs(20);

fn of(list: &[Value], name: &str) -> Value {
    list.iter().find(|vm| vm["name"] == name).cloned().expect("the machine is there")
}

fn vmm(scene: &Scene, vm: &Value) -> Process {
    let is_it = |process: &Process| vm["runtime"]["pid"] == process.pid;
    scene.vmms().into_iter().find(is_it).expect("its VMM runs")
}

#[test]
fn a_stopped_vmm_outlives_the_daemon_and_answers_again() {
    let Some(scene) = Scene::new("qemu") else { return };
    scene.create("box").ok();
    scene.create("other").ok();
    let before = of(&scene.list(), "box");
    let stopped = vmm(&scene, &before);
    kill(scene.service("bangerd").as_ref());
    stopped.signal(Signal::STOP);

    let begun = Instant::now();
    let list = scene.list();
    assert!(begun.elapsed() < AT_ONCE, "the daemon came up after {:?}", begun.elapsed());
    let (held, other) = (of(&list, "box"), of(&list, "other"));
    assert_eq!((&held["state"], &held["runtime"]), (&before["state"], &before["runtime"]));
    assert!(held["last_error"].is_null(), "{held}");
    let why = held["notes"]["held"].as_str().expect("it is said");
    assert!(why.contains("does not answer"), "{why}");
    assert!(other["notes"]["held"].is_null(), "{other}");
    let table = scene.banger(&["vm", "list"]).ok().out();
    assert!(table.lines().any(|line| line.contains("box") && line.contains("held")), "{table}");
    let doctor = scene.banger(&["doctor"]).run().out();
    assert!(doctor.contains("did not answer when"), "{doctor}");
    // It holds up no other.
    scene.banger(&["vm", "exec", "other", "--", "true"]).ok();
    assert!(stopped.is_alive());

    // Whoever calls meanwhile waits for it.
    let waiting = scene.banger(&["vm", "exec", "box", "--", "true"]).spawn();
    stopped.signal(Signal::CONT);
    let _ = waiting.finish().code(0);
    let after = of(&scene.list(), "box");
    assert!(after["notes"]["held"].is_null(), "{after}");
    assert_eq!(after["runtime"], before["runtime"]);
    scene.banger(&["vm", "stop", "box"]).ok();
    let after = of(&scene.list(), "box");
    assert_eq!((after["state"].as_str(), &after["last_error"]), (Some("stopped"), &Value::Null));

    // One that never answers is ended when somebody says so.
    let other = vmm(&scene, &other);
    kill(scene.service("bangerd").as_ref());
    other.signal(Signal::STOP);
    scene.banger(&["vm", "stop", "--force", "other"]).ok();
    assert!(!other.is_alive());
    assert_eq!(of(&scene.list(), "other")["state"], "stopped");
    scene.banger(&["vm", "delete", "box", "other"]).ok();
    scene.finish();
}
