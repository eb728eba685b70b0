//! What is on the host by our names and belongs to no VM.

use std::fmt;

use serde::{Deserialize, Serialize};

/// What kind of thing it is; in the order in which they are removed: what uses another thing comes
/// before that.
#[derive(
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Serialize,
    Deserialize,
    utoipa::ToSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum OrphanKind {
    /// A QEMU or Firecracker that runs; its name is the process id.
    Vmm,
    /// A tap.
    Tap,
    /// What the firewall has of a tap, by the tap's name.
    Firewall,
    /// A mount in a jail; its name is the mount point.
    Mount,
    /// A jail, by its directory.
    Jail,
    /// A machine's cgroup, by its directory.
    Cgroup,
    /// A device-mapper device, by its name.
    Device,
    /// A loop device on one of our files.
    Loop,
    /// A directory of a VM's sockets.
    Sockets,
    /// A VM's directory with its disks.
    Folder,
    /// The record of a VM whose disks are gone, by the VM's name.
    Row,
    /// What the end of a VM could not remove, by the VM's name.
    Leftovers,
}

impl OrphanKind {
    /// Every kind, in order.
    pub const ALL: &'static [Self] = &[
        Self::Vmm,
        Self::Tap,
        Self::Firewall,
        Self::Mount,
        Self::Jail,
        Self::Cgroup,
        Self::Device,
        Self::Loop,
        Self::Sockets,
        Self::Folder,
        Self::Row,
        Self::Leftovers,
    ];
}

impl fmt::Display for OrphanKind {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(match self {
            Self::Vmm => "VMM process",
            Self::Tap => "tap",
            Self::Firewall => "firewall elements of",
            Self::Mount => "mount",
            Self::Jail => "jail",
            Self::Cgroup => "cgroup",
            Self::Device => "device-mapper device",
            Self::Loop => "loop device",
            Self::Sockets => "sockets",
            Self::Folder => "VM directory",
            Self::Row => "record without a disk of VM",
            Self::Leftovers => "what was left of VM",
        })
    }
}

/// One such thing.
#[derive(
    Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, utoipa::ToSchema,
)]
pub struct Orphan {
    /// What it is.
    pub kind: OrphanKind,
    /// Which one.
    pub name: String,
    /// The id of the VM that it was for, or the beginning of it.
    pub vm: String,
}

impl fmt::Display for Orphan {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} {}", self.kind, self.name)
    }
}

/// One that could not be removed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct KeptOrphan {
    /// Which.
    pub orphan: Orphan,
    /// Why.
    pub reason: String,
}

/// Answer of `DELETE /v1/orphans`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct OrphansRemoved {
    /// What is gone.
    pub removed: Vec<Orphan>,
    /// What is not.
    pub kept: Vec<KeptOrphan>,
}
