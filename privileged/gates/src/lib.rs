//! The gates of the root helper: pure functions from what a frame says to what may be done.
//!
//! Each parameter becomes a type whose only constructor is its check, and the host's functions take
//! those types, so that input that went through no gate does not compile. A function of [`request`]
//! turns a method's parameters into its grant; a [`Refusal`] says which parameter and why.
//!
//! What only the host can know (whether a path below a root is a link, whose process a pid is, which
//! bridge a tap hangs on) is checked there on what was opened, before anything is changed.
#![forbid(unsafe_code)]
#![deny(missing_docs)]

mod device;
mod launch;
mod name;
mod network;
mod path;
mod policy;
mod process;
mod refusal;
pub mod request;

pub use device::*;
pub use launch::*;
pub use network::*;
pub use path::*;
pub use policy::*;
pub use process::*;
pub use refusal::Refusal;

/// What a gate says.
pub type Result<T, E = Refusal> = std::result::Result<T, E>;

/// A parameter's name on the wire.
pub type Name = &'static str;
