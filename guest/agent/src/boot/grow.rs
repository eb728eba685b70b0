//! Growing a disk's file system to the disk, which the host has made larger.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

use rustix::mount::MountFlags;

use super::{BootError, disks, system_error};
use crate::console;

/// Grows the file system of `device`, mounted at `target` with `flags`, where the device has room for
/// more of its blocks; else it costs a read of what is in memory. A file system that the kernel cannot
/// grow is used as it is, and the console says so.
pub(super) fn to_device(device: &Path, target: &str, flags: MountFlags) {
    match try_to_device(device, target, flags) {
        Ok(None) => {}
        Ok(Some(grown)) => console::info(&format!(
            "the file system of {} grew from {} to {} MiB",
            device.display(),
            grown.before >> 20,
            grown.after >> 20
        )),
        Err(error) => console::error(&format!(
            "the file system of {} is smaller than its disk and stays so: {}",
            device.display(),
            console::chain(&error)
        )),
    }
}

struct Grown {
    /// Bytes.
    before: u64,
    /// Bytes.
    after: u64,
}

fn try_to_device(
    device: &Path,
    target: &str,
    flags: MountFlags,
) -> Result<Option<Grown>, BootError> {
    let mut disk = File::open(device).map_err(system_error("open", device.display()))?;
    // Of the mounted file system: the journal may have held a growth that was cut off.
    let read = |disk: &mut File| {
        measure(&mut *disk).map_err(system_error("read the superblock of", device.display()))
    };
    let Some(before) = read(&mut disk)? else { return Ok(None) };
    let room = disk
        .seek(SeekFrom::End(0))
        .map_err(system_error("measure", device.display()))?
        .checked_div(before.block_size)
        .unwrap_or(0);
    if room <= before.blocks {
        return Ok(None);
    }
    let directory = File::open(target).map_err(system_error("open", target))?;
    let remount = |options: &std::ffi::CStr| {
        rustix::mount::mount_remount(target, flags, options)
            .map_err(system_error("mount again", target))
    };
    // What the host added reads as zeros. Told that nothing need be zeroed, the kernel does not write
    // 16 MiB of zeros for each GiB.
    remount(c"noinit_itable")?;
    let grown = banger_guest_sys::grow_ext4(&directory, room);
    let restored = remount(c"init_itable");
    grown.map_err(system_error("grow the file system on", target))?;
    restored?;
    let after = read(&mut disk)?.unwrap_or(before);
    Ok((after.blocks > before.blocks)
        .then(|| Grown { before: before.bytes(), after: after.bytes() }))
}

/// The size of a file system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Size {
    blocks: u64,
    /// Bytes of a block.
    block_size: u64,
}

impl Size {
    const fn bytes(self) -> u64 {
        self.blocks.saturating_mul(self.block_size)
    }
}

/// The feature that gives block numbers 64 bits (`INCOMPAT_64BIT`).
const INCOMPAT_64BIT: u32 = 0x80;

/// Reads an ext2/3/4 file system's size: blocks at 0x4 and, with the 64-bit feature of 0x60, 0x150;
/// the block's size, as a power of two over 1024, at 0x18.
fn measure(disk: impl Read + Seek) -> std::io::Result<Option<Size>> {
    let Some(block) = disks::read_superblock(disk)? else { return Ok(None) };
    let field =
        |at: usize| u32::from_le_bytes([block[at], block[at + 1], block[at + 2], block[at + 3]]);
    let high = if field(0x60) & INCOMPAT_64BIT == 0 { 0 } else { u64::from(field(0x150)) };
    let block_size = 1024_u64.checked_shl(field(0x18)).filter(|size| *size <= 1 << 16);
    Ok(block_size
        .filter(|size| *size > 0)
        .map(|block_size| Size { blocks: high << 32 | u64::from(field(0x4)), block_size }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Cursor;

    fn superblock(fields: &[(usize, u32)]) -> Cursor<Vec<u8>> {
        let mut disk = vec![0; 4096];
        disk[1024 + 0x38..1024 + 0x3a].copy_from_slice(&[0x53, 0xef]);
        for (at, value) in fields {
            disk[1024 + at..1024 + at + 4].copy_from_slice(&value.to_le_bytes());
        }
        Cursor::new(disk)
    }

    #[test]
    fn sizes_of_both_widths_are_read() {
        let size = |fields: &[(usize, u32)]| measure(superblock(fields)).unwrap();
        let narrow = [(0x4, 7), (0x18, 2), (0x150, 1)];
        assert_eq!(size(&narrow), Some(Size { blocks: 7, block_size: 4096 }));
        let wide = [(0x4, 7), (0x18, 0), (0x60, INCOMPAT_64BIT), (0x150, 1)];
        assert_eq!(size(&wide), Some(Size { blocks: (1 << 32) + 7, block_size: 1024 }));
    }

    #[test]
    fn nonsense_has_no_size() {
        for shift in [7, 31, 63, 64, u32::MAX] {
            assert_eq!(measure(superblock(&[(0x4, 7), (0x18, shift)])).unwrap(), None, "{shift}");
        }
        assert_eq!(measure(Cursor::new(vec![0; 4096])).unwrap(), None);
        assert!(measure(Cursor::new(vec![0; 100])).is_err());
    }

    #[test]
    fn a_device_without_ext4_is_left_alone() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), [1; 8192]).unwrap();
        let flags = MountFlags::empty();
        assert!(try_to_device(file.path(), "/nowhere", flags).unwrap().is_none());
    }

    #[test]
    fn a_disk_of_the_file_systems_size_is_not_touched() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let disk = superblock(&[(0x4, 1), (0x18, 2)]).into_inner();
        std::fs::write(file.path(), disk).unwrap();
        // The place is not there: nothing looked at it.
        assert!(try_to_device(file.path(), "/nowhere", MountFlags::empty()).unwrap().is_none());
    }
}
