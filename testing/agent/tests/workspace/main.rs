//! Workspaces: real repositories, tame and hostile, into the real agent and back.
#![expect(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "a test: helpers fail it where it stands, and a skip must be seen"
)]

mod again;
mod back;
mod branches;
mod foreign;
mod growth;
mod hostile;
mod into;
mod round_trip;
mod support;
mod sync;
