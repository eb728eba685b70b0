//! What all disks that are files share: making them whole or not at all, measuring, growing and
//! removing.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use banger_engine::seams::{DiskError, DiskFormat, DiskImage, DiskUsage};
use banger_types::DiskSize;
use rustix::fs::{CWD, RenameFlags, renameat_with};

/// Says whether the future that asked for some blocking work is still wanted.
#[derive(Clone, Debug, Default)]
pub(crate) struct Cancelled(Arc<AtomicBool>);

impl Cancelled {
    pub(crate) fn is_set(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}

struct CancelOnDrop(Cancelled);

impl Drop for CancelOnDrop {
    fn drop(&mut self) {
        self.0.0.store(true, Ordering::Release);
    }
}

/// Runs file work on a thread that may block. Where the caller is dropped, the work learns of it.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce(&Cancelled) -> Result<T, DiskError> + Send + 'static,
) -> Result<T, DiskError> {
    let cancelled = Cancelled::default();
    let guard = CancelOnDrop(cancelled.clone());
    let outcome = tokio::task::spawn_blocking(move || work(&cancelled)).await;
    drop(guard);
    outcome.unwrap_or_else(|error| {
        Err(io_error("working on", Path::new("a disk"), io::Error::other(error)))
    })
}

/// Makes the error for a failed system call; a full disk is told apart.
pub(crate) fn io_error(act: &'static str, path: &Path, source: io::Error) -> DiskError {
    let path = path.to_owned();
    match source.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            DiskError::NoSpace { act, path }
        }
        _ => DiskError::Io { act, path, source },
    }
}

pub(crate) fn invalid(path: &Path, problem: impl Into<String>) -> DiskError {
    DiskError::Invalid { path: path.to_owned(), problem: problem.into() }
}

/// A base image, open for reading.
pub(crate) struct Base {
    pub(crate) file: File,
    /// Its size in bytes.
    pub(crate) size: u64,
}

/// Opens a base image and checks that a disk of `size` can lie over it.
pub(crate) fn open_base(base: &Path, size: DiskSize) -> Result<Base, DiskError> {
    const ACT: &str = "opening base image";
    let file = File::open(base).map_err(|source| io_error(ACT, base, source))?;
    let metadata = file.metadata().map_err(|source| io_error(ACT, base, source))?;
    if !metadata.is_file() {
        return Err(invalid(base, "is not a file"));
    }
    let base_size = metadata.len();
    if base_size == 0 || !base_size.is_multiple_of(512) {
        return Err(invalid(base, "is not a raw disk image: its size is no multiple of 512 bytes"));
    }
    if size.bytes() < base_size {
        let (current, requested) = (base_size, size.bytes());
        return Err(DiskError::Shrink { path: base.to_owned(), current, requested });
    }
    Ok(Base { file, size: base_size })
}

/// Makes the file `path` by `fill`: it appears whole or not at all, and never in the place of
/// another.
pub(crate) fn make(
    path: &Path,
    cancelled: &Cancelled,
    fill: impl FnOnce(&mut File) -> Result<(), DiskError>,
) -> Result<(), DiskError> {
    const ACT: &str = "creating root disk";
    let fail = |source| io_error(ACT, path, source);
    // Found out before the work, and again by the rename.
    if std::fs::symlink_metadata(path).is_ok() {
        return Err(fail(io::ErrorKind::AlreadyExists.into()));
    }
    let mut partial_name = path.file_name().unwrap_or_default().to_owned();
    partial_name.push(".partial");
    let partial = path.with_file_name(partial_name);
    // One that a killed daemon left is of no use to anyone.
    remove_file(&partial)?;
    let mut options = OpenOptions::new();
    let mut file =
        options.read(true).write(true).create_new(true).mode(0o600).open(&partial).map_err(fail)?;
    let guard = RemoveOnDrop(Some(partial.clone()));
    fill(&mut file)?;
    if cancelled.is_set() {
        return Err(fail(io::ErrorKind::Interrupted.into()));
    }
    renameat_with(CWD, &partial, CWD, path, RenameFlags::NOREPLACE)
        .map_err(|error| fail(error.into()))?;
    guard.keep();
    if cancelled.is_set() {
        remove_file(path)?;
        return Err(fail(io::ErrorKind::Interrupted.into()));
    }
    Ok(())
}

struct RemoveOnDrop(Option<PathBuf>);

impl RemoveOnDrop {
    fn keep(mut self) {
        self.0 = None;
    }
}

impl Drop for RemoveOnDrop {
    fn drop(&mut self) {
        if let Some(path) = &self.0
            && let Err(error) = std::fs::remove_file(path)
        {
            tracing::warn!(path = %path.display(), %error, "an unfinished disk was not removed");
        }
    }
}

/// Removes a file; returns whether there was one.
pub(crate) fn remove_file(path: &Path) -> Result<bool, DiskError> {
    match std::fs::remove_file(path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(source) => Err(io_error("removing disk", path, source)),
    }
}

/// Returns the bytes that a file takes on its file system.
pub(crate) fn allocated(metadata: &std::fs::Metadata) -> u64 {
    // st_blocks counts units of 512 bytes whatever the file system's block size (stat(3type)).
    metadata.blocks().saturating_mul(512)
}

/// Makes a raw root disk of `size` bytes over `base` in the directory `dir`. `fill` gives the new file
/// what the base has; `act` says what that is, as a participle.
pub(crate) async fn create_raw(
    base: &Path,
    (dir, stem): (&Path, &str),
    size: DiskSize,
    (kind, act): (&str, &'static str),
    fill: impl FnOnce(&Base, &mut File, &Cancelled) -> io::Result<()> + Send + 'static,
) -> Result<DiskImage, DiskError> {
    let path = dir.join(format!("{stem}.raw"));
    let (base, kind) = (base.to_owned(), kind.to_owned());
    blocking(move |cancelled| {
        let base = open_base(&base, size)?;
        make(&path, cancelled, |disk| {
            fill(&base, disk, cancelled)
                .and_then(|()| disk.set_len(size.bytes()))
                .map_err(|source| io_error(act, &path, source))
        })?;
        Ok(DiskImage { path, format: DiskFormat::Raw, kind, base: None })
    })
    .await
}

/// Measures a raw disk.
pub(crate) async fn measure_raw(disk: &DiskImage) -> Result<DiskUsage, DiskError> {
    let disk = disk.clone();
    blocking(move |_| {
        let metadata = raw_metadata(&disk)?;
        Ok(DiskUsage { size: metadata.len(), allocated: allocated(&metadata), fill_percent: None })
    })
    .await
}

/// Grows a raw disk; returns whether it was smaller.
pub(crate) async fn grow_raw(disk: &DiskImage, size: DiskSize) -> Result<bool, DiskError> {
    let disk = disk.clone();
    blocking(move |_| {
        let path = &disk.path;
        let current = raw_metadata(&disk)?.len();
        let requested = size.bytes();
        if requested < current {
            return Err(DiskError::Shrink { path: path.clone(), current, requested });
        }
        if requested == current {
            return Ok(false);
        }
        OpenOptions::new()
            .write(true)
            .open(path)
            .and_then(|file| file.set_len(requested))
            .map_err(|source| io_error("growing disk", path, source))?;
        Ok(true)
    })
    .await
}

/// Removes a disk that is one file; returns whether there was one.
pub(crate) async fn remove(disk: &DiskImage) -> Result<bool, DiskError> {
    let path = disk.path.clone();
    blocking(move |_| remove_file(&path)).await
}

fn raw_metadata(disk: &DiskImage) -> Result<std::fs::Metadata, DiskError> {
    let metadata = std::fs::metadata(&disk.path)
        .map_err(|source| io_error("measuring disk", &disk.path, source))?;
    if metadata.file_type().is_block_device() || !metadata.is_file() {
        return Err(invalid(&disk.path, "is not a file"));
    }
    Ok(metadata)
}
