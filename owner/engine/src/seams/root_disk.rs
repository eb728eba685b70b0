//! A VM's copy-on-write root disk.

use std::path::{Path, PathBuf};

use async_trait::async_trait;
use banger_types::{DiskSize, VmId};

/// How a disk image is laid out, as the VMM must be told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DiskFormat {
    /// A plain file or a block device.
    Raw,
    /// QEMU's copy-on-write format over a raw base file.
    Qcow2,
}

/// A disk that exists and that a VMM can open.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct DiskImage {
    /// The file or block device.
    pub path: PathBuf,
    /// Its format.
    pub format: DiskFormat,
    /// Its kind, as `vm show` prints it: `qcow2-overlay`, `reflink`, `copy`, `dm-snapshot`, `raw`.
    pub kind: String,
    /// What it is read through to, where it cannot be without.
    #[serde(default)]
    pub base: Option<PathBuf>,
}

impl DiskImage {
    /// A raw file that stands for itself.
    #[must_use]
    pub fn raw(path: PathBuf) -> Self {
        Self { path, format: DiskFormat::Raw, kind: "raw".to_owned(), base: None }
    }
}

/// How much a disk takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DiskUsage {
    /// Size in bytes as the guest sees it.
    pub size: u64,
    /// Bytes it takes on the host, beyond its base.
    pub allocated: u64,
    /// How full what takes its writes is, in percent, for a kind that breaks when that is full.
    pub fill_percent: Option<u8>,
}

/// How full a disk that can be full may be, in percent, before people are told.
pub const FULL_SOON: u8 = 80;

/// Why an act on a disk failed.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// The host's file system is full.
    #[error("no space left for {act} {}", path.display())]
    NoSpace {
        /// The act, as a participle: `creating root disk`.
        act: &'static str,
        /// The disk.
        path: PathBuf,
    },
    /// A system call failed.
    #[error("{act} {}", path.display())]
    Io {
        /// The act, as a participle.
        act: &'static str,
        /// The disk.
        path: PathBuf,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
    /// The disk or its base is not what it should be.
    #[error("{} {problem}", path.display())]
    Invalid {
        /// The disk.
        path: PathBuf,
        /// What is wrong with it: `is not a qcow2 image`.
        problem: String,
    },
    /// Only growing is possible.
    #[error("{} has {current} bytes and can only grow, not become {requested}", path.display())]
    Shrink {
        /// The disk.
        path: PathBuf,
        /// Its size in bytes.
        current: u64,
        /// The size asked for in bytes.
        requested: u64,
    },
}

/// Makes, measures, grows and removes root disks of one kind.
///
/// Contract: `create` either makes the whole disk or leaves nothing behind, and refuses a path that
/// exists; writes to the disk never reach the base; `remove` of a disk that is gone succeeds and
/// says `false`; `grow` to the present size changes nothing and says `false`.
#[async_trait]
pub trait RootDisk: Send + Sync {
    /// Returns the kind, as `vm show` prints it.
    fn kind(&self) -> &'static str;

    /// Returns the most bytes that a new disk over a base of `base_size` bytes can have, if there is
    /// such a bound.
    fn largest(&self, base_size: u64) -> Option<u64> {
        let _ = base_size;
        None
    }

    /// Returns whether this kind works for a base below `base_dir` and disks below `disk_dir`.
    async fn usable(&self, base_dir: &Path, disk_dir: &Path) -> Result<bool, DiskError>;

    /// Returns the bytes that a new disk over `base` takes on the host at once.
    async fn cost(&self, base: &Path) -> Result<u64, DiskError> {
        let _ = base;
        Ok(0)
    }

    /// Returns the most bytes that a disk of `size` bytes takes on the host, beyond its base.
    fn most(&self, size: u64) -> u64 {
        size
    }

    /// Returns the most bytes that the disk may still take on the host where it has `size` bytes, which
    /// may be more or fewer than it has now. Blocks that it shares with its image count as taken.
    async fn may_take(&self, disk: &DiskImage, size: u64) -> Result<u64, DiskError> {
        Ok(self.most(size).saturating_sub(self.measure(disk).await?.allocated))
    }

    /// Makes a copy-on-write disk of `size` bytes (at least the base's) named `stem` plus the
    /// kind's own suffix in directory `dir`, over the read-only raw file `base`.
    async fn create(
        &self,
        base: &Path,
        dir: &Path,
        stem: &str,
        size: DiskSize,
    ) -> Result<DiskImage, DiskError>;

    /// Returns how much the disk takes.
    async fn measure(&self, disk: &DiskImage) -> Result<DiskUsage, DiskError>;

    /// Fails with [`DiskError::Invalid`] where the disk is known to be broken, and says what to do.
    async fn check(&self, disk: &DiskImage) -> Result<(), DiskError> {
        let _ = disk;
        Ok(())
    }

    /// Grows the disk, which no VMM has open and which is not attached, to any size, also beyond
    /// [`Self::largest`]; returns whether anything changed. The file system inside is grown by the
    /// guest's agent at its next start.
    async fn grow(&self, disk: &DiskImage, size: DiskSize) -> Result<bool, DiskError>;

    /// Removes the disk, which no VMM has open and which is not attached; returns whether there was
    /// one.
    async fn remove(&self, disk: &DiskImage) -> Result<bool, DiskError>;

    /// Makes what the VMM of `vm` opens, of a disk that is not attached; returns that.
    async fn attach(&self, disk: &DiskImage, vm: &VmId) -> Result<DiskImage, DiskError> {
        let _ = vm;
        Ok(disk.clone())
    }

    /// Undoes [`Self::attach`] when the VMM of `vm` has ended, whatever is known of the disk; none
    /// that is attached is no failure.
    async fn detach(&self, vm: &VmId) -> Result<(), DiskError> {
        let _ = vm;
        Ok(())
    }
}
