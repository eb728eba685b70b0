//! The client against servers that listen on this machine: Debian's own registry, and hostile ones
//! written here.

mod encrypted;
mod hostile;
mod real;
mod server;
mod support;
