//! Ends a daemon that nobody uses.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// Counts the open connections.
#[derive(Clone, Debug, Default)]
pub struct Connections(Arc<AtomicUsize>);

/// One open connection; its end is the guard's drop.
#[derive(Debug)]
pub struct OpenConnection(Arc<AtomicUsize>);

impl Connections {
    /// Counts one more, until the guard is dropped.
    pub fn open(&self) -> OpenConnection {
        self.0.fetch_add(1, Ordering::Relaxed);
        OpenConnection(Arc::clone(&self.0))
    }

    /// Returns how many are open.
    pub fn count(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }
}

impl Drop for OpenConnection {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Cancels `end` once `busy` has said no for `timeout` without a break.
///
/// `busy` is asked a few times per timeout: what begins and ends between two looks needs a
/// connection, which the last look before the end would have to miss by the same little time.
pub async fn watch(timeout: Duration, end: CancellationToken, busy: impl Fn() -> bool) {
    let mut idle_since = Instant::now();
    let mut ticks = tokio::time::interval((timeout / 8).max(Duration::from_millis(100)));
    loop {
        tokio::select! {
            () = end.cancelled() => return,
            now = ticks.tick() => {
                if busy() {
                    idle_since = now;
                } else if now.duration_since(idle_since) >= timeout {
                    tracing::info!(seconds = timeout.as_secs(), "nothing to do: ending");
                    end.cancel();
                    return;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_are_counted_while_their_guard_lives() {
        let connections = Connections::default();
        let first = connections.open();
        let second = connections.open();
        assert_eq!(connections.count(), 2);
        drop((first, second));
        assert_eq!(connections.count(), 0);
    }
}
