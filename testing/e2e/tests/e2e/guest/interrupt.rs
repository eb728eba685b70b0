//! Ctrl-C at any point of `vm run`.

use std::time::Duration;

use banger_harness::{Contents, Environment, GUEST_DEADLINE, wait_for};
use rustix::process::Signal;

/// Interrupts a run after a time and expects that nothing is left of the VM.
fn interrupt_after(environment: &Environment, delay: Duration) {
    let run = environment
        .banger(["vm", "run", "--image", "busybox", "--name", "box", "--", "sleep", "1000"])
        .spawn();
    std::thread::sleep(delay);
    run.signal(Signal::INT);
    let finished = run.finish();
    assert_eq!(finished.exit_code(), Some(130), "interrupted after {delay:?}: {finished}");
}

#[test]
fn before_the_guest_is_up_everything_is_undone() {
    let environment = Environment::new(Contents::Busybox);
    environment.banger(["vm", "list"]).ok();
    for delay in [20, 100, 250, 500, 900] {
        interrupt_after(&environment, Duration::from_millis(delay));
        let vms = environment.vms();
        if vms.is_empty() {
            assert!(
                !environment
                    .processes()
                    .iter()
                    .any(|process| process.program().starts_with("qemu"))
            );
        } else {
            // The guest was up: the signal went to the command and the VM stays.
            environment.banger(["vm", "delete", "box"]).ok();
        }
    }
    environment.finish();
}

#[test]
fn afterwards_the_signal_goes_to_the_command() {
    let environment = Environment::new(Contents::Busybox);
    environment.start_busybox("box");
    for (signal, name, number) in
        [(Signal::INT, "INT", 2), (Signal::TERM, "TERM", 15), (Signal::QUIT, "QUIT", 3)]
    {
        let script = format!(
            "trap 'echo got {name}; exit 40' {name}; echo ready; while :; do sleep 0.1; done"
        );
        let mut trapped = environment.exec("box", ["sh", "-c", &script]).open_input().spawn();
        trapped.wait_for_output("ready");
        trapped.signal(signal);
        trapped.wait_for_output(&format!("got {name}"));
        let _ = trapped.finish().code(40);

        let mut plain = environment
            .exec("box", ["sh", "-c", "echo ready; exec sleep 1000"])
            .open_input()
            .spawn();
        plain.wait_for_output("ready");
        plain.signal(signal);
        let _ = plain.finish().code(128 + number);
    }
    assert_eq!(environment.show("box")["state"], "running");
    environment.finish();
}

#[test]
fn a_second_signal_ends_a_client_whose_command_ignores_the_first() {
    let environment = Environment::new(Contents::Busybox);
    environment.start_busybox("box");
    let script = "trap '' INT; echo ready; while :; do sleep 0.1; done";
    let mut deaf = environment.exec("box", ["sh", "-c", script]).open_input().spawn();
    deaf.wait_for_output("ready");
    deaf.signal(Signal::INT);
    std::thread::sleep(Duration::from_millis(300));
    deaf.signal(Signal::INT);
    let _ = deaf.finish().code(130);
    wait_for("the end of the command", GUEST_DEADLINE, || {
        let found = environment.exec("box", ["sh", "-c", "ps | grep -c '[t]rap'"]).run().out();
        (found.trim() == "0").then_some(())
    });
    environment.finish();
}
