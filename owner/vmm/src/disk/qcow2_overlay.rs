//! A root disk as a qcow2 image that holds only what the guest wrote.

use std::fs::OpenOptions;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use async_trait::async_trait;
use banger_engine::seams::{DiskError, DiskFormat, DiskImage, DiskUsage, RootDisk};
use banger_types::DiskSize;

use super::file::{self, allocated, blocking, invalid, io_error};
use super::qcow2;

/// Makes a disk in no time and of nearly no size, on any file system; QEMU alone can read it.
#[derive(Clone, Copy, Debug)]
pub struct Qcow2Overlay;

const KIND: &str = "qcow2-overlay";

#[async_trait]
impl RootDisk for Qcow2Overlay {
    fn kind(&self) -> &'static str {
        KIND
    }

    async fn usable(&self, _base_dir: &Path, _disk_dir: &Path) -> Result<bool, DiskError> {
        Ok(true)
    }

    async fn create(
        &self,
        base: &Path,
        dir: &Path,
        stem: &str,
        size: DiskSize,
    ) -> Result<DiskImage, DiskError> {
        let path = dir.join(format!("{stem}.qcow2"));
        let base = base.to_owned();
        blocking(move |cancelled| {
            file::open_base(&base, size)?;
            let name = base.as_os_str().as_bytes();
            // QEMU would take a relative path from the overlay's directory.
            if !base.is_absolute() || name.len() > qcow2::BACKING_LIMIT || base.to_str().is_none() {
                return Err(invalid(&base, "cannot be named in a qcow2 image: its path must be absolute, UTF-8 and of at most 1023 bytes"));
            }
            file::make(&path, cancelled, |overlay| {
                qcow2::write_new(overlay, size, name)
                    .map_err(|source| io_error("creating root disk", &path, source))
            })?;
            let kind = KIND.to_owned();
            Ok(DiskImage { path, format: DiskFormat::Qcow2, kind, base: Some(base) })
        })
        .await
    }

    fn most(&self, size: u64) -> u64 {
        qcow2::most(size)
    }

    async fn measure(&self, disk: &DiskImage) -> Result<DiskUsage, DiskError> {
        let path = disk.path.clone();
        blocking(move |_| {
            const ACT: &str = "measuring disk";
            let file = std::fs::File::open(&path).map_err(|error| io_error(ACT, &path, error))?;
            let geometry = geometry(&file, ACT, &path)?;
            let metadata = file.metadata().map_err(|error| io_error(ACT, &path, error))?;
            Ok(DiskUsage {
                size: geometry.size,
                allocated: allocated(&metadata),
                fill_percent: None,
            })
        })
        .await
    }

    async fn grow(&self, disk: &DiskImage, size: DiskSize) -> Result<bool, DiskError> {
        let path = disk.path.clone();
        blocking(move |_| {
            const ACT: &str = "growing disk";
            let fail = |error| io_error(ACT, &path, error);
            let file = OpenOptions::new().read(true).write(true).open(&path).map_err(fail)?;
            let geometry = geometry(&file, ACT, &path)?;
            let (current, requested) = (geometry.size, size.bytes());
            if requested < current {
                return Err(DiskError::Shrink { path, current, requested });
            }
            if requested == current {
                return Ok(false);
            }
            if requested > geometry.room {
                return Err(invalid(&path, format!("can grow to {} bytes only", geometry.room)));
            }
            qcow2::write_size(&file, requested).map_err(fail)?;
            Ok(true)
        })
        .await
    }

    async fn remove(&self, disk: &DiskImage) -> Result<bool, DiskError> {
        file::remove(disk).await
    }
}

fn geometry(
    file: &std::fs::File,
    act: &'static str,
    path: &Path,
) -> Result<qcow2::Geometry, DiskError> {
    qcow2::read_geometry(file).map_err(|error| match error {
        Ok(problem) => invalid(path, problem),
        Err(source) => io_error(act, path, source),
    })
}
