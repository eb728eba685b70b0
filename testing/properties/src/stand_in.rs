//! A host that does nothing: it holds what it is granted against the rules, and remembers that it
//! was asked. It has the names and signatures of `banger_host`, which the helper's dispatch calls.

use std::cell::RefCell;
use std::os::fd::OwnedFd;
use std::path::PathBuf;

use banger_gates::request::{
    Bridge, Launch, Nat, ReadFile, ResolverRoute, Running, Snapshot, Tap, Volume, WriteFiles,
};
use banger_gates::{
    BridgeName, DmDevice, DmName, JailRoot, ManagedPath, NetworkConfig, Pid, Policy, Refusal,
    Runtime, Signal, SnapshotParts, State, TapName, VmmPath,
};
use banger_helper_api::{Method, SnapshotHandles};

use crate::rules;

/// Why something failed here: it never does, but the dispatch asks.
#[derive(Debug)]
pub enum HostError {
    /// By a gate.
    Refused(Refusal),
    /// By the host.
    Failed {},
}

impl From<Refusal> for HostError {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

/// Nothing of it is asked about here.
pub fn give_memory_back() {}

/// An error's words.
#[must_use]
pub fn chain(error: &HostError) -> String {
    format!("{error:?}")
}

/// What systemd-resolved was told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resolver {
    /// All.
    Told,
    /// Nothing.
    Absent,
}

/// The host.
#[derive(Debug)]
pub struct Host {
    policy: Policy,
    asked: RefCell<Vec<Method>>,
}

type Result<T> = std::result::Result<T, HostError>;

fn is_network(network: &NetworkConfig) -> bool {
    let (address, prefix) = (network.address().to_string(), network.prefix().to_string());
    rules::network(network.bridge().as_str(), &address, &prefix).is_some()
}

fn is_below<R>(path: &ManagedPath<R>) -> bool
where
    R: banger_gates::Root,
{
    let text = format!("/root/{}", path.relative().to_str().unwrap());
    rules::managed_path(&text, "/root").is_some()
}

fn is_volume(volume: &Volume) -> bool {
    match volume {
        Volume::File(path) => is_below(path),
        Volume::Device(device) => rules::dm_device(&device.path()),
    }
}

#[allow(clippy::unnecessary_wraps, reason = "the signatures are another's")]
impl Host {
    /// One for a policy.
    #[must_use]
    pub fn new(policy: Policy) -> Self {
        Self { policy, asked: RefCell::default() }
    }

    pub(crate) fn policy(&self) -> &Policy {
        &self.policy
    }

    /// What was asked for, in order.
    pub(crate) fn take_asked(&self) -> Vec<Method> {
        self.asked.take()
    }

    fn ask(&self, method: Method, is_good: bool) {
        assert!(is_good, "{method} is granted against its rules");
        self.asked.borrow_mut().push(method);
    }

    pub(crate) fn ensure_bridge(&self, bridge: &Bridge) -> Result<bool> {
        let is_port = bridge.dns_port.is_none_or(|port| (42_069..42_085).contains(&port));
        self.ask(Method::EnsureBridge, is_network(&bridge.network) && is_port);
        Ok(true)
    }

    pub(crate) fn create_tap(&self, tap: &Tap) -> Result<(bool, Option<OwnedFd>)> {
        let network = (u32::from(tap.network.address()), tap.network.prefix());
        let is_guest = tap.anti_spoof.is_none_or(|guest| {
            rules::guest(guest.ip.into(), network) && rules::mac_address(&guest.mac.to_string())
        });
        let is_group = tap
            .group
            .as_ref()
            .is_none_or(|group| rules::group_name(group.as_str()) && !tap.is_isolated);
        let is_good = is_network(&tap.network) && rules::tap_name(tap.name.as_str());
        self.ask(Method::CreateTap, is_good && is_guest && is_group);
        Ok((false, None))
    }

    pub(crate) fn delete_tap(&self, tap: &TapName) -> Result<bool> {
        self.ask(Method::DeleteTap, rules::tap_name(tap.as_str()));
        Ok(false)
    }

    pub(crate) fn sync_resolver_routing(&self, route: &ResolverRoute) -> Result<Resolver> {
        let is_good = rules::bridge_name(route.bridge.as_str())
            && rules::resolver_address(&route.server.to_string());
        self.ask(Method::SyncResolverRouting, is_good);
        Ok(Resolver::Told)
    }

    pub(crate) fn clear_resolver_routing(&self, bridge: &BridgeName) -> Result<Resolver> {
        self.ask(Method::ClearResolverRouting, rules::bridge_name(bridge.as_str()));
        Ok(Resolver::Absent)
    }

    pub(crate) fn ensure_nat(&self, nat: &Nat) -> Result<bool> {
        let is_good = rules::tap_name(nat.tap.as_str()) && (nat.is_enabled || !nat.allows_lan);
        self.ask(Method::EnsureNat, is_good);
        Ok(true)
    }

    pub(crate) fn create_dm_snapshot(&self, snapshot: &Snapshot) -> Result<SnapshotHandles> {
        let is_good = is_below(&snapshot.image)
            && is_below(&snapshot.cow)
            && snapshot.image != snapshot.cow
            && rules::dm_name(snapshot.name.as_str());
        self.ask(Method::CreateDmSnapshot, is_good);
        let none = String::new;
        Ok(SnapshotHandles { base_loop: none(), cow_loop: none(), dm_name: none(), dm_dev: none() })
    }

    pub(crate) fn cleanup_dm_snapshot(&self, parts: &SnapshotParts) -> Result<()> {
        let is_name = parts.dm.as_ref().is_none_or(|name| rules::dm_name(name.as_str()));
        let is_twice = parts.cow_loop.is_some() && parts.cow_loop == parts.base_loop;
        self.ask(Method::CleanupDmSnapshot, is_name && !is_twice);
        Ok(())
    }

    pub(crate) fn remove_dm_snapshot(&self, name: &DmName) -> Result<()> {
        self.ask(Method::RemoveDmSnapshot, rules::dm_name(name.as_str()));
        Ok(())
    }

    pub(crate) fn fsck_snapshot(&self, device: &DmDevice) -> Result<()> {
        self.ask(Method::FsckSnapshot, rules::dm_device(&device.path()));
        Ok(())
    }

    pub(crate) fn read_ext4_file(&self, read: &ReadFile) -> Result<Vec<u8>> {
        let is_good = is_volume(&read.image) && rules::guest_path(read.path.as_str());
        self.ask(Method::ReadExt4File, is_good);
        Ok(vec![0, 255])
    }

    pub(crate) fn write_ext4_files(&self, write: &WriteFiles) -> Result<()> {
        let is_file = |file: &banger_gates::request::GuestFile| {
            rules::guest_path(file.path.as_str()) && (1..0o10_000).contains(&file.mode)
        };
        let files = &write.files;
        let is_apart = files.iter().enumerate().all(|(at, file)| {
            let folder = format!("{}/", file.path.as_str());
            let mut others = files[at + 1..].iter().map(|other| other.path.as_str());
            others.all(|other| {
                other != file.path.as_str()
                    && !other.starts_with(&folder)
                    && !file.path.as_str().starts_with(&format!("{other}/"))
            })
        });
        let is_good = is_volume(&write.image) && files.iter().all(is_file) && is_apart;
        self.ask(Method::WriteExt4Files, is_good);
        Ok(())
    }

    pub(crate) fn resolve_firecracker_binary(&self, places: &[VmmPath]) -> Result<PathBuf> {
        let is_good =
            |place: &VmmPath| rules::vmm_path(place.path().to_str().unwrap(), "firecracker");
        self.ask(
            Method::ResolveFirecrackerBinary,
            !places.is_empty() && places.iter().all(is_good),
        );
        Ok(places[0].path().to_owned())
    }

    pub(crate) fn launch_firecracker(&self, launch: &Launch) -> Result<u32> {
        let program = |path: &VmmPath, name| rules::vmm_path(path.path().to_str().unwrap(), name);
        let mut ids: Vec<&str> = launch.disks.iter().map(|disk| disk.id.as_str()).collect();
        ids.sort_unstable();
        let is_disks = launch.disks.len() <= 15
            && ids.windows(2).all(|pair| pair[0] != pair[1])
            && launch.disks.iter().filter(|disk| disk.is_root).count() <= 1
            && launch.disks.iter().all(|disk| {
                let is_root_or_file = disk.is_root || matches!(disk.source, Volume::File(_));
                rules::drive_id(disk.id.as_str()) && is_volume(&disk.source) && is_root_or_file
            });
        let state: Vec<&ManagedPath<State>> =
            [&launch.log, &launch.kernel].into_iter().chain(&launch.initrd).collect();
        let is_vsock = launch.vsock.as_ref().is_none_or(|(id, path)| {
            id.get() > 2 && id.get() < u32::MAX && is_below(path) && *path != launch.api_socket
        });
        let is_tap = launch.tap.as_ref().is_none_or(|(tap, mac)| {
            let is_mac = mac.is_none_or(|mac| rules::mac_address(&mac.to_string()));
            rules::tap_name(tap.as_str()) && is_mac
        });
        let limits = &launch.limits;
        let is_limits = limits.memory_max_mib.is_none_or(|most| most >= launch.memory.get())
            && limits.cpu_percent.is_none_or(|percent| percent > 0 && percent <= 3200)
            && limits.pids_max.is_none_or(|most| most > 0 && most <= 4096)
            && limits.file_size != Some(0)
            && limits.open_files.is_none_or(|most| most > 63 && most <= 65_536);
        let is_sized = (1..33).contains(&launch.vcpus.get())
            && (128..4097).contains(&launch.memory.get())
            && launch.balloon.is_none_or(|balloon| balloon.amount_mib <= launch.memory.get());
        let is_good = program(&launch.firecracker, "firecracker")
            && program(&launch.jailer, "jailer")
            && rules::jail_id(launch.id.as_str())
            && is_below(&launch.api_socket)
            && state.into_iter().all(is_below)
            && rules::kernel_arguments(launch.arguments.as_str());
        let is_all = is_good && is_disks && is_vsock && is_tap && is_limits && is_sized;
        self.ask(Method::LaunchFirecracker, is_all);
        Ok(7)
    }

    pub(crate) fn ensure_socket_access(&self, path: &ManagedPath<Runtime>) -> Result<()> {
        self.ask(Method::EnsureSocketAccess, is_below(path));
        Ok(())
    }

    pub(crate) fn find_firecracker_pid(&self, path: &ManagedPath<Runtime>) -> Result<u32> {
        self.ask(Method::FindFirecrackerPid, is_below(path));
        Ok(7)
    }

    pub(crate) fn kill_process(&self, pid: &Pid) -> Result<()> {
        self.ask(Method::KillProcess, pid.get() > 1 && pid.get() != 77);
        Ok(())
    }

    pub(crate) fn signal_process(&self, (pid, signal): &(Pid, Signal)) -> Result<()> {
        let is_known = [15, 9, 2, 1, 3, 10, 12, 6].contains(&(*signal as i32));
        self.ask(Method::SignalProcess, pid.get() > 1 && pid.get() != 77 && is_known);
        Ok(())
    }

    pub(crate) fn process_running(&self, asked: &Running) -> Result<bool> {
        self.ask(Method::ProcessRunning, asked.pid.get() > 1 && is_below(&asked.api_socket));
        Ok(true)
    }

    pub(crate) fn cleanup_jailer_chroot(&self, root: &JailRoot) -> Result<()> {
        self.ask(Method::CleanupJailerChroot, rules::jail_id(root.id().as_str()));
        Ok(())
    }
}
