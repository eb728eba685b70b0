//! What each parameter of each method of the root helper takes and refuses: data, no checks.
//!
//! [`parameters`] names every parameter of a method and its [`Kind`]; [`inputs`] has the inputs of a
//! kind, each of a class. The gates' own tests and the tests against the running helper read the same
//! tables, and both fail where a parameter or a class is missing.
#![forbid(unsafe_code)]

mod kinds;
mod methods;

pub use kinds::{Expect, Input, Kind, classes, inputs};
pub use methods::{Parameter, base, parameters};

/// Where the roots are; absolute and clean.
#[derive(Clone, Debug)]
pub struct Places {
    /// The state directory.
    pub state: String,
    /// The runtime directory.
    pub runtime: String,
    /// The directory of the jails.
    pub jails: String,
    /// A directory in which firecracker and jailer lie.
    pub vmm: String,
    /// The owner's uid and gid.
    pub owner: (u32, u32),
    /// The helper's process id.
    pub own_pid: u32,
    /// The host's memory.
    pub memory_mib: u64,
}
