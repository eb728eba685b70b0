//! Holds a guest while the host's disk has no room for what it writes.
//!
//! QEMU stops a guest by itself at the write that did not fit. Firecracker hands the guest an I/O
//! error, and a device-mapper snapshot that its file system has no room for is broken for good. So
//! the guest's CPUs are held (`PATCH /vm`) before it comes to that, and go on when there is room.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::api::Api;
use crate::task::Task;

/// Below this many free bytes a guest is held. Less than what a start asks for, so that a host on
/// which machines could just be started does not hold them.
const HOLD_BELOW: u64 = 128 << 20;
/// From this many on it goes on.
const GO_ON_FROM: u64 = 192 << 20;
/// How fast the fastest disks take data, in bytes a second: what is free lasts at least as long.
const FASTEST: u64 = 4 << 30;
/// The bounds of the time between two looks, each of which is one statvfs(3).
const PACE: std::ops::RangeInclusive<Duration> = Duration::from_millis(20)..=Duration::from_secs(2);

/// The keeper of one machine; ends when dropped, and leaves the machine as it is.
#[derive(Debug)]
pub(super) struct Room {
    is_held: Arc<AtomicBool>,
    _task: Task,
}

impl Room {
    /// Watches the file system on which the machine's disks grow. `is_held`: it was found so.
    pub(super) fn keep(api: Api, disks: PathBuf, is_held: bool) -> Self {
        let is_held = Arc::new(AtomicBool::new(is_held));
        let task = Task::spawn(watch(api, disks, Arc::clone(&is_held)));
        Self { is_held, _task: task }
    }

    /// Returns whether the guest is held.
    pub(super) fn holds(&self) -> bool {
        self.is_held.load(Ordering::Acquire)
    }
}

async fn watch(api: Api, disks: PathBuf, is_held: Arc<AtomicBool>) {
    let mut was_refused = false;
    loop {
        // An unknown room is none to hold a guest for.
        let free = rustix::fs::statvfs(&disks)
            .map_or(u64::MAX, |room| room.f_bavail.saturating_mul(room.f_frsize));
        let before = is_held.load(Ordering::Acquire);
        let hold = should_hold(free, before);
        if hold != before {
            match api.set_running(!hold).await {
                Ok(()) => {
                    is_held.store(hold, Ordering::Release);
                    was_refused = false;
                    if hold {
                        tracing::warn!(free, "the host's disk is full: the guest waits for room");
                    } else {
                        tracing::info!(free, "there is room again: the guest goes on");
                    }
                }
                // Once: the next look tries again.
                Err(error) if !was_refused => {
                    was_refused = true;
                    tracing::error!(%error, hold, "a guest was not held, or let go on");
                }
                Err(_) => {}
            }
        }
        tokio::time::sleep(pace(free)).await;
    }
}

/// Between the two bounds it stays as it is.
fn should_hold(free: u64, is_held: bool) -> bool {
    free < if is_held { GO_ON_FROM } else { HOLD_BELOW }
}

/// Returns how long what is free above the bound lasts at least.
fn pace(free: u64) -> Duration {
    let spare = free.saturating_sub(HOLD_BELOW);
    let lasts = Duration::from_millis(spare.saturating_mul(1000) / FASTEST);
    lasts.clamp(*PACE.start(), *PACE.end())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_is_held_below_the_one_bound_and_goes_on_above_the_other() {
        for (free, of_running, of_held) in [
            (0, true, true),
            (HOLD_BELOW - 1, true, true),
            (HOLD_BELOW, false, true),
            (GO_ON_FROM - 1, false, true),
            (GO_ON_FROM, false, false),
            (u64::MAX, false, false),
        ] {
            assert_eq!(should_hold(free, false), of_running, "{free}");
            assert_eq!(should_hold(free, true), of_held, "{free}");
        }
    }

    /// Of the room that a guest is held for, a third is left however fast it writes.
    #[test]
    fn a_guest_is_looked_at_before_it_has_filled_the_disk() {
        for free in (0..64).flat_map(|bit| [(1_u64 << bit) - 1, 3_u64 << bit >> 1]) {
            let pace = pace(free);
            assert!(PACE.contains(&pace), "{free}");
            let written = u64::try_from(pace.as_millis()).unwrap() * (FASTEST / 1000);
            assert!(free < HOLD_BELOW || free - written >= HOLD_BELOW / 3, "{free}: {pace:?}");
        }
    }
}
