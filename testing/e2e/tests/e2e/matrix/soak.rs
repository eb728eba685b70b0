//! Many machines, one after the other: neither service grows, nothing is left.
//!
//! `cargo xtask soak --cycles N` sets `BANGER_SOAK_CYCLES`.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};

use banger_harness::Process;

use super::number;
use super::scene::Scene;

/// In `make test`.
const FEW: u64 = 20;
/// Until then the daemon fills what it keeps for clients and makes once for all.
const WARM_UP: u64 = 60;
/// Machines at a time.
const AT_ONCE: u64 = 4;
/// What may be more after a span of cycles, of hundred.
const GROWTH: u64 = 5;
/// How many spans there may be until one has no more.
const SPANS: u32 = 3;

/// What a service takes.
#[derive(Clone, Copy, Debug)]
struct Use {
    memory: u64,
    files: u64,
}

impl Use {
    fn of(process: &Process) -> Self {
        let files = std::fs::read_dir(PathBuf::from(format!("/proc/{}/fd", process.pid)));
        Self {
            memory: process.resident().expect("it runs"),
            files: files.expect("its files").count().try_into().expect("a number"),
        }
    }
}

/// Has `cycles` machines made, used and deleted, some at a time.
fn turn(scene: &Scene, cycles: u64) {
    let left = AtomicU64::new(cycles);
    let environment = &scene.environment;
    let work = || {
        while left
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1))
            .is_ok()
        {
            let name = format!("box-{}", uuid());
            scene.create(&name).ok();
            scene.banger(&["vm", "exec", &name, "--", "true"]).ok();
            scene.banger(&["vm", "delete", &name]).ok();
        }
    };
    // Threads of this thread have its mounts and its network.
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..AT_ONCE).map(|_| scope.spawn(work)).collect();
        for thread in threads {
            thread.join().expect("a cycle that works");
        }
    });
    assert!(environment.daemon().is_some());
}

/// A word that no other cycle has.
fn uuid() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

#[expect(clippy::print_stdout, reason = "the measured numbers")]
fn soak(vmm: &'static str) {
    let Some(scene) = Scene::new(vmm) else { return };
    let cycles = number("BANGER_SOAK_CYCLES").unwrap_or(FEW);
    turn(&scene, WARM_UP);
    let services = || {
        ["bangerd", "bangerd-root"].map(|name| {
            let process = scene.service(name).unwrap_or_else(|| panic!("{name} runs"));
            (name, process.pid, Use::of(&process))
        })
    };
    // What leaks grows in every span; what is taken once for all, an allocator's next page, does not.
    let mut grown = Vec::new();
    for _ in 0..SPANS {
        let before = services();
        turn(&scene, cycles);
        let after = services();
        scene.assert_clean("after all cycles");
        grown.clear();
        for ((name, pid, before), (_, now, after)) in before.into_iter().zip(after) {
            println!("{vmm}: {name}: {before:?} became {after:?} in {cycles} cycles");
            assert_eq!(pid, now, "{name} is the same process");
            for (what, before, after) in
                [("memory", before.memory, after.memory), ("files", before.files, after.files)]
            {
                if after > before + before * GROWTH / 100 {
                    grown.push(format!("{name}: {what} grew from {before} to {after}"));
                }
            }
        }
        if grown.is_empty() {
            break;
        }
    }
    assert!(grown.is_empty(), "in each of {SPANS} spans, at last: {grown:?}");
    scene.finish();
}

#[test]
fn twenty_machines_leave_nothing_and_let_nothing_grow() {
    soak("qemu");
}

#[test]
fn twenty_jailed_machines_leave_nothing_and_let_nothing_grow() {
    soak("firecracker");
}

#[test]
fn a_machine_that_runs_takes_little_of_the_daemon() {
    const MACHINES: u64 = 8;
    const MOST: u64 = 1 << 20;
    let Some(scene) = Scene::new("qemu") else { return };
    turn(&scene, WARM_UP);
    let memory = || Use::of(&scene.service("bangerd").expect("it runs")).memory;
    let before = memory();
    let names: Vec<String> = (0..MACHINES).map(|number| format!("one-{number}")).collect();
    for name in &names {
        scene.create(name).ok();
    }
    let grown = memory().saturating_sub(before);
    for name in &names {
        scene.banger(&["vm", "delete", name]).ok();
    }
    assert!(grown <= MOST * MACHINES, "{MACHINES} machines take {grown} bytes of bangerd");
    scene.finish();
}
