//! The crash matrix: for each step of a creation, a start, a stop and a deletion, a fault there. All
//! is real but the guests, whose CPUs stay held (QEMU) or have nothing to do (Firecracker).
//!
//! `make test` takes each step once, by a seed that is printed (`BANGER_CRASH_SEED`). With
//! `BANGER_CRASH_ROUNDS=N` all cells are taken N times (`cargo xtask crash-matrix`), and each
//! outcome is added to the file `BANGER_CRASH_REPORT`.

mod cell;
mod helper_end;
mod lost_disk;
mod pool;
mod scene;
mod soak;
mod stopped_vmm;

use std::fs::OpenOptions;
use std::io::Write;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::time::Instant;

use cell::Cell;
use scene::{Outcome, Scene};

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

fn report(vmm: &str, cell: Cell, outcome: &str, began: Instant) {
    let Some(path) = std::env::var_os("BANGER_CRASH_REPORT") else { return };
    let line = serde_json::json!({
        "vmm": vmm,
        "action": cell.action.name(),
        "step": cell.step.name(),
        "fault": cell.fault.name(),
        "outcome": outcome,
        "seconds": began.elapsed().as_secs_f64(),
    });
    let mut file = OpenOptions::new().append(true).create(true).open(path).unwrap();
    // In one piece: both VMMs' matrices write at a time.
    file.write_all(format!("{line}\n").as_bytes()).unwrap();
}

#[expect(clippy::print_stdout, reason = "whoever repeats a failure needs it")]
fn play(vmm: &'static str) {
    let Some(mut scene) = Scene::new(vmm) else { return };
    let cells = match number("BANGER_CRASH_ROUNDS") {
        Some(rounds) => (0..rounds).flat_map(|_| Cell::all()).collect(),
        None => {
            let seed = number("BANGER_CRASH_SEED").unwrap_or_else(|| u64::from(std::process::id()));
            println!("BANGER_CRASH_SEED={seed}");
            Cell::sample(seed)
        }
    };
    let mut failures = Vec::new();
    for cell in cells {
        let began = Instant::now();
        match catch_unwind(AssertUnwindSafe(|| scene.play(cell))) {
            Ok(Outcome::Recovered) => report(vmm, cell, "recovered", began),
            Ok(Outcome::NothingThere) => report(vmm, cell, "nothing there", began),
            Err(panic) => {
                report(vmm, cell, "FAILED", began);
                let words = panic.downcast_ref::<String>().cloned().unwrap_or_default();
                println!("{cell}: {words}");
                failures.push(cell.to_string());
                if std::env::var_os("BANGER_CRASH_REPORT").is_none() {
                    resume_unwind(panic);
                }
                // The next cell begins on a clean host.
                let _ = catch_unwind(AssertUnwindSafe(|| drop(scene)));
                let Some(next) = Scene::new(vmm) else { return };
                scene = next;
            }
        }
    }
    assert!(failures.is_empty(), "{failures:#?}");
    scene.finish();
}

#[test]
fn qemu_leaves_nothing_whatever_fails_where() {
    play("qemu");
}

#[test]
fn firecracker_leaves_nothing_whatever_fails_where() {
    play("firecracker");
}
