//! Why the host was not changed.

use std::error::Error;

use banger_gates::{Name, Refusal};

/// Why an act did not happen.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// What the gates could not know speaks against it; nothing was changed.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// It failed, and what had been done of it was undone.
    #[error("{operation} {object}")]
    Failed {
        /// What was to be done.
        operation: &'static str,
        /// To what.
        object: String,
        /// Why it failed.
        #[source]
        source: Box<dyn Error + Send + Sync>,
    },
}

impl HostError {
    /// A failure of an operation on an object, for `map_err`.
    pub(crate) fn of<E: Into<Box<dyn Error + Send + Sync>>>(
        operation: &'static str,
        object: impl ToString,
    ) -> impl FnOnce(E) -> Self {
        let object = object.to_string();
        move |source| Self::Failed { operation, object, source: source.into() }
    }
}

/// That an owner has room for one more of what there may be so many of.
pub(crate) fn check_room(name: Name, count: usize, most: usize, what: &str) -> Result<(), Refusal> {
    let rule = format!("the owner has {count} {what} of {most} that may be: end one first");
    Refusal::when(count >= most, name, rule)
}

/// An error with all its causes, in one line.
#[must_use]
pub fn chain(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

/// What an error of another kind came of.
pub(crate) trait During<T> {
    /// Says of which operation on what object a failure is.
    fn during(self, operation: &'static str, object: impl ToString) -> Result<T, HostError>;
}

impl<T, E: Into<Box<dyn Error + Send + Sync>>> During<T> for Result<T, E> {
    fn during(self, operation: &'static str, object: impl ToString) -> Result<T, HostError> {
        self.map_err(|error| HostError::of(operation, object)(error))
    }
}
