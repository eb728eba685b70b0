//! The client against servers that listen on this machine: Debian's own registry, and hostile ones
//! written here.
#![forbid(unsafe_code)]
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "helpers of tests, and their SKIP lines"
)]

mod encrypted;
mod hostile;
mod logins;
mod mirrors;
mod paced;
mod real;
mod resumed;
mod server;
mod support;
