//! Copy-on-write disks: device-mapper `snapshot` targets over two loop devices (Linux
//! `Documentation/admin-guide/device-mapper/snapshot.rst`).
//!
//! Nothing outlives a helper that is killed but what its name finds again. The loop devices clear
//! themselves when nobody has them open: until the table is loaded only the helper has, from then
//! on only the device-mapper. So a kill before the table leaves at most a device of that name with
//! nothing in it, a kill after it a device that holds its loop devices; removing the name frees
//! all. The record is written between the two, when the name is won and nothing holds the loops.
//!
//! A device is its owner's by its UUID, and its number is nobody's before or after: who kept a node
//! of it by another name or descriptor would have what gets the number next, and that is root's if
//! the kernel may choose. [`Host::next_minor`] counts on over restarts of helper and host.

use std::fs::File;
use std::io::{self, ErrorKind, Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use banger_gates::request::Snapshot;
use banger_gates::{DmDevice, DmName, Name, Refusal, SnapshotParts};
use banger_helper_api::SnapshotHandles;
use banger_privileged_sys::device_mapper::{Device, DeviceMapper, Target};
use banger_privileged_sys::loop_device::LoopDevice;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::loops::{LoopRecord, attach, identity};
use crate::{During, Host, HostError, Result, check_room};

/// The kind of the records.
pub(super) const KIND: &str = "snapshot";
/// In sectors of 512 bytes.
const CHUNK: u32 = 8;
const CHUNK_RULE: &str =
    "it has chunks of another size than 8 sectors, which take the kernel's memory";
/// `SnAp`, with which a file for changes begins once it was used (Linux
/// `drivers/md/dm-snap-persistent.c`); the size of a chunk follows at byte 12.
const MAGIC: u32 = 0x7041_6e53;
const SECTOR: u64 = 512;
/// The minor numbers given (Linux `MINORBITS`: 20). The kernel gives the lowest that is free.
const MINORS: std::ops::Range<u32> = 1 << 19..1 << 20;
/// How many of them may be taken in a row.
const TRIES: u32 = 64;
/// How many snapshots an owner may have; each has two loop devices.
const MOST: usize = 256;
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
    /// another loop device writes to, a name that is taken, one snapshot too many.
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
        let measure =
            |it: &LoopDevice| it.device().seek(SeekFrom::End(0)).during("measure", "disk");
        let length = measure(&base_loop)?;
        Refusal::when(length < SECTOR, "rootfs_path", "an empty file")?;
        // Each chunk of the image is in it once, with 16 bytes about it; and there are headers. For
        // each that it says it has, the kernel takes memory that is counted as nobody's.
        let is_long = measure(&cow_loop)? > length + length / 128 + (2 << 20);
        Refusal::when(is_long, "cow_path", "longer than all of the image's changes")?;
        let loops = vec![LoopRecord::of(&base_loop, &image)?, LoopRecord::of(&cow_loop, &cow)?];
        let paths = (base_loop.path().display(), cow_loop.path().display());
        let parameters = format!("{} {} P {CHUNK}", paths.0, paths.1);
        let length = length / SECTOR;
        let target = Target { start: 0, length, kind: "snapshot".to_owned(), parameters };
        let mapper = mapper()?.ok_or("the kernel has none").during("use", "the device-mapper")?;
        let uuid = self.uuid(name);
        // One at a time, so that none comes between the count and the device, which is counted when it
        // has a table.
        let machines = self.machines();
        check_room("dm_name", self.count()?, MOST, "snapshots")?;
        let mut created = mapper.create(name, &uuid, self.next_minor()?);
        // A number that another has: the count was lost, or it is somebody's choice.
        let is_taken = |error: &io::Error| Errno::from_io_error(error) == Some(Errno::NXIO);
        let mut tries = 0..TRIES;
        while created.as_ref().is_err_and(is_taken) && tries.next().is_some() {
            created = mapper.create(name, &uuid, self.next_minor()?);
        }
        match created {
            Err(error) if error.kind() == ErrorKind::ResourceBusy => {
                return Err(Refusal::new("dm_name", "there is a device of this name").into());
            }
            created => drop(created.during("create", name)?),
        }
        let finish = || {
            self.records.put(KIND, name, &SnapshotRecord { loops })?;
            // The file can be changed until the kernel has read it.
            let refuse = |is_broken| Refusal::when(is_broken, "cow_path", CHUNK_RULE);
            refuse(chunk_of(&cow)?.is_some_and(|chunk| chunk != CHUNK))?;
            mapper.load(&uuid, &target).during("create", name)?;
            mapper.resume(&uuid).during("create", name)?;
            let made = mapper.find(&uuid, true).during("create", name)?;
            let made = made.ok_or("it is gone again").during("create", name)?;
            let taken = format!(" {CHUNK}");
            Ok(refuse(!made.targets.iter().all(|target| target.parameters.ends_with(&taken)))?)
        };
        let finished = finish();
        drop(machines);
        if let Err(error) = finished {
            return Err(match self.remove_dm_snapshot(&grant.name) {
                Ok(()) => error,
                Err(undo) => HostError::of("create", name)(format!("{error:?}, and then {undo:?}")),
            });
        }
        Ok(SnapshotHandles {
            base_loop: paths.0.to_string(),
            cow_loop: paths.1.to_string(),
            dm_name: name.to_owned(),
            dm_dev: format!("/dev/mapper/{name}"),
        })
    }

    /// `priv.remove_dm_snapshot`: ends a device; its loop devices clear themselves. One that is not
    /// there is no failure.
    ///
    /// # Errors
    /// The device is in use, five seconds long.
    pub fn remove_dm_snapshot(&self, name: &DmName) -> Result<()> {
        let (uuid, name, mapper) = (self.uuid(name.as_str()), name.as_str(), mapper()?);
        let end = Instant::now() + BUSY;
        while let Some(Err(error)) = mapper.as_ref().map(|mapper| mapper.remove(&uuid)) {
            if error.kind() != ErrorKind::ResourceBusy || Instant::now() >= end {
                return Err(HostError::of("remove", name)(error));
            }
            std::thread::sleep(PAUSE);
        }
        // One that udev has open at the moment goes another time.
        let _ = LoopDevice::end_unused();
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

    /// What the kernel knows a snapshot by: another owner's of the same name is another.
    fn uuid(&self, name: &str) -> String {
        format!("banger-{}-{name}", self.policy.owner.uid())
    }

    /// How many snapshots the owner has.
    fn count(&self) -> Result<usize> {
        let devices = std::fs::read_dir("/sys/block").during("list", "/sys/block")?.flatten();
        let uuids = devices.map(|it| std::fs::read_to_string(it.path().join("dm/uuid")));
        let own = self.uuid("");
        Ok(uuids.flatten().filter(|uuid| uuid.starts_with(&own)).count())
    }

    /// A minor number that no snapshot had before, of any owner, until all have been given.
    fn next_minor(&self) -> Result<u32> {
        let path = self.policy.jails.with_file_name("last-minor");
        let count = || -> io::Result<u32> {
            let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let file = File::from(rustix::fs::open(&path, flags, Mode::RUSR | Mode::WUSR)?);
            file.lock()?;
            let mut last = [0; 4];
            // A new one is empty.
            let _ = file.read_exact_at(&mut last, 0);
            let next = u32::from_le_bytes(last).checked_add(1);
            let next = next.filter(|next| MINORS.contains(next)).unwrap_or(MINORS.start);
            file.write_all_at(&next.to_le_bytes(), 0)?;
            file.sync_data()?;
            Ok(next)
        };
        count().during("count in", path.display())
    }

    /// The kernel's number of a snapshot; one that nobody has open if `is_idle`.
    ///
    /// # Errors
    /// Refused: no such device, one that is no snapshot, one whose cow file was full, one in use.
    pub(crate) fn device_number(&self, name: Name, it: &DmDevice, is_idle: bool) -> Result<u64> {
        let end = Instant::now() + BUSY;
        loop {
            let found = self.find_snapshot(name, it)?;
            if !is_idle || found.users == 0 {
                return Ok(found.number);
            }
            Refusal::when(Instant::now() >= end, name, "the device is in use")?;
            std::thread::sleep(PAUSE);
        }
    }

    fn find_snapshot(&self, parameter: Name, device: &DmDevice) -> Result<Device> {
        let find = |mapper: DeviceMapper| mapper.find(&self.uuid(device.name().as_str()), false);
        let found = mapper()?.map(find).transpose().during("look at", device.path())?.flatten();
        let found =
            found.ok_or_else(|| Refusal::new(parameter, "no such device of the owner's"))?;
        let target = match found.targets.as_slice() {
            [target] if target.kind == "snapshot" => target,
            _ => return Err(Refusal::new(parameter, "not a snapshot").into()),
        };
        // Used and all sectors, or a word: `Invalid`, `Overflow`.
        let reason = format!("the snapshot is broken: {}", target.parameters);
        Refusal::when(!target.parameters.contains('/'), parameter, reason)?;
        Ok(found)
    }
}

/// The size of a chunk that a file for changes says it has; the kernel believes it.
fn chunk_of(cow: &File) -> Result<Option<u32>> {
    let mut header = [0; 16];
    cow.read_exact_at(&mut header, 0).during("read", "the cow file")?;
    let [magic, .., chunk] = std::array::from_fn::<_, 4, _>(|at| {
        u32::from_le_bytes(std::array::from_fn(|byte| header[at * 4 + byte]))
    });
    Ok((magic == MAGIC).then_some(chunk))
}
