//! A pid that is given to others while its process is signalled.

use std::os::unix::process::ExitStatusExt;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use banger_gates::Signal;
use banger_privileged_tests::OWNER;
use banger_privileged_tests::race::{SPAWNING, rounds};
use banger_privileged_tests::vmm::{Idle, scene};

use crate::processes::{program, start_with_pid};

/// One pid is a Firecracker's and then another program's, in turn, while the helper is asked to kill
/// it without pause: the other program is never ended by it.
#[test]
fn a_pid_that_changes_hands_is_killed_in_the_right_ones_only() {
    let Some(scene) = scene() else { return };
    let (firecracker, other) = (program(&scene, "firecracker"), program(&scene, "another"));
    let socket = scene.fixture.runtime.join("x.sock");
    let words = ["-a", socket.to_str().unwrap()];
    let first = Idle::start(&firecracker, &words, OWNER);
    let number = first.pid();
    drop(first);
    let pid = scene.pid(number);
    let is_over = AtomicBool::new(false);
    let (killed, refused) = (AtomicUsize::new(0), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while !is_over.load(Ordering::Relaxed) {
                    let asked = [
                        scene.host().kill_process(&pid),
                        scene.host().signal_process(&(pid, Signal::Kill)),
                    ];
                    let done = asked.iter().filter(|outcome| outcome.is_ok()).count();
                    killed.fetch_add(done, Ordering::Relaxed);
                    refused.fetch_add(asked.len() - done, Ordering::Relaxed);
                }
            });
        }
        let run = std::panic::AssertUnwindSafe(|| {
            for round in 0..rounds(SPAWNING) {
                let mut allowed = start_with_pid(number, &firecracker, &words);
                // Only the helper ends it.
                assert_eq!(allowed.0.wait().unwrap().signal(), Some(9));
                let mut process = start_with_pid(number, &other, &[]);
                let pause = u64::try_from(round % 10).unwrap() * 100;
                std::thread::sleep(std::time::Duration::from_micros(pause));
                let raw = rustix::process::Pid::from_raw(number).unwrap();
                rustix::process::kill_process(raw, rustix::process::Signal::INT).unwrap();
                let status = process.0.wait().unwrap();
                assert_eq!(status.signal(), Some(2), "round {round}: the helper ended another");
            }
        });
        let done = std::panic::catch_unwind(run);
        is_over.store(true, Ordering::Relaxed);
        done.unwrap();
    });
    let (killed, refused) = (killed.into_inner(), refused.into_inner());
    assert!(killed > 0 && refused > 0, "{killed} killed, {refused} refused");
    scene.assert_clean();
}
