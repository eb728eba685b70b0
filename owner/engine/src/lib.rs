//! VM lifecycle: admission, phases, undo, one task per VM.
#![forbid(unsafe_code)]

pub mod admission;
#[cfg(feature = "contract")]
pub mod contract;
mod engine;
mod error;
mod fault;
mod guest;
mod host;
mod late;
mod layout;
mod main_process;
mod names;
mod operation;
mod orphans;
mod reconcile;
mod record;
pub mod seams;
mod shared;
mod step;
mod vm;

pub use engine::{Engine, EngineConfig, Started, VmWatch};
pub use error::EngineError;
pub use fault::Faults;
pub use host::LinuxHost;
pub use main_process::MainError;
pub use operation::{Begun, KEEP_FOR, KEEP_MOST, OperationHandle, Operations, Reporter};
pub use orphans::DamagedVm;
pub use reconcile::ReconcileReport;
pub use shared::Timing;
pub use step::{Action, Step};

#[cfg(test)]
mod tests;
