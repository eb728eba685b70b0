//! What must hold of whatever the root helper is sent, whoever made it up: the fuzz targets of
//! `testing/fuzz` and this crate's own tests ask it.
//!
//! [`rules`] has the rules of docs/privileges.md once more, written down independently of the gates;
//! [`GATES`] holds each gate against its rule in both directions; [`frames`] has the helper's own
//! connection and dispatch over a host that does nothing but check what it is granted. And what
//! must hold of what the daemon takes for an archive ([`archives`]) and for a registry's manifest
//! ([`manifests`]), for a question or an answer of a name server ([`names`]).
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, reason = "a property that does not hold ends the test")]

// The helper's own sources are taken in below and say `banger_host`; here that is `stand_in`.
extern crate self as banger_host;

pub mod archives;
mod audit;
// The helper's; its lints are asked about there.
#[allow(dead_code, missing_debug_implementations, reason = "parts of a program")]
#[path = "../../../privileged/helper/src/connection.rs"]
mod connection;
#[allow(dead_code, missing_debug_implementations, reason = "parts of a program")]
#[path = "../../../privileged/helper/src/dispatch.rs"]
mod dispatch;
pub mod frames;
mod gates;
pub mod manifests;
pub mod names;
pub mod rules;
mod stand_in;

pub use gates::{GATES, Gate};
pub use stand_in::{Host, HostError, Resolver, chain, give_memory_back};

use banger_gate_tables::{Living, Places};
use banger_gates::{Owner, Policy};

/// The owner, who may be the one that runs this.
#[must_use]
pub fn owner() -> u32 {
    let own = rustix::process::geteuid().as_raw();
    if own == 0 { 1000 } else { own }
}

/// Where all lies.
#[must_use]
pub fn places() -> Places {
    Places {
        state: "/var/lib/banger".to_owned(),
        runtime: "/run/banger".to_owned(),
        jails: "/var/lib/banger-root/jail".to_owned(),
        vmm: "/usr/lib/banger".to_owned(),
        owner: (owner(), 1001),
        own_pid: 77,
        memory_mib: 4096,
        living: Living::default(),
    }
}

/// What the gates compare with.
#[must_use]
pub fn policy() -> Policy {
    let places = places();
    Policy {
        owner: Owner::new(places.owner.0, places.owner.1).unwrap(),
        state: places.state.into(),
        runtime: places.runtime.into(),
        jails: places.jails.into(),
        vmm_directories: Policy::VMM_DIRECTORIES.map(Into::into).to_vec(),
        vmm_files: vec![rules::VMM_FILE.into()],
        host_memory_mib: places.memory_mib,
        own_pid: places.own_pid,
    }
}

/// What the fuzzing of a target begins with: inputs of the accept and refuse tables.
#[must_use]
pub fn seeds(target: &str) -> Vec<Vec<u8>> {
    if target == frames::TARGET {
        return frames::seeds();
    }
    if target == archives::TARGET {
        return archives::seeds();
    }
    if target == manifests::TARGET {
        return manifests::seeds();
    }
    if target == names::TARGET {
        return names::seeds();
    }
    let gate = GATES.iter().find(|gate| gate.target() == target);
    gate.map(gates::seeds).unwrap_or_default()
}

/// Every target: the frames, archives, a registry's documents, names, and a gate each.
#[must_use]
pub fn targets() -> Vec<String> {
    let gates = GATES.iter().map(Gate::target);
    let others = [frames::TARGET, archives::TARGET, manifests::TARGET, names::TARGET];
    others.map(str::to_owned).into_iter().chain(gates).collect()
}
