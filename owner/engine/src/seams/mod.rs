//! The seams through which the engine sees the host.
//!
//! The engine never spawns, opens or connects anything itself: it works on these traits, which the
//! drivers in `owner/vmm` implement and the daemon wires in. Each has a contract test suite
//! (`banger_engine::contract`) that every implementation passes. The third seam, `GuestChannel`,
//! lives beside the agent's client in `banger-guest-client`.

mod artifacts;
mod host;
mod network;
mod ports;
mod root_disk;
mod vmm;

// A disk is limited as its user asks.
pub use banger_daemon_api::vm::{DiskLimits, NetLimits};

pub use artifacts::{ArtifactError, Artifacts, BaseImage, BootKernel};
pub use host::{HostError, HostFacts, HostMemory};
pub use network::{Attachment, Guest, Network, NetworkError, hardware_address, hardware_text};
pub use ports::{PortError, Ports};
pub use root_disk::{DiskError, DiskFormat, DiskImage, DiskUsage, FULL_SOON, RootDisk};
pub(crate) use vmm::no_network_limits;
pub use vmm::{
    Acceleration, LaunchPlan, Nic, PlannedDisk, Vmm, VmmError, VmmIdentity, VmmKind, VmmProcess,
    VmmState,
};
