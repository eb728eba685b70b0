//! Races: one thread acts through the helper while another swaps what it acts on.
//!
//! `cargo xtask races` runs all rounds, `make test` a tenth of them.

use std::sync::atomic::{AtomicBool, Ordering};

/// The rounds where nothing is spawned.
pub const PLAIN: usize = 10_000;
/// The rounds where each spawns a program.
pub const SPAWNING: usize = 500;

/// A tenth of the full number, unless `BANGER_RACE_ROUNDS` has another one.
#[must_use]
pub fn rounds(full: usize) -> usize {
    let text = std::env::var("BANGER_RACE_ROUNDS").ok();
    text.and_then(|text| text.parse().ok()).map_or(full / 10, |rounds: usize| rounds.min(full))
}

/// Runs `act` some times while another thread swaps things as fast as it can.
///
/// # Panics
/// One of the two does.
pub fn race(rounds: usize, swap: impl Fn(usize) + Sync, mut act: impl FnMut(usize)) {
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut step = 0;
            while !is_over.load(Ordering::Relaxed) {
                swap(step);
                step += 1;
            }
        });
        let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            (0..rounds).for_each(&mut act);
        }));
        is_over.store(true, Ordering::Relaxed);
        if let Err(panic) = done {
            std::panic::resume_unwind(panic);
        }
    });
}
