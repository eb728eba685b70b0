//! A root disk as a sparse copy of its base.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use async_trait::async_trait;
use banger_engine::seams::{DiskError, DiskImage, DiskUsage, RootDisk};
use banger_types::DiskSize;
use rustix::fs::{SeekFrom, copy_file_range, ioctl_ficlone, seek};
use rustix::io::Errno;

use super::file::{self, Cancelled, blocking, io_error};

/// Works everywhere; takes the space and the time that the base's data needs.
#[derive(Clone, Copy, Debug)]
pub struct CopyDisk;

const KIND: &str = "copy";
/// How much is copied between two looks at whether the copy is still wanted, in bytes.
const STRIDE: u64 = 8 << 20;
const BUFFER: usize = 256 << 10;

#[async_trait]
impl RootDisk for CopyDisk {
    fn kind(&self) -> &'static str {
        KIND
    }

    async fn usable(&self, _base_dir: &Path, _disk_dir: &Path) -> Result<bool, DiskError> {
        Ok(true)
    }

    async fn cost(&self, base: &Path) -> Result<u64, DiskError> {
        let base = base.to_owned();
        blocking(move |_| {
            let found = std::fs::metadata(&base);
            found
                .map(|found| file::allocated(&found))
                .map_err(|source| io_error("measuring base image", &base, source))
        })
        .await
    }

    async fn create(
        &self,
        base: &Path,
        dir: &Path,
        stem: &str,
        size: DiskSize,
    ) -> Result<DiskImage, DiskError> {
        let kind = (KIND, "copying the base image to");
        file::create_raw(base, (dir, stem), size, kind, |base, disk, cancelled| {
            copy_data(&base.file, disk, base.size, cancelled)
        })
        .await
    }

    async fn measure(&self, disk: &DiskImage) -> Result<DiskUsage, DiskError> {
        file::measure_raw(disk).await
    }

    async fn grow(&self, disk: &DiskImage, size: DiskSize) -> Result<bool, DiskError> {
        file::grow_raw(disk, size).await
    }

    async fn remove(&self, disk: &DiskImage) -> Result<bool, DiskError> {
        file::remove(disk).await
    }
}

/// Makes `path` a file of its own with the content of `base`: sharing its blocks where the file system
/// can, else as a sparse copy.
pub(super) fn clone_or_copy(
    base: &Path,
    path: &Path,
    cancelled: &Cancelled,
) -> Result<(), DiskError> {
    let reading = |source| io_error("opening base image", base, source);
    let from = File::open(base).map_err(reading)?;
    let size = from.metadata().map_err(reading)?.len();
    file::make(path, cancelled, |to| {
        if ioctl_ficlone(&*to, &from).is_ok() {
            return Ok(());
        }
        copy_data(&from, to, size, cancelled)
            .and_then(|()| to.set_len(size))
            .map_err(|source| io_error("copying the base image to", path, source))
    })
}

/// Copies the base's data and leaves its holes out (lseek(2), SEEK_DATA).
fn copy_data(base: &File, disk: &File, size: u64, cancelled: &Cancelled) -> io::Result<()> {
    let mut at = 0;
    while at < size {
        let start = match seek(base, SeekFrom::Data(at)) {
            Ok(start) => start,
            // Nothing but a hole up to the end.
            Err(Errno::NXIO) => break,
            Err(error) => return Err(error.into()),
        };
        let end = seek(base, SeekFrom::Hole(start))?.min(size);
        copy_extent(base, disk, start, end, cancelled)?;
        at = end;
    }
    Ok(())
}

fn copy_extent(
    base: &File,
    disk: &File,
    start: u64,
    end: u64,
    cancelled: &Cancelled,
) -> io::Result<()> {
    let (mut from, mut to) = (start, start);
    while from < end {
        if cancelled.is_set() {
            return Err(io::ErrorKind::Interrupted.into());
        }
        let wanted = usize::try_from((end - from).min(STRIDE)).unwrap_or(BUFFER);
        match copy_file_range(base, Some(&mut from), disk, Some(&mut to), wanted) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(_) | Err(Errno::INTR) => {}
            // Not between these two file systems (copy_file_range(2), ERRORS).
            Err(Errno::XDEV | Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL) => {
                return copy_through_memory(base, disk, from, end, cancelled);
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

fn copy_through_memory(
    base: &File,
    disk: &File,
    mut at: u64,
    end: u64,
    cancelled: &Cancelled,
) -> io::Result<()> {
    let mut buffer = vec![0; BUFFER];
    while at < end {
        if cancelled.is_set() {
            return Err(io::ErrorKind::Interrupted.into());
        }
        let wanted = usize::try_from(end - at).unwrap_or(BUFFER).min(BUFFER);
        base.read_exact_at(&mut buffer[..wanted], at)?;
        disk.write_all_at(&buffer[..wanted], at)?;
        at += wanted as u64;
    }
    Ok(())
}
