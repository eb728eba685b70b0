//! Firecracker's jail, start, process and sockets, by the real firecracker and jailer.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, reason = "a test ends by it")]

mod cleanup;
mod executables;
mod jailers;
mod launch;
mod owner;
mod pid_races;
mod processes;
mod races;
mod refusals;
mod restart;
mod shared_disks;
mod socket_races;
mod sockets;
