//! Six pairs of a step and a process that is killed there, on real guests of the installed banger:
//! Firecracker, jailed, on a dm-snapshot, with a tap. `testing/e2e` has all of them with guests that
//! do not run.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use banger_engine::{Action, Step};
use banger_harness::Inventory;
use serde_json::Value;

use crate::Inside;
use crate::installation::{Installed, OWNER, STATE, banger_as, both_answer, wait_until};
use crate::machines::{Ready, banger};
use crate::tool::run;

const BOX: &str = "box";
const DAEMON: &str = "bangerd.service";
const HELPER: &str = "bangerd-root.service";

/// What is killed.
enum Victim {
    Services(&'static [&'static str]),
    Vmm,
}

fn list() -> Vec<Value> {
    serde_json::from_str(&banger(&["vm", "list", "--json"])).expect("a list")
}

fn begin(action: Action) -> Child {
    let create = ["vm", "run", "-d", "--vmm", "firecracker", "--image", "busybox", "--name", BOX];
    let words = match action {
        Action::Create => &create[..],
        Action::Start => &["vm", "start", BOX],
        Action::Stop => &["vm", "stop", BOX],
        Action::Delete => &["vm", "delete", BOX],
    };
    let mut command = Command::new("/usr/sbin/runuser");
    command.args(["-u", OWNER, "--", "/usr/local/bin/banger"]).args(words);
    command.stdin(Stdio::null()).spawn().expect("banger starts")
}

/// Kills a process while `bangerd` is in a step of an action, and waits until things have come to
/// rest; returns the machines that there are.
fn strike(action: Action, step: Step, victim: &Victim) -> Vec<Value> {
    let (hook, struck) = (Path::new(STATE).join("fault"), Path::new(STATE).join("fault.struck"));
    fs::write(&hook, format!("{}=hold", step.name())).expect("a hook");
    fs::set_permissions(&hook, fs::Permissions::from_mode(0o644)).expect("a mode");
    let mut client = begin(action);
    wait_until("the step", || struck.exists());
    match victim {
        Victim::Services(units) => {
            let words = ["kill", "--signal=KILL", "--kill-whom=main"];
            run("systemctl", [&words[..], units].concat());
        }
        Victim::Vmm => {
            let pid = list()[0]["runtime"]["pid"].to_string();
            run("kill", ["-KILL", &pid]);
        }
    }
    fs::remove_file(&hook).expect("the hook");
    fs::remove_file(&struck).expect("its mark");
    client.wait().expect("its end");
    wait_until("both services answer", both_answer);
    let moves =
        |vm: &Value| ["creating", "starting", "stopping"].iter().any(|state| vm["state"] == *state);
    wait_until("rest", || {
        let said = banger_as(OWNER, &["vm", "list", "--json"]);
        let list: Vec<Value> = serde_json::from_slice(&said.stdout).unwrap_or_default();
        said.status.success() && !list.iter().any(moves)
    });
    list()
}

fn assert_nothing_beyond(before: &Inventory, what: &str) {
    let left = || Inventory::of_installation().beyond(before);
    let end = std::time::Instant::now() + std::time::Duration::from_secs(20);
    while !left().is_empty() {
        assert!(std::time::Instant::now() < end, "{what}: left behind: {:#?}", left());
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
}

fn read() -> String {
    banger(&["vm", "exec", BOX, "--", "cat", "/root/f", "/etc/g"])
}

#[test]
fn six_deaths_in_the_middle_leave_nothing_and_lose_nothing() {
    let Some(inside) = Inside::get() else { return };
    let ready = Ready::of(&inside, Installed::with_faults(&inside));
    assert!(begin(Action::Create).wait().expect("its end").success());
    let shown = list().remove(0);
    let id = shown["id"].as_str().expect("an id").to_owned();
    let kind = |list: &[Value]| list[0]["disks"][0]["kind"].clone();
    assert_eq!((&kind(&list()), &shown["network"]), (&"dm-snapshot".into(), &"tap".into()));
    banger(&["vm", "exec", BOX, "--", "sh", "-c", "echo kept > /root/f; echo too > /etc/g; sync"]);
    banger(&["vm", "stop", BOX]);
    let resting = Inventory::of_installation();

    // The VMM, while its guest boots.
    let found = strike(Action::Start, Step::WaitForAgent, &Victim::Vmm);
    assert_eq!(found[0]["state"], "failed", "{found:?}");
    assert_nothing_beyond(&resting, "the VMM's death while the guest boots");
    banger(&["vm", "start", BOX]);
    assert_eq!(read(), "kept\ntoo\n");

    // Both services, before the guest is asked to end.
    let found = strike(Action::Stop, Step::StopGuest, &Victim::Services(&[DAEMON, HELPER]));
    assert_eq!(found.len(), 1, "{found:?}");
    if found[0]["state"] != "running" {
        banger(&["vm", "start", BOX]);
    }
    assert_eq!(read(), "kept\ntoo\n");

    // The helper, when the guest has ended and its snapshot has not: whoever asked may have been told
    // so, and asking again ends it.
    let found = strike(Action::Stop, Step::DetachRootDisk, &Victim::Services(&[HELPER]));
    assert_eq!(found[0]["state"], "stopped", "{found:?}");
    banger(&["vm", "stop", BOX]);
    assert_nothing_beyond(&resting, "the helper's death while a machine is stopped");
    assert_eq!(list()[0]["last_error"], Value::Null);

    // The daemon, before it removes the disks.
    if !strike(Action::Delete, Step::RemoveDisks, &Victim::Services(&[DAEMON])).is_empty() {
        banger(&["vm", "delete", BOX]);
    }
    assert_nothing_beyond(&resting, "the daemon's death while it removes disks");
    let before = Inventory::of_installation();
    assert!(!before.mentions(&id[..8]), "{before:?}");

    // The helper, before it makes a snapshot; the daemon, before it asks for a launch.
    let pairs: [(Step, &[&str]); 2] =
        [(Step::AttachRootDisk, &[HELPER]), (Step::LaunchVmm, &[DAEMON])];
    for (step, victim) in pairs {
        if !strike(Action::Create, step, &Victim::Services(victim)).is_empty() {
            banger(&["vm", "delete", BOX]);
        }
        assert_nothing_beyond(&before, step.name());
    }
    drop(ready);
}
