//! The daemon itself: ping, doctor, leases.

use banger_types::LeaseId;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// Answer of `GET /v1/ping`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Ping {
    /// The API version; see [`crate::API_VERSION`].
    pub api_version: u32,
    /// The daemon's version.
    pub version: String,
    /// Which build this is: what the command line passed as `--build-id` when it started the
    /// daemon (size, modification time and inode of the executable). A different one is replaced.
    pub build_id: String,
    /// The daemon's process id.
    pub pid: u32,
    /// The daemon's user id.
    pub uid: u32,
    /// When it started.
    #[schema(value_type = String)]
    pub started_at: Timestamp,
    /// Where its state is.
    pub state_dir: String,
    /// Where its cache is.
    pub cache_dir: String,
    /// Where its sockets are.
    pub runtime_dir: String,
    /// The VMMs this build has a driver for: `qemu`, `firecracker`.
    pub vmms: Vec<String>,
    /// VMs whose VMM runs.
    pub running_vms: u32,
    /// Operations that have not ended.
    pub active_operations: u32,
    /// Bytes that the disks of one new VM may grow to; missing where `storage.overcommit` sets no bound.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk_headroom: Option<u64>,
    /// Clients that hold a lease or a stream to a guest's agent; they would lose it if the daemon
    /// ended.
    #[serde(default)]
    pub open_sessions: u32,
}

/// Header of the answer to `POST /v1/leases` (an upgrade to [`crate::routes::LEASE_PROTOCOL`]).
pub const LEASE_HEADER: &str = "banger-lease";

/// The lease a client holds as long as its upgraded connection is open.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Lease {
    /// Its id, for [`crate::vm::CreateVm::lease`].
    #[schema(value_type = String)]
    pub id: LeaseId,
}

/// How a check of `doctor` ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "UPPERCASE")]
pub enum CheckStatus {
    /// As it should be.
    Pass,
    /// Works, with a limit worth knowing.
    Warn,
    /// Does not work.
    Fail,
}

/// One check of `doctor`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Check {
    /// What was checked, in a few words.
    pub name: String,
    /// How it ended.
    pub status: CheckStatus,
    /// What was found.
    pub detail: String,
    /// What to do about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
}

/// Answer of `GET /v1/doctor`: the checks that only the daemon can make (the command line adds its
/// own).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct DoctorReport {
    /// The checks, in the order to show them.
    pub checks: Vec<Check>,
}
