//! Races: one thread acts through the helper while another swaps what it acts on.
//!
//! `cargo xtask races` runs all rounds, `make test` a tenth of them.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

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

/// So many swaps belong to a race at least: on a busy machine quick acts are over before the first.
const LEAST_SWAPS: usize = 64;

/// So many times the rounds are run at most until a race's outcomes have all been seen: which one a
/// round has is chance, and on a busy machine the two may take turns for long.
const MOST_TIMES: usize = 20;

/// Runs `act` so many times, or more until things were swapped often enough, while another thread
/// swaps them as fast as it can.
///
/// # Panics
/// One of the two does.
pub fn race(rounds: usize, swap: impl Fn(usize) + Sync, mut act: impl FnMut(usize)) {
    race_until_seen(rounds, swap, |round| {
        act(round);
        true
    });
}

/// As [`race`], and goes on for up to 20 times the rounds until `act` returns that all outcomes that
/// the test wants have been seen.
///
/// # Panics
/// One of the two does.
pub fn race_until_seen(
    rounds: usize,
    swap: impl Fn(usize) + Sync,
    mut act: impl FnMut(usize) -> bool,
) {
    let (is_over, swaps) = (AtomicBool::new(false), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        let swapper = scope.spawn(|| {
            while !is_over.load(Ordering::Relaxed) {
                swap(swaps.load(Ordering::Relaxed));
                swaps.fetch_add(1, Ordering::Relaxed);
            }
        });
        let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            for round in 1.. {
                let is_seen = act(round - 1);
                let is_early =
                    swaps.load(Ordering::Relaxed) < LEAST_SWAPS && !swapper.is_finished();
                let is_given_up = round >= rounds * MOST_TIMES;
                if round >= rounds && !is_early && (is_seen || is_given_up) {
                    break;
                }
            }
        }));
        is_over.store(true, Ordering::Relaxed);
        if let Err(panic) = done {
            std::panic::resume_unwind(panic);
        }
    });
}
