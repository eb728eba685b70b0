//! Grants of the methods on Firecracker and its jail.

use std::collections::HashSet;

use banger_helper_api::{
    Balloon, CleanupJailerChrootParams, Drive, LaunchFirecrackerParams, Limits, RateLimiter,
    ResolveFirecrackerBinaryParams,
};

use super::Volume;
use crate::name::given;
use crate::{
    ContextId, DriveId, JailId, JailRoot, KernelArguments, MacAddress, ManagedPath, MemoryMib,
    NetworkConfig, Policy, Refusal, Result, Runtime, State, TapName, VcpuCount, VmmKind, VmmPath,
};

/// A machine to launch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Launch {
    /// The VMM.
    pub firecracker: VmmPath,
    /// What locks it in.
    pub jailer: VmmPath,
    /// The VM.
    pub id: JailId,
    /// Where a link to the API socket is put.
    pub api_socket: ManagedPath<Runtime>,
    /// Where the serial console goes.
    pub log: ManagedPath<State>,
    /// Where metrics would go; nothing writes there, and what lies there is checked as a log is.
    pub metrics: Option<ManagedPath<State>>,
    /// The kernel.
    pub kernel: ManagedPath<State>,
    /// The initrd.
    pub initrd: Option<ManagedPath<State>>,
    /// The kernel's command line.
    pub arguments: KernelArguments,
    /// The disks.
    pub disks: Vec<Disk>,
    /// The tap and the machine's MAC on it.
    pub tap: Option<(TapName, Option<MacAddress>)>,
    /// The vsock's number and where a link to its socket is put.
    pub vsock: Option<(ContextId, ManagedPath<Runtime>)>,
    /// Virtual CPUs.
    pub vcpus: VcpuCount,
    /// Memory.
    pub memory: MemoryMib,
    /// A balloon device.
    pub balloon: Option<Balloon>,
    /// Whether it has an entropy device.
    pub has_entropy: bool,
    /// What its cgroup allows.
    pub limits: Limits,
}

/// A disk of a machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Disk {
    /// Its id.
    pub id: DriveId,
    /// What it is made of.
    pub source: Volume,
    /// Whether the machine may only read it.
    pub is_read_only: bool,
    /// Whether it holds the root file system.
    pub is_root: bool,
    /// How fast it may be.
    pub rate_limiter: Option<RateLimiter>,
}

/// Firecracker has 19 interrupts for virtio devices without PCI; four are for other devices.
const MOST_DISKS: usize = 15;

impl Disk {
    fn parse(drive: Drive, policy: &Policy) -> Result<Self> {
        let id = DriveId::parse("drives.id", &drive.id)?;
        let is_other_device = drive.path.starts_with("/dev/") && !drive.is_root;
        let rule = "a snapshot as another than the root disk";
        Refusal::when(is_other_device, "drives.path", rule)?;
        let source = Volume::parse("drives.path", &drive.path, policy)?;
        let rate_limiter = drive.rate_limiter;
        let (is_read_only, is_root) = (drive.read_only, drive.is_root);
        Ok(Self { id, source, is_read_only, is_root, rate_limiter })
    }
}

fn disks(drives: Vec<Drive>, policy: &Policy) -> Result<Vec<Disk>> {
    Refusal::when(drives.len() > MOST_DISKS, "drives", format!("more than {MOST_DISKS} drives"))?;
    let disks: Vec<Disk> =
        drives.into_iter().map(|drive| Disk::parse(drive, policy)).collect::<Result<_, _>>()?;
    let mut ids = HashSet::new();
    let rule = "an id twice";
    Refusal::when(!disks.iter().all(|disk| ids.insert(disk.id.as_str())), "drives.id", rule)?;
    let rule = "more than one root disk";
    Refusal::when(disks.iter().filter(|disk| disk.is_root).count() > 1, "drives.is_root", rule)?;
    Ok(disks)
}

/// The gate of `priv.resolve_firecracker_binary`: the places to look at, in order.
///
/// # Errors
/// The rule of [`VmmPath`] where a path is given.
pub fn resolve_firecracker_binary(
    params: &ResolveFirecrackerBinaryParams,
    policy: &Policy,
) -> Result<Vec<VmmPath>> {
    if params.requested.is_empty() {
        return Ok(VmmPath::candidates(VmmKind::Firecracker, policy));
    }
    VmmPath::parse("requested", &params.requested, VmmKind::Firecracker, policy)
        .map(|path| vec![path])
}

/// The gate of `priv.launch_firecracker`.
///
/// # Errors
/// The rules of the types; no jail; another jail directory, uid or gid than the helper's; limits of
/// nothing.
pub fn launch_firecracker(params: LaunchFirecrackerParams, policy: &Policy) -> Result<Launch> {
    let api_socket = ManagedPath::parse("socket_path", &params.socket_path, policy)?;
    let vsock = given(&params.vsock_path, |path| {
        let cid = ContextId::parse("vsock_cid", params.vsock_cid)?;
        Ok((cid, ManagedPath::parse("vsock_path", path, policy)?))
    })?;
    let rule = "the same path as socket_path";
    Refusal::when(vsock.as_ref().is_some_and(|(_, path)| *path == api_socket), "vsock_path", rule)?;
    let log = ManagedPath::parse("log_path", &params.log_path, policy)?;
    let below = |name, text| given(text, |text| ManagedPath::parse(name, text, policy));
    let metrics = below("metrics_path", &params.metrics_path)?;
    let kernel = ManagedPath::parse("kernel_image_path", &params.kernel_image_path, policy)?;
    let initrd = below("initrd_path", &params.initrd_path)?;
    let mac = params.guest_mac.map(|text| MacAddress::parse("guest_mac", &text)).transpose()?;
    let tap = given(&params.tap_device, |name| TapName::parse("tap_device", name))?;
    let is_broken = tap.is_none() && mac.is_some();
    Refusal::when(is_broken, "guest_mac", "of no use without tap_device")?;
    let tap = tap.map(|tap| (tap, mac));
    if let Some(network) = &params.network {
        NetworkConfig::parse(network)?;
    }
    let firecracker =
        VmmPath::parse("binary_path", &params.binary_path, VmmKind::Firecracker, policy)?;
    let rule = "missing: Firecracker runs in a jail or not at all";
    let jail = params.jailer.ok_or_else(|| Refusal::new("jailer", rule))?;
    let jailer = VmmPath::parse("jailer.binary", &jail.binary, VmmKind::Jailer, policy)?;
    let is_broken = policy.jails.as_os_str() != jail.chroot_base_dir.as_str();
    Refusal::when(is_broken, "jailer.chroot_base_dir", "not the helper's jail directory")?;
    Refusal::when(jail.uid != policy.owner.uid(), "jailer.uid", "not the owner's")?;
    Refusal::when(jail.gid != policy.owner.gid(), "jailer.gid", "not the owner's")?;
    let limits = params.limits.unwrap_or_default();
    check_limits(&limits, params.memory_mib)?;
    let memory = MemoryMib::parse("memory_mib", params.memory_mib, policy.host_memory_mib)?;
    let is_broken = params.balloon.is_some_and(|balloon| balloon.amount_mib > memory.get());
    Refusal::when(is_broken, "balloon.amount_mib", "more than the machine's memory")?;
    Ok(Launch {
        firecracker,
        jailer,
        id: JailId::parse("vm_id", &params.vm_id)?,
        api_socket,
        log,
        metrics,
        kernel,
        initrd,
        arguments: KernelArguments::parse("kernel_args", &params.kernel_args)?,
        disks: disks(params.drives, policy)?,
        tap,
        vsock,
        vcpus: VcpuCount::parse("vcpu_count", params.vcpu_count)?,
        memory,
        balloon: params.balloon,
        has_entropy: params.entropy,
        limits,
    })
}

fn check_limits(limits: &Limits, memory_mib: u64) -> Result<()> {
    let check = |parameter, number: Option<u64>, least: u64, most: u64| {
        let is_broken = number.is_some_and(|number| !(least..=most).contains(&number));
        Refusal::when(is_broken, parameter, format!("from {least} to {most}"))
    };
    check("limits.memory_max_mib", limits.memory_max_mib, memory_mib, u64::MAX)?;
    check("limits.cpu_percent", limits.cpu_percent.map(u64::from), 1, 3200)?;
    check("limits.pids_max", limits.pids_max.map(u64::from), 1, 4096)?;
    check("limits.file_size", limits.file_size, 1, u64::MAX)?;
    check("limits.open_files", limits.open_files, 64, 65_536)
}

/// The gate of `priv.cleanup_jailer_chroot`.
///
/// # Errors
/// The rule of [`JailRoot`].
pub fn cleanup_jailer_chroot(
    params: &CleanupJailerChrootParams,
    policy: &Policy,
) -> Result<JailRoot> {
    JailRoot::parse("chroot_root", &params.chroot_root, policy)
}
