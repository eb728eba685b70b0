//! VMM drivers and root disks: the engine's seams to the host.
//!
//! - [`firecracker`]: the driver of Firecracker, jailed by the root helper;
//! - [`qemu`]: the driver of QEMU;
//! - [`disk`]: the root disks;
//! - [`probe`]: how guest instructions can run on this host, and why.
//!
//! All of it runs as the daemon's unprivileged user.
#![forbid(unsafe_code)]

pub mod console_log;
mod console_port;
pub mod disk;
pub mod firecracker;
mod held;
mod known_version;
pub mod probe;
pub mod qemu;
mod silent;
mod task;

/// Why a guest whose VMM is alive does not get on ([`banger_engine::seams::VmmProcess::stall`]).
const HELD_FOR_ROOM: &str =
    "the guest is held: the host's disk is full; it goes on when there is room";
