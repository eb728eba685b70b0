//! What a VM uses, seen from the host and from inside.

use banger_types::{VmId, VmName};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::vm::{Disk, VmState};

/// Answer of `GET /v1/vms/{vm}/stats`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct VmStats {
    /// The VM.
    #[schema(value_type = String)]
    pub id: VmId,
    /// Its name.
    #[schema(value_type = String)]
    pub name: VmName,
    /// What it is doing.
    pub state: VmState,
    /// When this was measured.
    #[schema(value_type = String)]
    pub measured_at: Timestamp,
    /// What its VMM takes of the host, while it runs.
    pub host: Option<HostUse>,
    /// What its guest says of itself, while it runs and answers.
    pub guest: Option<GuestUse>,
    /// Why the guest said nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guest_problem: Option<String>,
    /// Its disks.
    pub disks: Vec<Disk>,
}

/// What a VMM takes of the host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct HostUse {
    /// Its process id.
    pub pid: u32,
    /// CPU time since its start, in milliseconds.
    pub cpu_time_ms: u64,
    /// Thousandths of one CPU, at the time of the question.
    pub cpu_milli: u64,
    /// Virtual CPUs that it runs.
    pub vcpus: u8,
    /// Resident memory in bytes: the guest's and its own.
    pub memory_bytes: u64,
    /// What the guest was promised, in bytes.
    pub memory_limit_bytes: u64,
}

/// What a guest says of itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct GuestUse {
    /// Load average over one minute, in thousandths.
    pub load_milli: u64,
    /// Processes and kernel threads.
    pub processes: u64,
    /// Its memory, in bytes.
    pub memory_total_bytes: u64,
    /// Memory that could be used without swapping, in bytes.
    pub memory_available_bytes: u64,
    /// Size of the root file system, in bytes.
    pub root_total_bytes: u64,
    /// Free on the root file system, in bytes.
    pub root_free_bytes: u64,
    /// Size of the file system at `/root`, in bytes.
    pub work_total_bytes: u64,
    /// Free on the file system at `/root`, in bytes.
    pub work_free_bytes: u64,
}
