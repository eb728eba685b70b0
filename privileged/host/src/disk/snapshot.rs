//! Copy-on-write disks: device-mapper `snapshot` targets over two loop devices (Linux
//! `Documentation/admin-guide/device-mapper/snapshot.rst`).
//!
//! Nothing outlives a helper that is killed but what its name finds again. The loop devices clear
//! themselves when nobody has them open: until the table is loaded only the helper has, from then
//! on only the device-mapper. So a kill before the table leaves at most a device of that name with
//! nothing in it, a kill after it a device that holds its loop devices; removing the name frees
//! all. The record is written between the two, when the name is won and nothing holds the loops.

use std::io::{ErrorKind, Seek, SeekFrom};
use std::time::{Duration, Instant};

use banger_gates::request::Snapshot;
use banger_gates::{DmDevice, DmName, Name, Refusal, SnapshotParts};
use banger_helper_api::SnapshotHandles;
use banger_privileged_sys::device_mapper::{Device, DeviceMapper, Target};
use banger_privileged_sys::loop_device::LoopDevice;
use serde::{Deserialize, Serialize};

use super::loops::{LoopRecord, attach, identity};
use crate::{During, Host, HostError, Result};

/// The kind of the records.
pub(super) const KIND: &str = "snapshot";
/// In sectors of 512 bytes.
const CHUNK: u32 = 8;
const SECTOR: u64 = 512;
/// How long a device may be in use that should not be: udev opens each new one for a moment.
const BUSY: Duration = Duration::from_secs(5);
const PAUSE: Duration = Duration::from_millis(50);

/// The loop devices of a snapshot that the helper made.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct SnapshotRecord {
    pub(super) loops: Vec<LoopRecord>,
}

/// Opens the device-mapper; none where the kernel has none, and so none of its devices.
fn mapper() -> Result<Option<DeviceMapper>> {
    DeviceMapper::open().during("use", "the device-mapper")
}

impl Host {
    /// `priv.create_dm_snapshot`: a device that reads the image and keeps what is written in the
    /// cow file, persistently, in chunks of 8 sectors. udev makes its link in `/dev/mapper`.
    ///
    /// # Errors
    /// Refused: files that are not the owner's, a cow file with more than one name, a file that
    /// another loop device writes to, a name that is taken.
    pub fn create_dm_snapshot(&self, grant: &Snapshot) -> Result<SnapshotHandles> {
        let image = self.state.open_file("rootfs_path", &grant.image, false)?;
        let cow = self.state.open_file("cow_path", &grant.cow, true)?;
        let name = grant.name.as_str();
        let _claim = self.claim("cow_path", identity(&cow)?)?;
        let base_loop = attach("rootfs_path", &image, true)?;
        // Who comes later sees the loop device; who came before has written down what it uses.
        let machines = self.machines();
        self.check_unused("rootfs_path", (identity(&image)?, true), &[])?;
        drop(machines);
        let cow_loop = attach("cow_path", &cow, false)?;
        let length = base_loop.device().seek(SeekFrom::End(0));
        let length = length.during("measure", "the image")? / SECTOR;
        Refusal::when(length == 0, "rootfs_path", "an empty file")?;
        let loops = vec![LoopRecord::of(&base_loop, &image)?, LoopRecord::of(&cow_loop, &cow)?];
        let number = |device: &LoopDevice| {
            let number = device.device_number().during("measure", "a loop")?;
            Ok::<_, HostError>(format!("{}:{}", number.major, number.minor))
        };
        let parameters = format!("{} {} P {CHUNK}", number(&base_loop)?, number(&cow_loop)?);
        let target = Target { start: 0, length, kind: "snapshot".to_owned(), parameters };
        let mapper = mapper()?.ok_or("the kernel has none").during("use", "the device-mapper")?;
        match mapper.create(name) {
            Err(error) if error.kind() == ErrorKind::ResourceBusy => {
                return Err(Refusal::new("dm_name", "there is a device of this name").into());
            }
            created => drop(created.during("create", name)?),
        }
        let finish = || {
            self.records.put(KIND, name, &SnapshotRecord { loops })?;
            mapper.load(name, &target).during("create", name)?;
            mapper.resume(name).during("create", name)
        };
        if let Err(error) = finish() {
            return Err(match self.remove_dm_snapshot(&grant.name) {
                Ok(()) => error,
                Err(undo) => HostError::of("create", name)(format!("{error:?}, and then {undo:?}")),
            });
        }
        Ok(SnapshotHandles {
            base_loop: base_loop.path().display().to_string(),
            cow_loop: cow_loop.path().display().to_string(),
            dm_name: name.to_owned(),
            dm_dev: format!("/dev/mapper/{name}"),
        })
    }

    /// `priv.remove_dm_snapshot`: ends a device; its loop devices clear themselves. One that is not
    /// there is no failure.
    ///
    /// # Errors
    /// The device is in use, five seconds long, or a machine has it that is not cleaned up.
    pub fn remove_dm_snapshot(&self, name: &DmName) -> Result<()> {
        let (name, mapper) = (name.as_str(), mapper()?);
        let found = mapper.as_ref().map(|mapper| mapper.find(name)).transpose();
        // A jail has a device by its number, which is another's once this one is gone.
        let number = found.during("look at", name)?.flatten().map(|found| number_of(&found));
        let _claim = number.map(|number| self.claim("dm_name", (number, 0))).transpose()?;
        let end = Instant::now() + BUSY;
        while let Some(Err(error)) = mapper.as_ref().map(|mapper| mapper.remove(name)) {
            if error.kind() != ErrorKind::ResourceBusy || Instant::now() >= end {
                return Err(HostError::of("remove", name)(error));
            }
            std::thread::sleep(PAUSE);
        }
        self.records.remove(KIND, name)
    }

    /// `priv.cleanup_dm_snapshot`: ends the device, then takes the loop devices from their files.
    /// What is not there is no failure.
    ///
    /// # Errors
    /// A loop device of another's file (refused, before anything is changed); a device in use.
    pub fn cleanup_dm_snapshot(&self, parts: &SnapshotParts) -> Result<()> {
        let open = |parameter, name: Option<_>| {
            name.map_or(Ok(None), |name| self.open_detachable(parameter, name))
        };
        let loops = [open("cow_loop", parts.cow_loop)?, open("base_loop", parts.base_loop)?];
        if let Some(name) = &parts.dm {
            self.remove_dm_snapshot(name)?;
        }
        for device in loops.iter().flatten() {
            device.detach().during("detach", device.path().display())?;
        }
        Ok(())
    }

    /// The kernel's number of a snapshot; one that nobody has open if `is_idle`.
    ///
    /// # Errors
    /// Refused: no such device, one that is no snapshot, one whose cow file was full, one in use.
    pub(crate) fn device_number(
        &self,
        parameter: Name,
        device: &DmDevice,
        is_idle: bool,
    ) -> Result<u64> {
        let end = Instant::now() + BUSY;
        loop {
            let found = find_snapshot(parameter, device)?;
            if !is_idle || found.users == 0 {
                return Ok(number_of(&found));
            }
            Refusal::when(Instant::now() >= end, parameter, "the device is in use")?;
            std::thread::sleep(PAUSE);
        }
    }
}

fn number_of(device: &Device) -> u64 {
    rustix::fs::makedev(device.number.major, device.number.minor)
}

fn find_snapshot(parameter: Name, device: &DmDevice) -> Result<Device> {
    let find = |mapper: DeviceMapper| mapper.find(device.name().as_str());
    let found = mapper()?.map(find).transpose().during("look at", device.path())?.flatten();
    let found = found.ok_or_else(|| Refusal::new(parameter, "no such device"))?;
    let target = match found.targets.as_slice() {
        [target] if target.kind == "snapshot" => target,
        _ => return Err(Refusal::new(parameter, "not a snapshot").into()),
    };
    // Used and all sectors, or a word: `Invalid`, `Overflow`.
    let reason = format!("the snapshot is broken: {}", target.parameters);
    Refusal::when(!target.parameters.contains('/'), parameter, reason)?;
    Ok(found)
}
