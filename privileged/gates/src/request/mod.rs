//! One function per method that has something to prove: its parameters in, its grant out.

mod disk;
mod launch;
mod network;
mod process;

pub use disk::*;
pub use launch::*;
pub use network::*;
pub use process::*;
