//! Disks: snapshots made of loop devices and the device-mapper, and files in ext4 images.
//!
//! What a loop device or a tool gets is a file that was opened below the state root, or a snapshot
//! by the kernel's own number; no name in `/dev/mapper` is ever followed.

mod debugfs;
mod ext4;
mod loops;
mod snapshot;

pub(crate) use loops::{check_loops, identity};
