//! VMM drivers and root disks: the engine's seams to the host, for QEMU.
//!
//! - [`qemu`]: the driver behind the engine's `Vmm` seam;
//! - [`disk`]: the root disks behind its `RootDisk` seam;
//! - [`probe`]: how guest instructions can run on this host, and why.
//!
//! All of it runs as the daemon's unprivileged user.
#![forbid(unsafe_code)]

pub mod disk;
mod held;
pub mod probe;
pub mod qemu;
