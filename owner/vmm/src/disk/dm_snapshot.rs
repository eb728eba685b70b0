//! A root disk as a device-mapper snapshot: the base is read through a loop device, what the guest
//! writes goes into a sparse file (Linux `Documentation/admin-guide/device-mapper/snapshot.rst`).
//!
//! The file is what lasts; the device exists only while a VMM may use it, and the root helper makes
//! and ends it. The device is as large as its base, so a new disk that is to be larger is one of another
//! kind. A disk that grows gets a base of its own beside its file: a clone or sparse copy of its
//! base with a hole behind. What the snapshot has written counts from the beginning, so it stays as it
//! is.

use std::fs::OpenOptions;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use banger_engine::seams::{DiskError, DiskFormat, DiskImage, DiskUsage, RootDisk};
use banger_helper_api::{CreateDmSnapshotParams, Empty, Method, SnapshotHandles};
use banger_helper_client::{CallError, HelperClient};
use banger_types::{DiskSize, VmId};
use tokio::sync::OnceCell;

use super::copy;
use super::file::{self, allocated, blocking, invalid, io_error};

const KIND: &str = "dm-snapshot";
const MIB: u64 = 1 << 20;
/// The folder of a trial, below the folder of the machines.
const TRIAL: &str = ".try-dm-snapshot";
/// Of what the helper's gate wants all names to begin with.
const NAME: &str = "fc-rootfs-";

/// Works on any file system, in no time, where the helper and device-mapper are.
#[derive(Clone, Debug)]
pub struct DmSnapshotDisk {
    helper: HelperClient,
    /// Whether a trial worked, once there was one.
    works: Arc<OnceCell<bool>>,
}

/// There where the kernel has device-mapper: a module that is not loaded has no devices.
const DEVICE_MAPPER: &str = "/sys/class/misc/device-mapper";

impl DmSnapshotDisk {
    /// Makes one over a helper.
    #[must_use]
    pub fn new(helper: HelperClient) -> Self {
        Self { helper, works: Arc::default() }
    }

    /// Makes a device and ends it again, which alone tells whether it works. What a daemon that was
    /// killed meanwhile left of its trial is ended first.
    async fn try_once(&self, disk_dir: &Path) -> Result<bool, DiskError> {
        const ACT: &str = "trying device-mapper in";
        let place = disk_dir.join(TRIAL);
        let io_failed = |source| io_error(ACT, &place, source);
        let name = trial_name(disk_dir).map_err(io_failed)?;
        if place.exists() {
            self.end_named(&name).await.map_err(|error| failed(ACT, &place, error))?;
            std::fs::remove_dir_all(&place).map_err(io_failed)?;
        }
        std::fs::create_dir(&place).map_err(io_failed)?;
        let (base, cow) = (place.join("base"), place.join("cow"));
        let outcome = async {
            for path in [&base, &cow] {
                let options = OpenOptions::new().write(true).create_new(true).clone();
                let made = options.open(path).and_then(|file| file.set_len(MIB));
                made.map_err(|source| io_error(ACT, path, source))?;
            }
            let made = self.create_device(&base, &cow, &name).await;
            match made {
                Ok(handles) => {
                    self.end_device(&handles).await.map_err(|error| failed(ACT, &cow, error))?;
                    Ok(true)
                }
                Err(CallError::Helper { error, .. }) => {
                    tracing::info!(reason = error.message, "device-mapper is not used");
                    Ok(false)
                }
                Err(error) => Err(failed(ACT, &cow, error)),
            }
        }
        .await;
        let removed = std::fs::remove_dir_all(&place);
        let works = outcome?;
        removed.map_err(io_failed)?;
        Ok(works)
    }

    async fn create_device(
        &self,
        base: &Path,
        cow: &Path,
        name: &str,
    ) -> Result<SnapshotHandles, CallError> {
        let params = CreateDmSnapshotParams {
            rootfs_path: base.display().to_string(),
            cow_path: cow.display().to_string(),
            dm_name: name.to_owned(),
        };
        self.helper.call(Method::CreateDmSnapshot, &params, "").await
    }

    /// Ends a device by its name alone: with it go its loop devices, whoever made them.
    async fn end_named(&self, name: &str) -> Result<(), CallError> {
        let handles = SnapshotHandles { dm_name: name.to_owned(), ..SnapshotHandles::default() };
        self.end_device(&handles).await
    }

    async fn end_device(&self, handles: &SnapshotHandles) -> Result<(), CallError> {
        self.helper.call::<_, Empty>(Method::CleanupDmSnapshot, handles, "").await.map(drop)
    }
}

/// The device of a folder's trial: of all daemons of a host, the one whose folder that is may use it.
fn trial_name(disk_dir: &Path) -> std::io::Result<String> {
    let found = std::fs::metadata(disk_dir)?;
    Ok(format!("{NAME}try-{:x}-{:x}", found.dev(), found.ino()))
}

fn failed(act: &'static str, path: &Path, error: CallError) -> DiskError {
    io_error(act, path, std::io::Error::other(error))
}

/// The length of a file that takes all of a device of `size` bytes: each chunk of 4 KiB has 16 bytes
/// of metadata, and there are some chunks of headers. A multiple of 1 MiB has a length of its own, by
/// which the size is known again.
fn cow_length(size: u64) -> u64 {
    size + size / 128 + MIB
}

/// The inverse of [`cow_length`], for multiples of 1 MiB.
fn device_size(cow_length: u64) -> Option<u64> {
    let size = cow_length.checked_sub(MIB)? / 129 * 128;
    (self::cow_length(size) == cow_length).then_some(size)
}

#[async_trait]
impl RootDisk for DmSnapshotDisk {
    fn kind(&self) -> &'static str {
        KIND
    }

    fn largest(&self, base_size: u64) -> Option<u64> {
        Some(base_size)
    }

    async fn usable(&self, base_dir: &Path, disk_dir: &Path) -> Result<bool, DiskError> {
        let device = |path: &Path| {
            std::fs::metadata(path)
                .map(|found| found.dev())
                .map_err(|source| io_error("looking at", path, source))
        };
        // The base is given another name beside the disk, below the state directory.
        if device(base_dir)? != device(disk_dir)? {
            return Ok(false);
        }
        self.works.get_or_try_init(|| self.try_once(disk_dir)).await.copied()
    }

    async fn create(
        &self,
        base: &Path,
        dir: &Path,
        stem: &str,
        size: DiskSize,
    ) -> Result<DiskImage, DiskError> {
        let path = dir.join(format!("{stem}.cow"));
        let base = base.to_owned();
        blocking(move |cancelled| {
            let opened = file::open_base(&base, size)?;
            let (current, requested) = (opened.size, size.bytes());
            if requested > current {
                return Err(invalid(&base, format!("has {current} bytes, and its snapshot too")));
            }
            file::make(&path, cancelled, |cow| {
                // A snapshot that is new begins with a chunk of zeros, as a hole does.
                cow.set_len(cow_length(current))
                    .map_err(|source| io_error("creating root disk", &path, source))
            })?;
            let kind = KIND.to_owned();
            Ok(DiskImage { path, format: DiskFormat::Raw, kind, base: Some(base) })
        })
        .await
    }

    async fn measure(&self, disk: &DiskImage) -> Result<DiskUsage, DiskError> {
        let path = disk.path.clone();
        blocking(move |_| {
            let found = std::fs::metadata(&path)
                .map_err(|source| io_error("measuring disk", &path, source))?;
            let size = device_size(found.len());
            let size = size.ok_or_else(|| invalid(&path, "is not what a snapshot writes to"))?;
            let used = allocated(&found);
            let base = std::fs::metadata(own_base(&path)).map_or(0, |base| allocated(&base));
            Ok(DiskUsage {
                size,
                allocated: used.saturating_add(base),
                // What is written is put one behind the other, so what the file takes is how far it is.
                fill_percent: Some(percent(used, found.len())),
            })
        })
        .await
    }

    fn most(&self, size: u64) -> u64 {
        cow_length(size)
    }

    async fn may_take(&self, disk: &DiskImage, size: u64) -> Result<u64, DiskError> {
        let usage = self.measure(disk).await?;
        let (path, base) = (disk.path.clone(), disk.base.clone());
        blocking(move |_| {
            let on_disk = |path: &Path| std::fs::metadata(path).ok().map(|found| allocated(&found));
            let own = on_disk(&own_base(&path));
            let written = usage.allocated.saturating_sub(own.unwrap_or(0));
            // A disk that grows gets a base of its own, which may be a copy.
            let copy = match (own, base) {
                (None, Some(base)) if size > usage.size => on_disk(&base).unwrap_or(0),
                _ => 0,
            };
            Ok(cow_length(size).saturating_sub(written).saturating_add(copy))
        })
        .await
    }

    async fn check(&self, disk: &DiskImage) -> Result<(), DiskError> {
        let path = disk.path.clone();
        blocking(move |_| check_header(&path)).await
    }

    async fn grow(&self, disk: &DiskImage, size: DiskSize) -> Result<bool, DiskError> {
        let (path, current) = (disk.path.clone(), self.measure(disk).await?.size);
        let requested = size.bytes();
        match requested.cmp(&current) {
            std::cmp::Ordering::Equal => return Ok(false),
            std::cmp::Ordering::Less => {
                return Err(DiskError::Shrink { path, current, requested });
            }
            std::cmp::Ordering::Greater => {}
        }
        let base = disk.base.clone().ok_or_else(|| invalid(&path, "has no base"))?;
        blocking(move |cancelled| {
            const ACT: &str = "growing disk";
            check_header(&path)?;
            // By whole MiB, by which the size is known again.
            let size = requested.next_multiple_of(MIB);
            let own = own_base(&path);
            let growing = |source| io_error(ACT, &own, source);
            if !own.try_exists().map_err(growing)? {
                copy::clone_or_copy(&base, &own, cancelled)?;
            }
            let lengthen = |path: &Path, length| {
                let file = OpenOptions::new().write(true).open(path)?;
                file.set_len(length)?;
                file.sync_all()
            };
            // The base first: cut off here, the disk has its old length and is grown again.
            lengthen(&own, size).map_err(growing)?;
            lengthen(&path, cow_length(size)).map_err(|source| io_error(ACT, &path, source))?;
            Ok(true)
        })
        .await
    }

    async fn remove(&self, disk: &DiskImage) -> Result<bool, DiskError> {
        let path = disk.path.clone();
        blocking(move |_| {
            file::remove_file(&own_base(&path))?;
            file::remove_file(&path)
        })
        .await
    }

    async fn attach(&self, disk: &DiskImage, vm: &VmId) -> Result<DiskImage, DiskError> {
        const ACT: &str = "making a snapshot of";
        let base = disk.base.clone();
        let mut base = base.ok_or_else(|| invalid(&disk.path, "has no base"))?;
        check_header(&disk.path)?;
        let own = own_base(&disk.path);
        if own.try_exists().map_err(|source| io_error(ACT, &own, source))? {
            base = own;
        }
        let name = format!("{NAME}{vm}");
        let mut made = self.create_device(&base, &disk.path, &name).await;
        if matches!(made, Err(CallError::Helper { .. })) {
            // One may be left of a start that was cut off; nobody has it open.
            self.detach(vm).await?;
            made = self.create_device(&base, &disk.path, &name).await;
        }
        let handles = made.map_err(|error| failed(ACT, &base, error))?;
        Ok(DiskImage { path: handles.dm_dev.into(), ..disk.clone() })
    }

    async fn detach(&self, vm: &VmId) -> Result<(), DiskError> {
        // Where no device can be made none was, and nobody need be asked.
        if self.works.get() == Some(&false) || !Path::new(DEVICE_MAPPER).exists() {
            return Ok(());
        }
        let name = format!("{NAME}{vm}");
        let device = Path::new("/dev/mapper").join(&name);
        self.end_named(&name).await.map_err(|error| failed("ending snapshot", &device, error))
    }
}

fn percent(used: u64, of: u64) -> u8 {
    u8::try_from(u128::from(used) * 100 / u128::from(of.max(1))).map_or(100, |part| part.min(100))
}

/// Where a disk that has grown keeps its base.
fn own_base(cow: &Path) -> PathBuf {
    cow.with_extension("base")
}

/// Refuses a snapshot that was full: the kernel has marked it so, and what is in it is not whole.
///
/// The header is little-endian `SnAp`, `valid`, version, chunk size (`struct disk_header` in the
/// kernel's drivers/md/dm-snap-persistent.c).
fn check_header(cow: &Path) -> Result<(), DiskError> {
    let mut header = [0; 8];
    let read = std::fs::File::open(cow).and_then(|file| file.read_exact_at(&mut header, 0));
    read.map_err(|source| io_error("looking at disk", cow, source))?;
    let [magic, valid] = [0, 4]
        .map(|at| u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]));
    match (magic, valid) {
        // New, or in order.
        (0, 0) | (0x7041_6e53, 1) => Ok(()),
        (0x7041_6e53, _) => Err(invalid(
            cow,
            "is broken: the snapshot overflowed (the host's disk was full), and what was written to it is \
             not whole",
        )),
        _ => Err(invalid(cow, "is not what a snapshot writes to")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_s_trial_has_one_name_that_the_helper_takes() {
        let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let name = trial_name(one.path()).unwrap();
        assert_eq!(trial_name(one.path()).unwrap(), name);
        assert_ne!(trial_name(two.path()).unwrap(), name);
        let rest = name.strip_prefix(NAME).unwrap();
        assert!(rest.len() <= 64, "{name}");
        assert!(rest.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-'), "{name}");
    }

    #[test]
    fn the_length_of_the_file_tells_the_size_of_the_device() {
        for mib in [1_u64, 2, 127, 128, 129, 8192, 1 << 20] {
            assert_eq!(device_size(cow_length(mib * MIB)), Some(mib * MIB), "{mib}");
        }
        for bad in [0, 1, MIB - 1, MIB + 1, 8 << 30] {
            assert_eq!(device_size(bad).filter(|size| *size > 0), None, "{bad}");
        }
    }

    #[test]
    fn a_fill_level_is_a_part_of_a_hundred() {
        for (used, of, expected) in
            [(0, 8, 0), (4, 8, 50), (8, 8, 100), (9, 8, 100), (1, 0, 100), (u64::MAX, 1, 100)]
        {
            assert_eq!(percent(used, of), expected, "{used} of {of}");
        }
    }

    #[test]
    fn a_broken_snapshot_is_told_from_a_new_one() {
        let directory = tempfile::tempdir().unwrap();
        let cow = directory.path().join("cow");
        let with = |bytes: &[u8]| {
            std::fs::write(&cow, bytes).unwrap();
            check_header(&cow)
        };
        with(&[0; 4096]).unwrap();
        with(b"SnAp\x01\0\0\0\x01\0\0\0").unwrap();
        let broken = with(b"SnAp\0\0\0\0\x01\0\0\0").unwrap_err().to_string();
        assert!(broken.contains("overflowed"), "{broken}");
        for bad in [&b"SnAq\x01\0\0\0"[..], b"", b"SnAp", &[1; 8]] {
            assert!(with(bad).is_err(), "{bad:?}");
        }
    }
}
