//! A background task that lives no longer than what it serves.

use tokio::sync::watch;
use tokio::task::JoinHandle;

/// A running task; dropping it ends the task.
#[derive(Debug)]
pub(crate) struct Task {
    handle: JoinHandle<()>,
    /// Closed when the task ends.
    running: watch::Receiver<()>,
}

impl Task {
    pub(crate) fn spawn(work: impl Future<Output = ()> + Send + 'static) -> Self {
        let (alive, running) = watch::channel(());
        let handle = tokio::spawn(async move {
            work.await;
            drop(alive);
        });
        Self { handle, running }
    }

    /// Waits until the task has ended. Cancel safe; may be called any number of times.
    pub(crate) async fn finished(&self) {
        let mut running = self.running.clone();
        while running.changed().await.is_ok() {}
    }
}

impl Drop for Task {
    fn drop(&mut self) {
        self.handle.abort();
    }
}
