//! One ioctl on a buffer of the kernel's own layout.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

/// A buffer for a kernel structure, aligned for every field that such structures have.
#[derive(Debug, Clone)]
pub(crate) struct Buffer(Vec<u64>);

impl Buffer {
    /// Makes a buffer of at least `bytes` zeros.
    pub(crate) fn zeroed(bytes: usize) -> Self {
        Self(vec![0; bytes.div_ceil(8)])
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len() * 8
    }

    /// Writes `bytes` at an offset; what does not fit is a defect of the caller and is left out.
    pub(crate) fn put(&mut self, offset: usize, bytes: &[u8]) {
        for (at, byte) in bytes.iter().enumerate() {
            let at = offset + at;
            if let Some(word) = self.0.get_mut(at / 8) {
                let mut parts = word.to_ne_bytes();
                parts[at % 8] = *byte;
                *word = u64::from_ne_bytes(parts);
            }
        }
    }

    pub(crate) fn put_u32(&mut self, offset: usize, value: u32) {
        self.put(offset, &value.to_ne_bytes());
    }

    /// The bytes as they are now.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        self.0.iter().flat_map(|word| word.to_ne_bytes()).collect()
    }
}

/// Reads a number of a structure; zero past its end.
pub(crate) fn u32_at(bytes: &[u8], offset: usize) -> u32 {
    let field = bytes.get(offset..offset + 4).and_then(|field| field.try_into().ok());
    field.map_or(0, u32::from_ne_bytes)
}

/// Reads a number of a structure; zero past its end.
pub(crate) fn u64_at(bytes: &[u8], offset: usize) -> u64 {
    let field = bytes.get(offset..offset + 8).and_then(|field| field.try_into().ok());
    field.map_or(0, u64::from_ne_bytes)
}

/// Reads a text that ends at a NUL byte.
pub(crate) fn text_at(bytes: &[u8], offset: usize, most: usize) -> String {
    let end = offset.saturating_add(most).min(bytes.len());
    let field = bytes.get(offset..end).unwrap_or_default();
    let text = field.split(|byte| *byte == 0).next().unwrap_or_default();
    String::from_utf8_lossy(text).into_owned()
}

/// None where the kernel says that there is no such device, or nothing behind it.
pub(crate) fn if_there<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    let absent = [libc::ENOENT, libc::ENODEV, libc::ENXIO];
    match result {
        Err(error) if error.raw_os_error().is_some_and(|errno| absent.contains(&errno)) => Ok(None),
        result => result.map(Some),
    }
}

/// An ioctl whose argument is a structure that the kernel reads and writes: at most as many bytes
/// of it as the request's number or the structure itself says.
///
/// `structure` is how many bytes that is; a request that needs more than the buffer has is refused.
pub(crate) fn with_buffer(
    device: &File,
    request: u64,
    structure: usize,
    buffer: &mut Buffer,
) -> io::Result<()> {
    if structure > buffer.len() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "a buffer that is too small"));
    }
    // SAFETY: the descriptor is open for the call. The pointer is to `buffer.len()` initialised
    // bytes, aligned to 8, which nothing else refers to; the kernel accesses `structure` of them,
    // which was compared above, and keeps no pointer after the call. None of the requests of this
    // crate has pointers inside its structure.
    let result = unsafe { libc::ioctl(device.as_raw_fd(), request, buffer.0.as_mut_ptr()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// An ioctl whose argument is a number; returns its result.
pub(crate) fn with_number(device: &File, request: u64, number: u64) -> io::Result<u32> {
    // SAFETY: the descriptor is open for the call, and the requests of this crate that come here
    // take no pointer.
    let result = unsafe { libc::ioctl(device.as_raw_fd(), request, number) };
    u32::try_from(result).map_err(|_| io::Error::last_os_error())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_read_or_written_past_the_end() {
        let mut buffer = Buffer::zeroed(9);
        assert_eq!(buffer.len(), 16);
        buffer.put(12, &[1, 2, 3, 4, 5, 6]);
        let bytes = buffer.bytes();
        assert_eq!(&bytes[10..], [0, 0, 1, 2, 3, 4]);
        assert_eq!(u32_at(&bytes, 12), u32::from_ne_bytes([1, 2, 3, 4]));
        assert_eq!((u32_at(&bytes, 13), u64_at(&bytes, 100)), (0, 0));
        assert_eq!(text_at(b"ab\0c", 0, 4), "ab");
        assert_eq!(text_at(b"ab", 1, 100), "b");
        assert_eq!(text_at(b"ab", 100, 5), "");
        let null = File::open("/dev/null").unwrap();
        assert!(with_buffer(&null, 0, 17, &mut buffer).is_err());
        assert!(with_buffer(&null, 0, 16, &mut buffer).is_err());
        assert!(with_number(&null, 0, 0).is_err());
    }
}
