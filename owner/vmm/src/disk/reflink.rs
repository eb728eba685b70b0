//! A root disk as a file that shares its base's blocks until they are written to.

use std::fs::File;
use std::io::{self, Write};
use std::path::Path;

use async_trait::async_trait;
use banger_engine::seams::{DiskError, DiskFormat, DiskImage, DiskUsage, RootDisk};
use banger_types::DiskSize;
use rustix::fs::ioctl_ficlone;
use rustix::io::Errno;

use super::file::{self, blocking, io_error};

/// Makes a disk in no time where base and disk lie on one XFS or btrfs (ioctl_ficlone(2)).
#[derive(Clone, Copy, Debug)]
pub struct ReflinkDisk;

const KIND: &str = "reflink";

#[async_trait]
impl RootDisk for ReflinkDisk {
    fn kind(&self) -> &'static str {
        KIND
    }

    async fn usable(&self, base_dir: &Path, disk_dir: &Path) -> Result<bool, DiskError> {
        let (base_dir, disk_dir) = (base_dir.to_owned(), disk_dir.to_owned());
        blocking(move |_| try_clone(&base_dir, &disk_dir)).await
    }

    async fn create(
        &self,
        base: &Path,
        dir: &Path,
        stem: &str,
        size: DiskSize,
    ) -> Result<DiskImage, DiskError> {
        let path = dir.join(format!("{stem}.raw"));
        let base = base.to_owned();
        blocking(move |cancelled| {
            let base = file::open_base(&base, size)?;
            file::make(&path, cancelled, |disk| {
                ioctl_ficlone(&*disk, &base.file)
                    .map_err(io::Error::from)
                    .and_then(|()| disk.set_len(size.bytes()))
                    .map_err(|source| io_error("cloning the base image to", &path, source))
            })?;
            Ok(DiskImage { path, format: DiskFormat::Raw, kind: KIND.to_owned(), base: None })
        })
        .await
    }

    async fn measure(&self, disk: &DiskImage) -> Result<DiskUsage, DiskError> {
        let disk = disk.clone();
        blocking(move |_| file::measure_raw(&disk)).await
    }

    async fn grow(&self, disk: &DiskImage, size: DiskSize) -> Result<bool, DiskError> {
        let disk = disk.clone();
        blocking(move |_| file::grow_raw(&disk, size)).await
    }

    async fn remove(&self, disk: &DiskImage) -> Result<bool, DiskError> {
        let path = disk.path.clone();
        blocking(move |_| file::remove_file(&path)).await
    }
}

/// Clones one block between two nameless files, which alone tells whether it works.
fn try_clone(base_dir: &Path, disk_dir: &Path) -> Result<bool, DiskError> {
    const ACT: &str = "trying reflinks in";
    let nameless = |dir: &Path| -> Result<Option<File>, DiskError> {
        use rustix::fs::{CWD, Mode, OFlags, openat};
        let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
        match openat(CWD, dir, flags, Mode::RUSR | Mode::WUSR) {
            Ok(file) => Ok(Some(File::from(file))),
            // A file system without O_TMPFILE has no reflinks either; nor is a base that we may not
            // write beside anything to complain of.
            Err(Errno::OPNOTSUPP | Errno::ISDIR | Errno::ACCESS | Errno::ROFS | Errno::PERM) => {
                Ok(None)
            }
            Err(error) => Err(io_error(ACT, dir, error.into())),
        }
    };
    let (Some(mut base), Some(disk)) = (nameless(base_dir)?, nameless(disk_dir)?) else {
        return Ok(false);
    };
    base.write_all(&[0xba; 4096]).map_err(|source| io_error(ACT, base_dir, source))?;
    Ok(ioctl_ficlone(&disk, &base).is_ok())
}
