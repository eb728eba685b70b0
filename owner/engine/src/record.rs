//! What is recorded of a VM, in the store and beside its disks.

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use banger_daemon_api::error::ApiError;
use banger_daemon_api::vm::{MainExit, MainOptions, VmRuntime, VmSpec, VmState, Workspace};
use banger_types::{ImageName, KernelName, LeaseId, VmId, VmName};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::main_process::Programs;
use crate::seams::{Acceleration, DiskImage, Guest, VmmIdentity, VmmKind};

/// A VM's row in the store. Fields are only ever added, with a default.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct VmRecord {
    pub(crate) id: VmId,
    pub(crate) name: VmName,
    pub(crate) state: VmState,
    /// Whether its creation has ended well: until then a restart of the daemon removes it.
    pub(crate) complete: bool,
    pub(crate) image: ImageName,
    pub(crate) kernel: KernelName,
    pub(crate) spec: VmSpec,
    #[serde(default)]
    pub(crate) lease: Option<LeaseId>,
    #[serde(default)]
    pub(crate) workspace: Option<Workspace>,
    /// What the user wants to be run; counts when the VM is made.
    #[serde(default)]
    pub(crate) main_options: MainOptions,
    /// What is run, decided when the VM is made.
    #[serde(default)]
    pub(crate) programs: Programs,
    /// How the main process ended the last time.
    #[serde(default)]
    pub(crate) main_exit: Option<MainExit>,
    /// Its disks, once they exist.
    #[serde(default)]
    pub(crate) disks: Option<Disks>,
    /// Which of the subnet's addresses is its own, counted from 0.
    #[serde(default)]
    pub(crate) address_number: Option<u32>,
    /// Its VMM, while it runs.
    #[serde(default)]
    pub(crate) running: Option<Running>,
    /// Why what its last VMM was given could not all be taken back. While it is there, something may
    /// be on the host, and is tried again.
    #[serde(default)]
    pub(crate) leftovers: Option<ApiError>,
    #[serde(default)]
    pub(crate) last_error: Option<ApiError>,
    #[serde(default)]
    pub(crate) notes: BTreeMap<String, String>,
    pub(crate) created_at: Timestamp,
    pub(crate) updated_at: Timestamp,
}

impl VmRecord {
    /// The VM as the network knows it.
    pub(crate) fn guest(&self, address: Option<std::net::Ipv4Addr>) -> Guest {
        Guest {
            vm: self.id.clone(),
            name: self.name.clone(),
            address,
            nat: self.spec.nat,
            allow_lan: self.spec.nat && self.spec.allow_lan,
            group: self.spec.group.clone(),
        }
    }
}

/// The disks of a VM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Disks {
    pub(crate) root: DiskImage,
    pub(crate) root_uuid: Uuid,
    pub(crate) work: DiskImage,
    pub(crate) work_uuid: Uuid,
}

/// What is true while the VMM runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Running {
    pub(crate) identity: VmmIdentity,
    pub(crate) started_at: Timestamp,
    #[serde(default)]
    pub(crate) boot_id: Option<String>,
    #[serde(default)]
    pub(crate) kernel_release: Option<String>,
    #[serde(default)]
    pub(crate) agent_version: Option<String>,
    #[serde(default)]
    pub(crate) guest_ip: Option<std::net::Ipv4Addr>,
    /// Whether the address is on the host's bridge.
    #[serde(default)]
    pub(crate) on_bridge: bool,
}

impl Running {
    pub(crate) fn new(identity: VmmIdentity) -> Self {
        Self {
            identity,
            started_at: Timestamp::now(),
            boot_id: None,
            kernel_release: None,
            agent_version: None,
            guest_ip: None,
            on_bridge: false,
        }
    }

    pub(crate) fn shown(&self) -> VmRuntime {
        VmRuntime {
            pid: self.identity.pid,
            vmm: vmm_name(self.identity.kind).to_owned(),
            acceleration: acceleration_name(self.identity.acceleration).to_owned(),
            boot_id: self.boot_id.clone(),
            kernel_release: self.kernel_release.clone(),
            agent_version: self.agent_version.clone(),
            guest_ip: self.guest_ip,
            started_at: self.started_at,
        }
    }
}

/// Returns a VMM's name as users write it.
pub(crate) const fn vmm_name(kind: VmmKind) -> &'static str {
    match kind {
        VmmKind::Firecracker => "firecracker",
        VmmKind::Qemu => "qemu",
    }
}

/// Returns an acceleration's name as users read it.
pub(crate) const fn acceleration_name(acceleration: Acceleration) -> &'static str {
    match acceleration {
        Acceleration::Kvm => "kvm",
        Acceleration::Tcg => "tcg",
    }
}

/// `handles.json`: on disk before the guest's first instruction, so that a VMM can be found again
/// whatever becomes of the store.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Handles {
    pub(crate) vm: VmId,
    pub(crate) identity: VmmIdentity,
    pub(crate) disks: Disks,
    #[serde(default)]
    pub(crate) guest_ip: Option<std::net::Ipv4Addr>,
    /// Whether the address is on the host's bridge.
    #[serde(default)]
    pub(crate) on_bridge: bool,
}

/// A `handles.json` larger than this is not ours.
const MAX_HANDLES: u64 = 64 * 1024;

impl Handles {
    /// Writes the file in one step. It need not survive a power cut, which no VMM survives either.
    pub(crate) fn write(&self, path: &Path) -> std::io::Result<()> {
        let temporary = path.with_extension("json.new");
        let text = serde_json::to_vec(self)?;
        let written = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&temporary)
            .and_then(|mut file| file.write_all(&text))
            .and_then(|()| std::fs::rename(&temporary, path));
        if written.is_err() {
            let _ = std::fs::remove_file(&temporary);
        }
        written
    }

    /// Reads the file of VM `vm`: `Ok(None)` where there is none, an error in words where it is
    /// damaged or another VM's.
    pub(crate) fn read(path: &Path, vm: &VmId) -> Result<Option<Self>, String> {
        let mut text = Vec::new();
        let read = std::fs::File::open(path)
            .and_then(|file| file.take(MAX_HANDLES).read_to_end(&mut text));
        match read {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error.to_string()),
            Ok(_) => {}
        }
        let handles: Self = serde_json::from_slice(&text).map_err(|error| error.to_string())?;
        if handles.vm == *vm { Ok(Some(handles)) } else { Err("it is another VM's".to_owned()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::seams::DiskFormat;

    fn handles() -> Handles {
        let image = |name: &str| DiskImage {
            path: name.into(),
            format: DiskFormat::Raw,
            kind: "raw".to_owned(),
            base: None,
        };
        Handles {
            vm: VmId::random(),
            identity: VmmIdentity {
                kind: VmmKind::Qemu,
                acceleration: Acceleration::Tcg,
                pid: 7,
                start_time: 8,
                host_boot_id: "x".to_owned(),
            },
            disks: Disks {
                root: image("root"),
                root_uuid: Uuid::from_u128(1),
                work: image("work"),
                work_uuid: Uuid::from_u128(2),
            },
            guest_ip: Some([172, 16, 0, 2].into()),
            on_bridge: true,
        }
    }

    #[test]
    fn handles_are_read_back_and_damage_is_told_from_absence() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("handles.json");
        let handles = handles();
        assert_eq!(Handles::read(&path, &handles.vm), Ok(None));
        handles.write(&path).unwrap();
        assert_eq!(Handles::read(&path, &handles.vm), Ok(Some(handles.clone())));
        assert!(Handles::read(&path, &VmId::random()).is_err());
        for damage in ["", "{", "[]", "{\"vm\":\"x\"}"] {
            std::fs::write(&path, damage).unwrap();
            assert!(Handles::read(&path, &handles.vm).is_err(), "{damage}");
        }
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
