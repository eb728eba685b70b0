//! Copy-on-write root disks over a read-only raw base image.
//!
//! | kind | what | needs |
//! |---|---|---|
//! | `qcow2-overlay` | an empty qcow2 image that names the base | a VMM that reads qcow2 |
//! | `reflink` | a file that shares the base's blocks | XFS or btrfs for both |
//! | `dm-snapshot` | a sparse file that takes what is written, and a device while a VMM runs | the root helper, device-mapper |
//! | `copy` | a sparse copy | space |
//!
//! A new disk is made under another name and renamed into place when it is whole. It is not flushed:
//! it holds nothing that the base does not, until the guest flushes its first write and the VMM
//! passes that on.

mod copy;
mod dm_snapshot;
mod file;
mod qcow2;
mod qcow2_overlay;
mod reflink;

use std::sync::Arc;

use banger_engine::seams::RootDisk;

pub use copy::CopyDisk;
pub use dm_snapshot::DmSnapshotDisk;
pub use qcow2_overlay::Qcow2Overlay;
pub use reflink::ReflinkDisk;

/// Returns the kinds that QEMU boots from, best first.
pub(crate) fn for_qemu() -> Vec<Arc<dyn RootDisk>> {
    vec![Arc::new(Qcow2Overlay), Arc::new(ReflinkDisk), Arc::new(CopyDisk)]
}

/// Returns the kinds that Firecracker boots from, best first.
pub(crate) fn for_firecracker(snapshots: DmSnapshotDisk) -> Vec<Arc<dyn RootDisk>> {
    vec![Arc::new(ReflinkDisk), Arc::new(snapshots), Arc::new(CopyDisk)]
}
