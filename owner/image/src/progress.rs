//! How long work reports what it does and is told to stop.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Receives what long work has to say; called often, so it must be quick.
pub trait Progress {
    /// A new stage begins, in a few words such as `write files`.
    fn stage(&self, name: &str);
    /// `done` bytes of the stage are done, of `total` where that is known.
    fn bytes(&self, done: u64, total: Option<u64>);
}

/// Reports to nobody.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoProgress;

impl Progress for NoProgress {
    fn stage(&self, _name: &str) {}
    fn bytes(&self, _done: u64, _total: Option<u64>) {}
}

/// A flag that makes work stop at its next block; clones share it.
#[derive(Clone, Debug, Default)]
pub struct CancelFlag(Arc<AtomicBool>);

/// The work was stopped by its [`CancelFlag`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("cancelled")]
pub struct Cancelled;

impl CancelFlag {
    /// Asks all work that holds this flag to stop.
    pub fn cancel(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Returns an error once [`CancelFlag::cancel`] was called.
    ///
    /// # Errors
    /// [`Cancelled`].
    pub fn check(&self) -> Result<(), Cancelled> {
        if self.0.load(Ordering::Relaxed) { Err(Cancelled) } else { Ok(()) }
    }
}
