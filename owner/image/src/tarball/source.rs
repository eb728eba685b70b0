//! Where an archive's bytes come from: compression found by its magic, digests taken on the way.

use std::io::{self, Chain, Cursor, Read};

use sha2::{Digest, Sha256};

/// A Zstandard block and its header.
const COMPRESSED_BUFFER: usize = (128 << 10) + 3;
/// What `xz -9` needs, four times over.
const XZ_MEMORY_KIB: u32 = 256 << 10;

/// How an archive is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    /// Not at all.
    None,
    /// gzip, one or more members.
    Gzip,
    /// Zstandard, one or more frames.
    Zstd,
    /// xz.
    Xz,
}

impl Compression {
    fn detect(head: &[u8]) -> Self {
        if head.starts_with(&[0x1f, 0x8b]) {
            Self::Gzip
        } else if head.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]) {
            Self::Zstd
        } else if head.starts_with(b"\xfd7zXZ\0") {
            Self::Xz
        } else {
            Self::None
        }
    }
}

/// Reads from a source and takes the SHA-256 of what passes.
pub(crate) struct Hashing<R> {
    inner: R,
    digest: Sha256,
    bytes: u64,
}

impl<R: Read> Hashing<R> {
    pub(crate) fn new(inner: R) -> Self {
        Self { inner, digest: Sha256::new(), bytes: 0 }
    }

    /// Returns how many bytes passed and their digest in hexadecimal.
    pub(crate) fn finish(self) -> (u64, String) {
        (self.bytes, hexadecimal(&self.digest.finalize()))
    }
}

impl<R: Read> Read for Hashing<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buffer)?;
        self.digest.update(&buffer[..read]);
        self.bytes += read as u64;
        Ok(read)
    }
}

type Input<R> = Hashing<Chain<Cursor<Vec<u8>>, R>>;

enum Decoder<R: Read> {
    Plain(Input<R>),
    Gzip(Box<flate2::read::MultiGzDecoder<Input<R>>>),
    Zstd(Box<zstd::Decoder<'static, io::BufReader<Input<R>>>>),
    Xz(Box<lzma_rust2::XzReader<Input<R>>>),
}

/// An archive's uncompressed bytes.
pub struct Source<R: Read> {
    decoder: Decoder<R>,
    compression: Compression,
    /// Of the uncompressed bytes; not kept for a plain source, where it is the input's.
    digest: Sha256,
}

impl<R: Read> std::fmt::Debug for Source<R> {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("Source")
            .field("compression", &self.compression)
            .finish_non_exhaustive()
    }
}

/// The digests of everything read from a [`Source`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceDigests {
    /// Hexadecimal SHA-256 of the bytes as they came.
    pub compressed: String,
    /// Hexadecimal SHA-256 of the uncompressed archive.
    pub uncompressed: String,
    /// Bytes as they came.
    pub bytes: u64,
}

impl<R: Read> Source<R> {
    /// Looks at the first bytes of `reader` and sets up the decompression that they ask for.
    ///
    /// # Errors
    /// An unreadable source.
    pub fn new(mut reader: R) -> io::Result<Self> {
        let mut head = Vec::new();
        reader.by_ref().take(6).read_to_end(&mut head)?;
        let compression = Compression::detect(&head);
        let input =
            Hashing { inner: Cursor::new(head).chain(reader), digest: Sha256::new(), bytes: 0 };
        let decoder = match compression {
            Compression::None => Decoder::Plain(input),
            Compression::Gzip => Decoder::Gzip(Box::new(flate2::read::MultiGzDecoder::new(input))),
            Compression::Zstd => {
                let input = io::BufReader::with_capacity(COMPRESSED_BUFFER, input);
                Decoder::Zstd(Box::new(zstd::Decoder::with_buffer(input)?))
            }
            Compression::Xz => Decoder::Xz(Box::new(lzma_rust2::XzReader::new_mem_limit(
                input,
                true,
                XZ_MEMORY_KIB,
            ))),
        };
        Ok(Self { decoder, compression, digest: Sha256::new() })
    }

    /// Bytes read from the reader so far, compressed.
    #[must_use]
    pub fn bytes_in(&self) -> u64 {
        match &self.decoder {
            Decoder::Plain(input) => input.bytes,
            Decoder::Gzip(decoder) => decoder.get_ref().bytes,
            Decoder::Zstd(decoder) => decoder.get_ref().get_ref().bytes,
            Decoder::Xz(decoder) => decoder.inner().bytes,
        }
    }

    /// Returns how the archive is compressed.
    #[must_use]
    pub fn compression(&self) -> Compression {
        self.compression
    }

    /// Ends reading and returns the digests of what was read.
    #[must_use]
    pub fn finish(self) -> SourceDigests {
        let input = match self.decoder {
            Decoder::Plain(input) => input,
            Decoder::Gzip(decoder) => decoder.into_inner(),
            Decoder::Zstd(decoder) => decoder.finish().into_inner(),
            Decoder::Xz(decoder) => decoder.into_inner(),
        };
        let (bytes, compressed) = input.finish();
        let uncompressed = match self.compression {
            Compression::None => compressed.clone(),
            _ => hexadecimal(&self.digest.finalize()),
        };
        SourceDigests { compressed, uncompressed, bytes }
    }
}

impl<R: Read> Read for Source<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = match &mut self.decoder {
            Decoder::Plain(input) => return input.read(buffer),
            Decoder::Gzip(decoder) => decoder.read(buffer)?,
            Decoder::Zstd(decoder) => decoder.read(buffer)?,
            Decoder::Xz(decoder) => decoder.read(buffer)?,
        };
        self.digest.update(&buffer[..read]);
        Ok(read)
    }
}

/// Lower-case hexadecimal digits of `bytes`.
pub(crate) fn hexadecimal(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        // Writing to a string cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}
