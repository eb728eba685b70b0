//! Workspaces: real repositories, tame and hostile, into the real agent and back.
#![expect(clippy::unwrap_used, reason = "a test: helpers fail it where it stands")]

mod back;
mod hostile;
mod into;
mod round_trip;
mod support;
