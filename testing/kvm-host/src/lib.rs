//! The KVM host: a Debian machine with systemd, device-mapper and a working `/dev/kvm`, run by
//! QEMU's translator with emulated AMD SVM, on which the product's real path is tested.
//!
//! ```text
//!  build   emulator     a QEMU that is new enough, from backports where this machine's is not
//!          host_image   mmdebstrap's tar stream -> ext4, by the product's own image builder
//!          machine      + the shared kernel, + the guest agent as the initrd
//!  boot    saved_state  cold once: boot, stop, write memory to a file, keep the disk's overlay
//!          keeper       a process that owns one QEMU started from that state
//!          kept         the connections to it: who holds the machine, and streams to its agent
//!  run     session      calls to the guest agent, each a connection to the keeper
//!  test    suite        the tests of this tier, one by one, with a look at what they left
//!          lasting      a machine of one test's own, which can be rebooted
//! ```
//!
//! Nothing that a machine does survives it, but for a lasting one: its disk is an overlay that QEMU
//! drops at its end, so every boot begins with what the saved state holds. Nothing that ships
//! depends on this crate.
#![forbid(unsafe_code)]

pub mod cache;
mod checksum;
mod debian;
pub mod emulator;
pub mod host;
pub mod host_image;
pub mod inventory;
pub mod keeper;
pub mod kept;
pub mod lasting;
pub mod machine;
mod monitor;
pub mod qemu;
pub mod saved_state;
pub mod session;
pub mod suite;
pub mod vmm_binaries;

use std::io::Write;

/// Prints one line to standard error; a closed pipe is not an error here.
pub fn note(line: impl std::fmt::Display) {
    let mut out = std::io::stderr().lock();
    let _ = writeln!(out, "kvm-host: {line}");
}
