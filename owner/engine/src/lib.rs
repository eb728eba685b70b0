//! VM lifecycle: admission, phases, undo, one task per VM.
#![forbid(unsafe_code)]

pub mod admission;
mod error;
mod fault;
mod host;
mod layout;
mod names;
mod operation;
mod record;
pub mod seams;
mod step;

pub use error::EngineError;
pub use fault::Faults;
pub use host::LinuxHost;
pub use operation::{Begun, KEEP_FOR, KEEP_MOST, OperationHandle, Operations, Reporter};
pub use step::Step;
