//! random(4): mixing bytes into the kernel's pool and crediting them.

use std::os::fd::AsRawFd;

/// RNDADDENTROPY of linux/random.h: `_IOW('R', 0x03, int[2])`.
const RNDADDENTROPY: libc::c_ulong = 0x4008_5203;

/// RNDRESEEDCRNG of linux/random.h: `_IO('R', 0x07)`.
const RNDRESEEDCRNG: libc::c_ulong = 0x5207;

/// Most bytes of one call.
const LIMIT: usize = 512;

/// Layout of `struct rand_pool_info` with room for [`LIMIT`] bytes.
#[repr(C)]
struct PoolInfo {
    entropy_count: libc::c_int,
    buffer_size: libc::c_int,
    buffer: [u8; LIMIT],
}

/// Mixes up to 512 of `bytes` into the kernel's pool and credits 8 bits for each; what is read from
/// then on depends on them. Needs root.
pub fn credit_entropy(bytes: &[u8]) -> std::io::Result<()> {
    let device = std::fs::OpenOptions::new().write(true).open("/dev/urandom")?;
    let count = bytes.len().min(LIMIT);
    let size = i32::try_from(count).map_err(|_| std::io::ErrorKind::InvalidInput)?;
    let mut info = PoolInfo { entropy_count: size * 8, buffer_size: size, buffer: [0; LIMIT] };
    info.buffer[..count].copy_from_slice(&bytes[..count]);
    // SAFETY: the descriptor is open for the whole call, and `info` is a live, initialised
    // rand_pool_info whose buffer holds at least buffer_size bytes, which is all the kernel reads.
    let result = unsafe { libc::ioctl(device.as_raw_fd(), RNDADDENTROPY, &raw const info) };
    if result != 0 {
        return Err(std::io::Error::last_os_error());
    }
    // Else guests that go on from one saved state would read the same numbers for up to a minute:
    // that long the kernel goes on from the seed that it has.
    // SAFETY: the descriptor is open for the whole call, which takes no argument.
    let result = unsafe { libc::ioctl(device.as_raw_fd(), RNDRESEEDCRNG) };
    match std::io::Error::last_os_error() {
        _ if result == 0 => Ok(()),
        // There is no seed yet; the first one has these bytes in it.
        error if error.raw_os_error() == Some(libc::ENODATA) => Ok(()),
        error => Err(error),
    }
}
