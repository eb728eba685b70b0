//! The whole of banger as a user meets it: the real `banger`, the real
//! `bangerd`, and in the modules `guest` and `own_kernel` real Linux guests.
//!
//! Each test has an [`banger_harness::Environment`] of its own and ends with
//! proof that nothing is left on the machine.
#![forbid(unsafe_code)]
#![expect(clippy::unwrap_used, reason = "a helper of a test panics like a test")]

mod archives;
mod daemon;
mod full_disk;
mod guest;
mod kernels;
mod matrix;
mod own_kernel;
mod references;
mod refusals;
mod registries;
mod setup;
mod verbs;
