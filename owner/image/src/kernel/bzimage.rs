//! Takes the ELF kernel out of a bzImage.
//!
//! The Linux boot protocol (<https://docs.kernel.org/arch/x86/boot.html>) says where the compressed
//! payload is; its first bytes say how it is compressed.

use std::io::{self, Read};

/// More than any kernel needs uncompressed; bounds a payload that lies.
const LARGEST: u64 = 512 << 20;

/// Why a bzImage has no usable payload.
#[derive(Debug, thiserror::Error)]
pub enum BzImageError {
    /// The header is missing, older than protocol 2.08, or points outside of the file.
    #[error("it is not a bzImage of boot protocol 2.08 or later")]
    Header,
    /// A compression that is not understood.
    #[error("its payload's compression is unknown (first bytes {0:02x?})")]
    Compression([u8; 4]),
    /// The payload is damaged.
    #[error("decompress its payload")]
    Decompress(#[source] io::Error),
    /// The payload is no ELF file, or larger than 512 MiB.
    #[error("its payload is not an ELF kernel")]
    NotElf,
}

/// Returns the uncompressed kernel.
pub(crate) fn extract(image: &[u8]) -> Result<Vec<u8>, BzImageError> {
    let payload = payload(image).ok_or(BzImageError::Header)?;
    let magic = payload.first_chunk::<4>().ok_or(BzImageError::Header)?;
    let kernel = match magic {
        [0x1f, 0x8b, ..] => read(flate2::read::GzDecoder::new(payload)),
        [0xfd, b'7', b'z', b'X'] => {
            read(lzma_rust2::XzReader::new_mem_limit(payload, false, 512 << 10))
        }
        [0x28, 0xb5, 0x2f, 0xfd] => {
            zstd::Decoder::with_buffer(payload).and_then(|decoder| {
                let mut decoder = decoder.single_frame();
                // Kernels are compressed with a window of up to 128 MiB.
                decoder.window_log_max(27)?;
                read(decoder)
            })
        }
        [0x02, 0x21, 0x4c, 0x18] => lz4_legacy(&payload[4..]),
        other => return Err(BzImageError::Compression(*other)),
    };
    let kernel = kernel.map_err(BzImageError::Decompress)?;
    if !kernel.starts_with(b"\x7fELF") || kernel.len() as u64 > LARGEST {
        return Err(BzImageError::NotElf);
    }
    Ok(kernel)
}

/// Whether these are the first bytes of an ELF file for this machine: 64 bits, little endian, x86-64
/// (elf(5)).
pub(crate) fn is_elf(kernel: &[u8]) -> bool {
    kernel.starts_with(b"\x7fELF\x02\x01") && kernel.get(18..20) == Some(&[62, 0])
}

/// Returns what `uname -r` will say, as the kernel itself has it: a bzImage by its header, an ELF
/// file by its banner.
pub(crate) fn version(image: &[u8]) -> Option<String> {
    const BANNER: &[u8] = b"Linux version ";
    const LONGEST: usize = 64;
    let text = if is_elf(image) {
        let at = image.windows(BANNER.len()).position(|window| window == BANNER)?;
        image.get(at + BANNER.len()..)?
    } else {
        // `kernel_version` of the header counts from the second sector.
        let at = usize::from(u16::from_le_bytes([*image.get(0x20e)?, *image.get(0x20f)?]));
        (image.get(0x202..0x206)? == b"HdrS" && at > 0).then(|| image.get(at + 0x200..))??
    };
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._+~-".contains(&byte);
    let end = text.iter().take(LONGEST + 1).position(|&byte| !allowed(byte))?;
    let version = String::from_utf8(text[..end].to_vec()).ok()?;
    version.starts_with(|first: char| first.is_ascii_digit()).then_some(version)
}

/// Returns the configuration that a kernel with `CONFIG_IKCONFIG` carries.
pub(crate) fn configuration(elf: &[u8]) -> Option<Vec<u8>> {
    const BEGIN: &[u8] = b"IKCFG_ST";
    const LARGEST_CONFIGURATION: u64 = 16 << 20;
    let at = elf.windows(BEGIN.len()).position(|window| window == BEGIN)?;
    let mut config = Vec::new();
    flate2::read::GzDecoder::new(elf.get(at + BEGIN.len()..)?)
        .take(LARGEST_CONFIGURATION)
        .read_to_end(&mut config)
        .ok()?;
    Some(config)
}

fn payload(image: &[u8]) -> Option<&[u8]> {
    let word = |at: usize| -> Option<usize> {
        let bytes = image.get(at..at + 4)?;
        usize::try_from(u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])).ok()
    };
    let version = u16::from_le_bytes([*image.get(0x206)?, *image.get(0x207)?]);
    if image.get(0x202..0x206)? != b"HdrS" || version < 0x0208 {
        return None;
    }
    let sectors = match *image.get(0x1f1)? {
        0 => 4,
        sectors => usize::from(sectors),
    };
    let start = ((sectors + 1) * 512).checked_add(word(0x248)?)?;
    image.get(start..start.checked_add(word(0x24c)?)?)
}

fn read(decoder: impl Read) -> io::Result<Vec<u8>> {
    let mut kernel = Vec::new();
    decoder.take(LARGEST + 1).read_to_end(&mut kernel)?;
    Ok(kernel)
}

/// Blocks of up to 8 MiB, each behind its compressed size; the last four bytes of the payload are
/// the kernel's own note of the uncompressed size (`scripts/Makefile.lib`, `size_append`).
fn lz4_legacy(mut rest: &[u8]) -> io::Result<Vec<u8>> {
    const BLOCK: usize = 8 << 20;
    let invalid = |text: &'static str| io::Error::new(io::ErrorKind::InvalidData, text);
    let mut kernel = Vec::new();
    while rest.len() > 4 {
        let (size, after) = rest.split_at(4);
        let size = u32::from_le_bytes([size[0], size[1], size[2], size[3]]);
        let size = usize::try_from(size).unwrap_or(usize::MAX);
        let block = after.get(..size).ok_or_else(|| invalid("a block ends beyond the payload"))?;
        let plain = lz4_flex::block::decompress(block, BLOCK).map_err(io::Error::other)?;
        kernel.extend_from_slice(&plain);
        if kernel.len() as u64 > LARGEST {
            return Err(invalid("more than 512 MiB"));
        }
        rest = &after[size..];
    }
    Ok(kernel)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn damaged_images_are_refused() {
        assert!(matches!(extract(b""), Err(BzImageError::Header)));
        assert!(matches!(extract(&[0; 4096]), Err(BzImageError::Header)));
        let mut image = vec![0_u8; 8192];
        image[0x1f1] = 1;
        image[0x202..0x206].copy_from_slice(b"HdrS");
        image[0x206..0x208].copy_from_slice(&0x20f_u16.to_le_bytes());
        image[0x248..0x24c].copy_from_slice(&0_u32.to_le_bytes());
        image[0x24c..0x250].copy_from_slice(&16_u32.to_le_bytes());
        assert!(matches!(extract(&image), Err(BzImageError::Compression(_))));
        image[0x24c..0x250].copy_from_slice(&u32::MAX.to_le_bytes());
        assert!(matches!(extract(&image), Err(BzImageError::Header)));
        image[0x24c..0x250].copy_from_slice(&64_u32.to_le_bytes());
        for magic in [&b"\x1f\x8b"[..], b"\xfd7zXZ\0", b"\x28\xb5\x2f\xfd", b"\x02\x21\x4c\x18"] {
            image[1024..1024 + magic.len()].copy_from_slice(magic);
            assert!(extract(&image).is_err(), "{magic:?}");
        }
    }
}
