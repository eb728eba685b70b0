//! Block devices made of files (loop(4)).

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use crate::ioctl::{Buffer, if_there, u32_at, u64_at, with_buffer, with_number};

// <linux/loop.h>
const LOOP_CTL_ADD: u64 = 0x4C80;
const LOOP_CTL_REMOVE: u64 = 0x4C81;
const LOOP_CONFIGURE: u64 = 0x4C0A;
const LOOP_CLR_FD: u64 = 0x4C01;
const LOOP_GET_STATUS64: u64 = 0x4C05;
const LO_FLAGS_READ_ONLY: u32 = 1;
const LO_FLAGS_AUTOCLEAR: u32 = 4;
const LO_FLAGS_DIRECT_IO: u32 = 16;
/// `struct loop_info64`.
const LOOP_INFO: usize = 232;
/// `struct loop_config`: fd, block size, the info, 8 reserved numbers.
const LOOP_CONFIG: usize = 8 + LOOP_INFO + 64;
const OFFSET_FD: usize = 0;
const INFO_DEVICE: usize = 0;
const INFO_INODE: usize = 8;
/// Five u64, three u32 before it.
const INFO_FLAGS: usize = 5 * 8 + 3 * 4;
const CONTROL: &str = "/dev/loop-control";
/// The numbers that [`LoopDevice::attach`] takes, by which udev's rule knows them: the kernel gives
/// everybody else the lowest that is free. Of `max_part=31` there are 32768 (loop(4)).
pub const NUMBERS: std::ops::Range<u32> = 20_000..30_000;

/// The file that a loop device stands on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Backing {
    /// The file system, as `stat(2)` numbers it.
    pub device: u64,
    /// The file there.
    pub inode: u64,
    /// Whether the loop device cannot be written.
    pub is_read_only: bool,
}

/// A loop device, held open: as long as it is, what it stands on does not change. The kernel takes
/// one that [`LoopDevice::attach`] made down when nobody has it open any more, however this ends.
#[derive(Debug)]
pub struct LoopDevice {
    number: u32,
    path: PathBuf,
    device: File,
}

/// Whether there is a loop device of a number that stands on something.
fn is_attached(number: u32) -> bool {
    Path::new(&format!("/sys/block/loop{number}/loop")).exists()
}

impl LoopDevice {
    /// Opens a loop device as it is; none if there is no such device.
    ///
    /// # Errors
    /// No right to.
    pub fn open(number: u32) -> io::Result<Option<Self>> {
        let path = PathBuf::from(format!("/dev/loop{number}"));
        let device = if_there(File::open(&path))?;
        Ok(device.map(|device| Self { number, path, device }))
    }

    /// The numbers of those that stand on something, or of those that do not.
    ///
    /// # Errors
    /// None that is expected.
    pub fn all(are_attached: bool) -> io::Result<Vec<u32>> {
        let names = std::fs::read_dir("/sys/block")?.flatten().map(|device| device.file_name());
        let numbers = names.filter_map(|name| name.to_str()?.strip_prefix("loop")?.parse().ok());
        Ok(numbers.filter(|number| is_attached(*number) == are_attached).collect())
    }

    /// What it stands on; none if nothing.
    ///
    /// # Errors
    /// No loop device.
    pub fn backing(&self) -> io::Result<Option<Backing>> {
        let mut info = Buffer::zeroed(LOOP_INFO);
        let asked = with_buffer(&self.device, LOOP_GET_STATUS64, LOOP_INFO, &mut info);
        if if_there(asked)?.is_none() {
            return Ok(None);
        }
        let info = info.bytes();
        Ok(Some(Backing {
            device: u64_at(&info, INFO_DEVICE),
            inode: u64_at(&info, INFO_INODE),
            is_read_only: u32_at(&info, INFO_FLAGS) & LO_FLAGS_READ_ONLY != 0,
        }))
    }

    /// Takes it from its file, at the latest when nobody has it open any more; one that stands on
    /// nothing is left as it is.
    ///
    /// # Errors
    /// No right to.
    pub fn detach(&self) -> io::Result<()> {
        if_there(with_number(&self.device, LOOP_CLR_FD, 0)).map(drop)
    }

    /// Makes a block device of a file that was opened for what the device is to be used for. It
    /// reads and writes past the page cache where the file system allows that, so that nothing is
    /// cached twice.
    ///
    /// # Errors
    /// No right to, or no module for it; a file that cannot be a disk; all [`NUMBERS`] are in use.
    pub fn attach(backing: &File, read_only: bool) -> io::Result<Self> {
        let control = File::options().read(true).write(true).open(CONTROL)?;
        for number in NUMBERS.filter(|number| !is_attached(*number)) {
            match with_number(&control, LOOP_CTL_ADD, number.into()) {
                // One that is there is as good, if nothing is on it.
                Err(error) if error.raw_os_error() != Some(libc::EEXIST) => return Err(error),
                _ => {}
            }
            let path = PathBuf::from(format!("/dev/loop{number}"));
            // Who found it unused may have ended it, or taken it to be read only.
            let opened = File::options().read(true).write(!read_only).open(&path);
            let Ok(device) = opened else { continue };
            let mut config = Buffer::zeroed(LOOP_CONFIG);
            config.put_u32(OFFSET_FD, u32::try_from(backing.as_raw_fd()).unwrap_or(u32::MAX));
            let mode = if read_only { LO_FLAGS_READ_ONLY } else { 0 };
            config.put_u32(8 + INFO_FLAGS, LO_FLAGS_AUTOCLEAR | LO_FLAGS_DIRECT_IO | mode);
            match with_buffer(&device, LOOP_CONFIGURE, LOOP_CONFIG, &mut config) {
                Ok(()) => return Ok(Self { number, path, device }),
                Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {}
                Err(error) => return Err(error),
            }
        }
        Err(io::Error::other("none of banger's loop devices can be had"))
    }

    /// Ends those of [`NUMBERS`] that stand on nothing and that nobody has open, so that the kernel
    /// gives them to nobody else.
    ///
    /// # Errors
    /// No right to.
    pub fn end_unused() -> io::Result<()> {
        let Some(control) = if_there(File::options().read(true).write(true).open(CONTROL))? else {
            return Ok(());
        };
        for number in Self::all(false)?.iter().filter(|number| NUMBERS.contains(*number)) {
            let _ = with_number(&control, LOOP_CTL_REMOVE, (*number).into());
        }
        Ok(())
    }

    /// Its number `N` in `/dev/loopN`.
    #[must_use]
    pub fn number(&self) -> u32 {
        self.number
    }

    /// Its node in `/dev`.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The open device.
    #[must_use]
    pub fn device(&self) -> &File {
        &self.device
    }
}
