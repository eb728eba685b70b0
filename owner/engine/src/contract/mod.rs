//! What every implementation of a seam must do, as tests that its crate calls.
//!
//! Each suite takes an implementation and a place to work in, and panics where the contract in the
//! trait's documentation is broken. Built with the feature `contract`, which only tests switch on.
#![allow(clippy::unwrap_used, clippy::missing_panics_doc, reason = "these are tests")]

mod root_disk;
mod vmm;

pub use root_disk::root_disk;
pub use vmm::{Directories, TinyGuest, TinyGuests, vmm};
