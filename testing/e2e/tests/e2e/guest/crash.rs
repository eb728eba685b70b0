//! `kill -9` of the client, of the daemon and of the VMM.

use std::time::Duration;

use banger_harness::{Contents, Environment, GUEST_DEADLINE, wait_for};
use rustix::process::Signal;

const MINUTE: Duration = Duration::from_secs(60);

fn boot_id(environment: &Environment) -> String {
    environment.exec("box", ["cat", "/proc/sys/kernel/random/boot_id"]).ok().out()
}

#[test]
fn a_stopped_daemon_leaves_vms_running_and_adopts_them() {
    let environment = Environment::new(Contents::Busybox);
    environment.start_busybox("box");
    let (vmm, boot) = (environment.vmm("box"), boot_id(&environment));
    environment.exec("box", ["tee", "/tmp/f"]).input("kept").ok();
    for _ in 0..3 {
        environment.stop_daemon();
        assert!(vmm.is_alive(), "a VM outlives its daemon");
        assert_eq!(environment.vmm("box").pid, vmm.pid);
        assert_eq!(boot_id(&environment), boot);
        assert_eq!(environment.exec("box", ["cat", "/tmp/f"]).ok().out(), "kept");
    }
    environment.finish();
}

#[test]
fn a_killed_daemon_adopts_its_vms_again() {
    let environment = Environment::new(Contents::Busybox);
    environment.start_busybox("box");
    let (vmm, boot) = (environment.vmm("box"), boot_id(&environment));
    // A command is in the middle of its output when the daemon dies.
    let mut noisy = environment.exec("box", ["sh", "-c", "while :; do echo line; done"]).spawn();
    noisy.wait_for_output("line\nline");
    let daemon = environment.daemon().unwrap();
    daemon.signal(Signal::KILL);
    let ended = noisy.finish();
    assert_eq!(ended.exit_code(), Some(125), "{}", ended.err());
    wait_for("the daemon's death", MINUTE, || (!daemon.is_alive()).then_some(()));
    assert_eq!(environment.vmm("box").pid, vmm.pid);
    assert_eq!(boot_id(&environment), boot);
    // Nothing of the old session reaches a new command.
    for _ in 0..5 {
        assert_eq!(environment.exec("box", ["echo", "clean"]).ok().out(), "clean\n");
    }
    environment.finish();
}

#[test]
fn a_killed_vmm_is_noticed_and_its_vm_starts_again() {
    let environment = Environment::new(Contents::Busybox);
    environment.start_busybox("box");
    environment.exec("box", ["sh", "-c", "cat > /root/f; sync"]).input("kept").ok();
    let vmm = environment.vmm("box");
    let running = environment.exec("box", ["sleep", "1000"]).spawn();
    std::thread::sleep(Duration::from_millis(500));
    vmm.signal(Signal::KILL);
    let _ = running.finish().code(125).is_a_clear_error().says(&["box ended"]);
    wait_for("the failed state", MINUTE, || {
        (environment.show("box")["state"] == "failed").then_some(())
    });
    assert!(environment.show("box")["last_error"]["message"].is_string());
    environment.banger(["vm", "start", "box"]).ok();
    assert_eq!(environment.exec("box", ["cat", "/root/f"]).ok().out(), "kept");
    environment.finish();
}

#[test]
fn daemon_and_vmm_killed_together_are_sorted_out() {
    let environment = Environment::new(Contents::Busybox);
    environment.start_busybox("box");
    let (vmm, daemon) = (environment.vmm("box"), environment.daemon().unwrap());
    daemon.signal(Signal::KILL);
    vmm.signal(Signal::KILL);
    wait_for("both deaths", MINUTE, || (!daemon.is_alive() && !vmm.is_alive()).then_some(()));
    let found = environment.show("box");
    assert_eq!(found["state"], "stopped", "{found}");
    let why = found["last_error"]["message"].as_str().expect("it is said");
    assert!(why.contains("ended while no daemon ran"), "{why}");
    environment.banger(["vm", "start", "box"]).ok();
    environment.exec("box", ["true"]).ok();
    environment.finish();
}

#[test]
fn a_killed_client_leaves_the_vm_and_ends_its_command() {
    let environment = Environment::new(Contents::Busybox);
    environment.start_busybox("box");
    let mut client = environment.exec("box", ["sh", "-c", "echo ready; sleep 4321"]).spawn();
    client.wait_for_output("ready");
    client.signal(Signal::KILL);
    let _ = client.finish().signal(9);
    wait_for("the end of the command", GUEST_DEADLINE, || {
        let found =
            environment.exec("box", ["sh", "-c", "ps | grep -c '[s]leep 4321'"]).run().out();
        (found.trim() == "0").then_some(())
    });
    assert_eq!(environment.show("box")["state"], "running");
    environment.finish();
}

#[test]
fn a_daemon_killed_while_a_vm_starts_leaves_nothing() {
    let environment = Environment::new(Contents::Busybox);
    environment.banger(["vm", "list"]).ok();
    let run = environment
        .banger(["vm", "run", "--image", "busybox", "--name", "box", "--", "true"])
        .spawn();
    wait_for("the VMM", GUEST_DEADLINE, || {
        environment
            .processes()
            .iter()
            .any(|process| process.program().starts_with("qemu"))
            .then_some(())
    });
    let daemon = environment.daemon().unwrap();
    daemon.signal(Signal::KILL);
    let _ = run.finish().code(125);
    wait_for("the daemon's death", MINUTE, || (!daemon.is_alive()).then_some(()));
    // The next daemon either undoes the half-made VM or has it whole.
    environment.banger(["vm", "list"]).ok();
    let running = environment
        .processes()
        .iter()
        .filter(|process| process.program().starts_with("qemu"))
        .count();
    let known = environment.banger(["ps", "--json"]).ok().json();
    assert_eq!(known.as_array().unwrap().len(), running);
    environment.finish();
}
