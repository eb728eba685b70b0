//! VMs: what a client asks for and what it is shown.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use banger_types::{
    BytesPerSecond, DiskSize, GroupName, ImageName, KernelName, LeaseId, MemoryMib, OpsPerSecond,
    PortProtocol, Publication, PublishedPort, VcpuCount, VmId, VmName,
};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::error::ApiError;
pub use crate::main_process::{MainExit, MainOptions, MainProcess};

/// Which VMM to use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum VmmChoice {
    /// The best one that can run here.
    #[default]
    Auto,
    /// Firecracker under its jailer.
    Firecracker,
    /// QEMU.
    Qemu,
}

impl FromStr for VmmChoice {
    type Err = UnknownWord;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "auto" => Ok(Self::Auto),
            "firecracker" => Ok(Self::Firecracker),
            "qemu" => Ok(Self::Qemu),
            _ => Err(UnknownWord { known: "auto, firecracker, qemu" }),
        }
    }
}

impl fmt::Display for VmmChoice {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(match self {
            Self::Auto => "auto",
            Self::Firecracker => "firecracker",
            Self::Qemu => "qemu",
        })
    }
}

/// A word that is none of the known ones.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("use one of: {known}")]
pub struct UnknownWord {
    /// The known words, in a row.
    pub known: &'static str,
}

/// The size and shape of a VM; what does not change while it runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct VmSpec {
    /// Virtual CPUs.
    #[schema(value_type = u8)]
    pub vcpus: VcpuCount,
    /// Memory in MiB.
    #[schema(value_type = u32)]
    pub memory_mib: MemoryMib,
    /// Size of the root disk (image plus copy-on-write) in bytes; grown to it where the image is
    /// smaller, never shrunk.
    #[schema(value_type = u64)]
    pub root_size: DiskSize,
    /// Size of the work disk at `/root` in bytes.
    #[schema(value_type = u64)]
    pub work_size: DiskSize,
    /// Whether the guest may reach the network outside.
    pub nat: bool,
    /// Whether that includes private networks (RFC 1918 and the like); of use with `nat` only.
    #[serde(default)]
    pub allow_lan: bool,
    /// The VMs of one group reach each other; without, a VM is alone.
    #[serde(default)]
    #[schema(value_type = Option<String>)]
    pub group: Option<GroupName>,
    /// Ports of the guest that are reached through the host's.
    #[serde(default)]
    #[schema(value_type = Vec<String>)]
    pub ports: Vec<Publication>,
    /// Which VMM.
    pub vmm: VmmChoice,
    /// How fast its disks may be.
    #[serde(default)]
    pub disk_limits: DiskLimits,
    /// How fast its network card may be.
    #[serde(default)]
    pub net_limits: NetLimits,
}

/// How fast a VM's network card may be, each way; without a limit as fast as it can. A VMM that
/// cannot hold it to that does not start the VM.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NetLimits {
    /// Bytes a second.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<u64>)]
    pub bandwidth: Option<BytesPerSecond>,
    /// Packets a second.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<u32>)]
    pub packets: Option<OpsPerSecond>,
}

impl NetLimits {
    /// Returns whether there is none.
    #[must_use]
    pub const fn is_unlimited(&self) -> bool {
        self.bandwidth.is_none() && self.packets.is_none()
    }
}

/// How fast each of a VM's writable disks may be, reads and writes together; without a limit as fast
/// as it can.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct DiskLimits {
    /// Bytes a second.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<u64>)]
    pub bandwidth: Option<BytesPerSecond>,
    /// Operations a second.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<u32>)]
    pub ops: Option<OpsPerSecond>,
}

impl DiskLimits {
    /// Returns whether there is none.
    #[must_use]
    pub const fn is_unlimited(&self) -> bool {
        self.bandwidth.is_none() && self.ops.is_none()
    }
}

/// Body of `POST /v1/vms/{vm}/set`: what is given changes, of a VM that does not run.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SetVm {
    /// Virtual CPUs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<u8>)]
    pub vcpus: Option<VcpuCount>,
    /// Memory in MiB.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<u32>)]
    pub memory_mib: Option<MemoryMib>,
    /// Size of the root disk in bytes; it only grows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<u64>)]
    pub root_size: Option<DiskSize>,
    /// Size of the work disk in bytes; it only grows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<u64>)]
    pub work_size: Option<DiskSize>,
    /// Bytes a second of each disk; `null` for no limit.
    #[serde(default, deserialize_with = "given", skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<u64>)]
    pub disk_bandwidth: Option<Option<BytesPerSecond>>,
    /// Operations a second of each disk; `null` for no limit.
    #[serde(default, deserialize_with = "given", skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<u32>)]
    pub disk_ops: Option<Option<OpsPerSecond>>,
}

/// Tells `null` from a field that is not there (RFC 7396).
fn given<'de, D, T>(deserializer: D) -> Result<Option<Option<T>>, D::Error>
where
    D: serde::Deserializer<'de>,
    T: Deserialize<'de>,
{
    Option::deserialize(deserializer).map(Some)
}

/// Body of `POST /v1/vms`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateVm {
    /// The name; a readable one is made where it is missing.
    #[serde(default)]
    #[schema(value_type = Option<String>)]
    pub name: Option<VmName>,
    /// The image, already here.
    #[schema(value_type = String)]
    pub image: ImageName,
    /// The kernel, already here.
    #[schema(value_type = String)]
    pub kernel: KernelName,
    /// Size and shape.
    pub spec: VmSpec,
    /// Delete the VM when this lease's connection closes.
    #[serde(default)]
    #[schema(value_type = Option<String>)]
    pub lease: Option<LeaseId>,
    /// The workspace that the client will put into the VM, for `vm list`.
    #[serde(default)]
    pub workspace: Option<Workspace>,
    /// What is to be run otherwise than the image says.
    #[serde(default)]
    pub main: MainOptions,
}

/// A repository of the user inside a VM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Workspace {
    /// Where it is in the guest.
    pub guest_path: String,
    /// Where it came from on the host (shown only; the daemon never opens it).
    pub source_path: String,
    /// The commit that was checked out, where there is one.
    #[serde(default)]
    pub head_commit: Option<String>,
    /// The branch that the guest was put on, where it was on one.
    #[serde(default)]
    pub branch: Option<String>,
    /// Whether that branch was made for the guest, so that it stays on it.
    #[serde(default)]
    pub own_branch: bool,
    /// When it was carried last.
    #[serde(default)]
    #[schema(value_type = Option<String>)]
    pub prepared_at: Option<Timestamp>,
}

/// What a VM is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum VmState {
    /// Recorded; never started.
    Created,
    /// Being started.
    Starting,
    /// Its agent has answered.
    Running,
    /// Being stopped.
    Stopping,
    /// Not running; its disks are kept.
    Stopped,
    /// Being deleted.
    Deleting,
    /// The last start failed or the VMM died; see `last_error`. It can be started or deleted.
    Failed,
}

impl fmt::Display for VmState {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(match self {
            Self::Created => "created",
            Self::Starting => "starting",
            Self::Running => "running",
            Self::Stopping => "stopping",
            Self::Stopped => "stopped",
            Self::Deleting => "deleting",
            Self::Failed => "failed",
        })
    }
}

/// The note of a VM with a disk that is broken, or nearly full in a way that breaks it: which, and what
/// to do.
pub const DISK_NOTE: &str = "disk";

/// The note of a running VM whose ports could not be published again after the daemon had ended: why.
pub const PORTS_NOTE: &str = "ports";

/// The note of a VM whose disks may grow beyond what the host has free: the numbers.
pub const SPACE_NOTE: &str = "disk space";

/// The note of a VM on a bridge whose subnet another network of the host overlaps: which.
pub const SUBNET_NOTE: &str = "subnet";

/// The note of a running VM whose guest has not taken its new name.
pub const HOSTNAME_NOTE: &str = "host name";

/// The notes that who starts or changes a VM is told at once.
pub const WARNING_NOTES: [&str; 3] = [SPACE_NOTE, SUBNET_NOTE, HOSTNAME_NOTE];

/// The note of a VM that does not run and of which something is left on the host: what failed.
pub const LEFTOVERS_NOTE: &str = "leftovers";

/// The note of a running VM that stands still until the host can do something for it, or whose VMM does
/// not answer: why.
pub const HELD_NOTE: &str = "held";

/// What is true of a VM only while its VMM runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct VmRuntime {
    /// The VMM's process id on the host.
    pub pid: u32,
    /// `qemu` or `firecracker`.
    pub vmm: String,
    /// `kvm` or `tcg`.
    pub acceleration: String,
    /// The guest kernel's boot id (`/proc/sys/kernel/random/boot_id`); new at each start.
    #[serde(default)]
    pub boot_id: Option<String>,
    /// The guest kernel's release (`uname -r`).
    #[serde(default)]
    pub kernel_release: Option<String>,
    /// The agent's version.
    #[serde(default)]
    pub agent_version: Option<String>,
    /// The guest's IPv4 address, where it has one.
    #[serde(default)]
    #[schema(value_type = Option<String>)]
    pub guest_ip: Option<std::net::Ipv4Addr>,
    /// When the VMM was started.
    #[schema(value_type = String)]
    pub started_at: Timestamp,
}

/// One disk of a VM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Disk {
    /// `root` or `work`.
    pub role: String,
    /// How it is kept: `qcow2-overlay`, `reflink`, `copy`, `raw`, `dm-snapshot`.
    pub kind: String,
    /// Where it is on the host.
    pub path: String,
    /// Size in bytes as the guest sees it.
    pub size: u64,
    /// Bytes that it takes on the host.
    pub allocated: u64,
    /// How full what takes its writes is, in percent, for a kind that breaks when that is full
    /// (`dm-snapshot`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fill_percent: Option<u8>,
    /// What is wrong with it, where it is broken.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub broken: Option<String>,
}

/// A VM as `vm show` prints it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Vm {
    /// Identity for life.
    #[schema(value_type = String)]
    pub id: VmId,
    /// Name.
    #[schema(value_type = String)]
    pub name: VmName,
    /// What it is doing.
    pub state: VmState,
    /// Image it was made from.
    #[schema(value_type = String)]
    pub image: ImageName,
    /// Kernel it boots.
    #[schema(value_type = String)]
    pub kernel: KernelName,
    /// Size and shape.
    pub spec: VmSpec,
    /// Deleted when its creator's connection closes (`--rm`).
    pub ephemeral: bool,
    /// Present while the VMM runs.
    #[serde(default)]
    pub runtime: Option<VmRuntime>,
    /// Its disks.
    #[serde(default)]
    pub disks: Vec<Disk>,
    /// The network it has: `tap` (a port of the host's bridge, with an address that the host
    /// reaches), `user` (QEMU's own, reached through the agent only) or `none`. Of a VM that does
    /// not run, what it would get.
    pub network: String,
    /// The IPv4 address on the host's bridge that is the VM's for life, where there is a bridge.
    #[serde(default)]
    #[schema(value_type = Option<String>)]
    pub address: Option<std::net::Ipv4Addr>,
    /// The hardware address of its card on that bridge.
    #[serde(default)]
    pub mac: Option<String>,
    /// Its published ports, open or not.
    #[serde(default)]
    pub ports: Vec<PortPublished>,
    /// The user's repository inside, where there is one.
    #[serde(default)]
    pub workspace: Option<Workspace>,
    /// The program that the VM exists for, where it has one.
    #[serde(default)]
    pub main: Option<MainProcess>,
    /// How that program ended the last time, where the guest could tell.
    #[serde(default)]
    pub main_exit: Option<MainExit>,
    /// Why the last start, stop or run ended badly.
    #[serde(default)]
    pub last_error: Option<ApiError>,
    /// When it was created.
    #[schema(value_type = String)]
    pub created_at: Timestamp,
    /// When its state last changed.
    #[schema(value_type = String)]
    pub updated_at: Timestamp,
    /// The console log on the host.
    pub console_log: String,
    /// More facts for people, by name (`VMM choice`, `machine type`).
    #[serde(default)]
    pub notes: BTreeMap<String, String>,
}

/// Query of `POST /v1/vms/{vm}/stop`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct StopVm {
    /// Milliseconds to wait for a clean power-off before the VMM is killed; default 60 s.
    #[serde(default)]
    pub grace_ms: Option<u64>,
    /// Kill the VMM at once; disks may need a journal replay.
    #[serde(default)]
    pub force: bool,
}

/// Body of `PATCH /v1/vms/{vm}`: what is to be otherwise; what is not said stays. A VM on the
/// host's bridge follows at once.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ChangeVm {
    /// Whether the guest may reach the network outside.
    #[serde(default)]
    pub nat: Option<bool>,
    /// Whether that includes private networks; `nat: false` takes it away too.
    #[serde(default)]
    pub allow_lan: Option<bool>,
    /// The group to be in; an empty text is none.
    #[serde(default)]
    pub group: Option<String>,
    /// Bytes a second of the network card, each way; `null` for no limit.
    #[serde(default, deserialize_with = "given", skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<u64>)]
    pub net_bandwidth: Option<Option<BytesPerSecond>>,
    /// Packets a second of the network card, each way; `null` for no limit.
    #[serde(default, deserialize_with = "given", skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<u32>)]
    pub net_packets: Option<Option<OpsPerSecond>>,
    /// The workspace that the client has put into the VM.
    #[serde(default)]
    pub workspace: Option<Workspace>,
}

/// Body of `POST /v1/vms/{vm}/rename`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RenameVm {
    /// The name it is to have.
    #[schema(value_type = String)]
    pub name: VmName,
}

/// Body of `POST /v1/vms/{vm}/ports`: what is published from now on, and what no longer.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ChangePorts {
    /// `[HOST_IP:]HOST:GUEST[/udp]`.
    #[serde(default)]
    #[schema(value_type = Vec<String>)]
    pub publish: Vec<Publication>,
    /// `HOST[/udp]`, or as it was published.
    #[serde(default)]
    #[schema(value_type = Vec<String>)]
    pub unpublish: Vec<PublishedPort>,
}

/// Answer of `GET /v1/vms/{vm}/ports`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct VmPorts {
    /// What is published, open or not.
    pub published: Vec<PortPublished>,
    /// What the guest listens on; none where it does not run or does not answer.
    #[serde(default)]
    pub listening: Option<Vec<GuestPort>>,
    /// Why the guest did not say, or what keeps ports from being open.
    #[serde(default)]
    pub problem: Option<String>,
}

/// A published port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct PortPublished {
    /// As it was asked for.
    #[schema(value_type = String)]
    pub publication: Publication,
    /// The host's address and port while it is open: 0 has become a number.
    #[serde(default)]
    #[schema(value_type = Option<String>)]
    pub address: Option<std::net::SocketAddr>,
}

/// A socket of the guest's that accepts connections or datagrams.
#[derive(
    Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, utoipa::ToSchema,
)]
pub struct GuestPort {
    /// The port.
    pub port: u16,
    /// `tcp` or `udp`.
    #[schema(value_type = String)]
    pub protocol: PortProtocol,
    /// The guest's address.
    #[schema(value_type = String)]
    pub address: std::net::IpAddr,
    /// The name of a process that has it, printable.
    #[serde(default)]
    pub process: Option<String>,
}

/// Body of `POST /v1/vms/{vm}/kill`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct KillVm {
    /// TERM KILL INT HUP QUIT USR1 USR2 or ABRT, with or without SIG.
    pub signal: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_that_is_null_is_told_from_one_that_is_not_there() {
        let parse = |text: &str| serde_json::from_str::<SetVm>(text).unwrap();
        assert_eq!(parse("{}"), SetVm::default());
        let removed = parse("{\"disk_bandwidth\":null,\"disk_ops\":100}");
        assert_eq!(removed.disk_bandwidth, Some(None));
        assert_eq!(removed.disk_ops, Some(Some(100.try_into().unwrap())));
        assert_eq!(parse(&serde_json::to_string(&removed).unwrap()), removed);
        for bad in ["{\"disk_ops\":1}", "{\"cpus\":1}", "{\"memory_mib\":1}", "1"] {
            assert!(serde_json::from_str::<SetVm>(bad).is_err(), "{bad}");
        }
    }
}
