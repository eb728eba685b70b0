//! A root disk as a file that shares its base's blocks until they are written to.

use std::fs::File;
use std::io::{self, Write};
use std::ops::Range;
use std::path::Path;

use async_trait::async_trait;
use banger_engine::seams::{DiskError, DiskImage, DiskUsage, RootDisk};
use banger_types::DiskSize;
use rustix::fs::{SeekFrom, copy_file_range, fstatfs, ioctl_ficlone, seek};
use rustix::io::Errno;

use super::file::{self, blocking, io_error};

/// Makes a disk in no time where base and disk lie on one XFS or btrfs (ioctl_ficlone(2)).
#[derive(Clone, Copy, Debug)]
pub struct ReflinkDisk;

const KIND: &str = "reflink";
/// `XFS_SUPER_MAGIC` of linux/magic.h.
const XFS: u64 = 0x5846_5342;
/// More pieces than this are cloned by one call, whatever the file system.
const MOST_PIECES: usize = 256;

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
        let kind = (KIND, "cloning the base image to");
        file::create_raw(base, (dir, stem), size, kind, |base, disk, _| clone(&base.file, disk))
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

/// Lets an empty file share all blocks of another.
///
/// XFS spends more on an image's empty parts than on all that is written in it, and nothing where it
/// is not asked for them (`cargo xtask bench disks`); btrfs is quickest with the whole.
fn clone(base: &File, disk: &File) -> io::Result<()> {
    if u64::try_from(fstatfs(base)?.f_type).is_ok_and(|magic| magic == XFS)
        && let Some(pieces) = pieces(base)?
    {
        return pieces.iter().try_for_each(|piece| clone_piece(base, disk, piece.clone()));
    }
    Ok(ioctl_ficlone(disk, base)?)
}

/// Returns where a file has data (`SEEK_DATA` of lseek(2)); `None` for a file in very many pieces.
fn pieces(file: &File) -> io::Result<Option<Vec<Range<u64>>>> {
    let mut pieces = Vec::new();
    let mut end = 0;
    loop {
        let start = match seek(file, SeekFrom::Data(end)) {
            Ok(start) => start,
            Err(Errno::NXIO) => return Ok(Some(pieces)),
            Err(error) => return Err(error.into()),
        };
        if pieces.len() == MOST_PIECES {
            return Ok(None);
        }
        end = seek(file, SeekFrom::Hole(start))?;
        pieces.push(start..end);
    }
}

/// Clones one part to the same place. copy_file_range(2) is a reflink on every file system that has
/// them, and where a block cannot be shared after all it copies that.
fn clone_piece(base: &File, disk: &File, piece: Range<u64>) -> io::Result<()> {
    let (mut from, mut to) = (piece.start, piece.start);
    while from < piece.end {
        let rest = usize::try_from(piece.end - from).unwrap_or(usize::MAX);
        match copy_file_range(base, Some(&mut from), disk, Some(&mut to), rest) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
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
