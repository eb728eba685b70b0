//! What each parameter of each method of the root helper takes and refuses: data, no checks.
//!
//! [`parameters`] names every parameter of a method and its [`Kind`]; [`inputs()`] has the inputs of a
//! kind, each of a class. The gates' own tests and the tests against the running helper read the same
//! tables, and both fail where a parameter or a class is missing.
#![forbid(unsafe_code)]

mod inputs;
mod kinds;
mod methods;
mod paths;

pub use inputs::{Expect, Input, inputs};
pub use kinds::{Kind, classes};
pub use methods::{Parameter, base, fit, parameters};

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
    /// What only a host can have.
    pub living: Living,
}

/// Numbers and names of what lives on a host; by default, of nothing.
#[derive(Clone, Debug)]
pub struct Living {
    /// A Firecracker that the helper launched: its pid.
    pub machine: u32,
    /// Its VM's id; the link to its API socket is `machine.sock` in the runtime directory.
    pub machine_id: String,
    /// Processes of the owner's Firecracker that were told their socket in each of the three forms.
    pub forms: [u32; 3],
    /// Processes that are none: one whose pid was another's before, another user's, and two with a
    /// socket that does not lie below the runtime directory.
    pub strangers: [u32; 4],
    /// A loop device on a file outside the state directory.
    pub foreign_loop: String,
}

impl Default for Living {
    fn default() -> Self {
        Self {
            machine: 4_194_304,
            machine_id: "machine".to_owned(),
            forms: [4_194_304; 3],
            strangers: [4_194_304; 4],
            foreign_loop: "/dev/loop1048575".to_owned(),
        }
    }
}
