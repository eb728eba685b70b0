//! ext4's own ioctl: growing a mounted file system.

use std::os::fd::{AsFd, AsRawFd};

/// EXT4_IOC_RESIZE_FS of fs/ext4/ext4.h: `_IOW('f', 16, __u64)`.
const EXT4_IOC_RESIZE_FS: libc::c_ulong = 0x4008_6610;

/// Grows the mounted ext4 that `directory` lies on to `blocks` of its own blocks, its device being at
/// least as large; needs root. The kernel leaves out a last group that is too small for its own
/// bookkeeping, and refuses a file system with errors (EPERM) or in a layout it cannot grow
/// (EOPNOTSUPP), which stays as it is.
pub fn grow_ext4(directory: impl AsFd, blocks: u64) -> std::io::Result<()> {
    // SAFETY: the descriptor is open for the whole call, and `blocks` is a live u64, which is all the
    // kernel reads.
    let result = unsafe {
        libc::ioctl(directory.as_fd().as_raw_fd(), EXT4_IOC_RESIZE_FS, &raw const blocks)
    };
    if result == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    #[test]
    fn what_is_no_ext4_is_refused() {
        let null = std::fs::File::open("/proc").expect("/proc");
        let error = super::grow_ext4(&null, 1).expect_err("proc is no ext4");
        assert_eq!(error.raw_os_error(), Some(libc::ENOTTY), "{error}");
    }
}
