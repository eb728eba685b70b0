//! Block devices made of files (loop(4)).

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use crate::ioctl::{Buffer, with_buffer, with_number};

// <linux/loop.h>
const LOOP_CTL_GET_FREE: u64 = 0x4C82;
const LOOP_CONFIGURE: u64 = 0x4C0A;
const LO_FLAGS_READ_ONLY: u32 = 1;
const LO_FLAGS_AUTOCLEAR: u32 = 4;
/// `struct loop_config`: fd, block size, `struct loop_info64` of 232 bytes, 8 reserved numbers.
const LOOP_CONFIG: usize = 8 + 232 + 64;
const OFFSET_FD: usize = 0;
/// `lo_flags` in the info: five u64, three u32 before it.
const OFFSET_FLAGS: usize = 8 + 5 * 8 + 3 * 4;
/// Another process may take the free device first.
const ATTEMPTS: u32 = 64;

/// Why a loop device could not be made.
#[derive(Debug, thiserror::Error)]
#[error("{operation} {path}")]
pub struct LoopError {
    operation: &'static str,
    path: PathBuf,
    #[source]
    source: io::Error,
}

fn failed(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> LoopError {
    let path = path.to_owned();
    move |source| LoopError { operation, path, source }
}

/// A loop device; the kernel takes it down when this is dropped and nobody else has it open.
#[derive(Debug)]
pub struct LoopDevice {
    path: PathBuf,
    device: File,
}

impl LoopDevice {
    /// Makes a block device of a file that was opened for what the device is to be used for.
    ///
    /// # Errors
    /// No right to, or no module for it; a file that cannot be a disk.
    pub fn attach(backing: &File, read_only: bool) -> Result<Self, LoopError> {
        let control_path = Path::new("/dev/loop-control");
        let control = File::options()
            .read(true)
            .write(true)
            .open(control_path)
            .map_err(failed("open", control_path))?;
        let mut attempt = 0;
        loop {
            attempt += 1;
            let number = with_number(&control, LOOP_CTL_GET_FREE, 0)
                .map_err(failed("ask for a free loop device at", control_path))?;
            let path = PathBuf::from(format!("/dev/loop{number}"));
            let device = File::options()
                .read(true)
                .write(!read_only)
                .open(&path)
                .map_err(failed("open", &path))?;
            let mut config = Buffer::zeroed(LOOP_CONFIG);
            let descriptor = u32::try_from(backing.as_raw_fd()).unwrap_or(u32::MAX);
            config.put_u32(OFFSET_FD, descriptor);
            let mode = if read_only { LO_FLAGS_READ_ONLY } else { 0 };
            config.put_u32(OFFSET_FLAGS, LO_FLAGS_AUTOCLEAR | mode);
            match with_buffer(&device, LOOP_CONFIGURE, LOOP_CONFIG, &mut config) {
                Ok(()) => return Ok(Self { path, device }),
                Err(error) if error.raw_os_error() == Some(libc::EBUSY) && attempt < ATTEMPTS => {}
                Err(error) => return Err(failed("attach a file to", &path)(error)),
            }
        }
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
