//! Writes tar archives in the POSIX pax format, with the keywords that [`super::Archive`] reads.

use std::io::{self, Read, Write};

use super::header::RECORD;
use crate::ext4::Metadata;

/// What an entry is, for the writer.
#[derive(Clone, Copy, Debug)]
pub(crate) enum WrittenKind<'a> {
    /// A regular file of this many bytes.
    File(u64),
    Directory,
    SymbolicLink(&'a [u8]),
    /// To the entry with this path.
    HardLink(&'a [u8]),
    CharacterDevice(u32, u32),
    BlockDevice(u32, u32),
    Fifo,
}

/// Writes an archive.
pub(crate) struct ArchiveWriter<W> {
    out: W,
}

impl<W: Write> ArchiveWriter<W> {
    pub(crate) fn new(out: W) -> Self {
        Self { out }
    }

    /// Writes the headers of an entry; a file's content follows by [`ArchiveWriter::content`].
    pub(crate) fn entry(
        &mut self,
        path: &[u8],
        kind: WrittenKind<'_>,
        metadata: &Metadata,
    ) -> io::Result<()> {
        let size = if let WrittenKind::File(size) = kind { size } else { 0 };
        self.headers(path, kind, metadata, size, Vec::new())
    }

    /// Writes the headers and the map of a file with holes, `pieces` being what is no hole.
    pub(crate) fn sparse(
        &mut self,
        path: &[u8],
        size: u64,
        pieces: &[(u64, u64)],
        metadata: &Metadata,
    ) -> io::Result<()> {
        let mut map = format!("{}\n", pieces.len());
        for (offset, length) in pieces {
            map.push_str(&format!("{offset}\n{length}\n"));
        }
        let mut map = map.into_bytes();
        map.resize(map.len().next_multiple_of(RECORD), 0);
        let stored: u64 = pieces.iter().map(|(_, length)| length).sum();
        let mut records = Vec::new();
        record(&mut records, b"GNU.sparse.major", b"1");
        record(&mut records, b"GNU.sparse.minor", b"0");
        record(&mut records, b"GNU.sparse.name", path);
        record(&mut records, b"GNU.sparse.realsize", size.to_string().as_bytes());
        let stored = stored + map.len() as u64;
        self.headers(b"GNUSparseFile.0/file", WrittenKind::File(size), metadata, stored, records)?;
        self.out.write_all(&map)
    }

    /// Copies `size` bytes of content.
    pub(crate) fn content(&mut self, content: impl Read, size: u64) -> io::Result<()> {
        if io::copy(&mut content.take(size), &mut self.out)? == size {
            return Ok(());
        }
        Err(io::ErrorKind::UnexpectedEof.into())
    }

    /// Fills the last record of a file's content.
    pub(crate) fn pad(&mut self, size: u64) -> io::Result<()> {
        let padding = usize::try_from(size.wrapping_neg() % RECORD as u64).unwrap_or(0);
        self.out.write_all(&[0; RECORD][..padding])
    }

    /// Writes the end marker and gives back what was written to.
    pub(crate) fn finish(mut self) -> io::Result<W> {
        self.out.write_all(&[0; 2 * RECORD])?;
        Ok(self.out)
    }

    fn headers(
        &mut self,
        path: &[u8],
        kind: WrittenKind<'_>,
        metadata: &Metadata,
        stored: u64,
        mut records: Vec<u8>,
    ) -> io::Result<()> {
        let (flag, link, device) = match kind {
            WrittenKind::File(_) => (b'0', &[][..], None),
            WrittenKind::HardLink(target) => (b'1', target, None),
            WrittenKind::SymbolicLink(target) => (b'2', target, None),
            WrittenKind::CharacterDevice(major, minor) => (b'3', &[][..], Some((major, minor))),
            WrittenKind::BlockDevice(major, minor) => (b'4', &[][..], Some((major, minor))),
            WrittenKind::Directory => (b'5', &[][..], None),
            WrittenKind::Fifo => (b'6', &[][..], None),
        };
        // Hard links say nothing of the file: it is said where it first stands.
        let attributes = if flag == b'1' { &[][..] } else { &metadata.attributes };
        let (seconds, nanoseconds) = (metadata.modified.seconds(), metadata.modified.nanoseconds());
        let mut header = Header { bytes: [0; RECORD] };
        header.text(0, 100, path, b"path", &mut records);
        header.text(157, 100, link, b"linkpath", &mut records);
        header.number(100, 8, u64::from(metadata.permissions), b"", &mut records);
        header.number(108, 8, u64::from(metadata.owner), b"uid", &mut records);
        header.number(116, 8, u64::from(metadata.group), b"gid", &mut records);
        header.number(124, 12, stored, b"size", &mut records);
        header.number(136, 12, u64::try_from(seconds).unwrap_or(0), b"", &mut records);
        if seconds < 0 || nanoseconds > 0 {
            record(&mut records, b"mtime", time(seconds, nanoseconds).as_bytes());
        }
        if let Some((major, minor)) = device {
            header.number(329, 8, u64::from(major), b"", &mut records);
            header.number(337, 8, u64::from(minor), b"", &mut records);
        }
        for attribute in attributes {
            let key = [&b"SCHILY.xattr."[..], &attribute.name].concat();
            record(&mut records, &key, &attribute.value);
        }
        if !records.is_empty() {
            let mut extended = Header { bytes: [0; RECORD] };
            let mut none = Vec::new();
            extended.text(0, 100, b"PaxHeaders/entry", b"", &mut none);
            extended.number(100, 8, 0o644, b"", &mut none);
            extended.number(124, 12, records.len() as u64, b"", &mut none);
            extended.number(136, 12, 0, b"", &mut none);
            self.out.write_all(&extended.finish(b'x'))?;
            self.out.write_all(&records)?;
            self.pad(records.len() as u64)?;
        }
        self.out.write_all(&header.finish(flag))
    }
}

struct Header {
    bytes: [u8; RECORD],
}

impl Header {
    /// Writes `text`, or as much as fits and all of it as a record.
    fn text(&mut self, at: usize, width: usize, text: &[u8], key: &[u8], records: &mut Vec<u8>) {
        let fits = text.len().min(width);
        self.bytes[at..at + fits].copy_from_slice(&text[..fits]);
        if fits < text.len() {
            record(records, key, text);
        }
    }

    /// Writes octal digits, or a record where they do not fit.
    fn number(&mut self, at: usize, width: usize, value: u64, key: &[u8], records: &mut Vec<u8>) {
        let digits = format!("{value:0width$o}", width = width - 1);
        if digits.len() < width {
            self.bytes[at..at + digits.len()].copy_from_slice(digits.as_bytes());
        } else {
            record(records, key, value.to_string().as_bytes());
        }
    }

    fn finish(mut self, flag: u8) -> [u8; RECORD] {
        self.bytes[156] = flag;
        self.bytes[257..265].copy_from_slice(b"ustar\x0000");
        self.bytes[148..156].fill(b' ');
        let sum: u32 = self.bytes.iter().map(|&byte| u32::from(byte)).sum();
        self.bytes[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        self.bytes
    }
}

/// Appends `LENGTH KEY=VALUE\n`, the length counting itself.
fn record(records: &mut Vec<u8>, key: &[u8], value: &[u8]) {
    let rest = key.len() + value.len() + 3;
    let mut length = rest + 1;
    while length != rest + length.to_string().len() {
        length = rest + length.to_string().len();
    }
    records.extend(length.to_string().as_bytes());
    records.push(b' ');
    records.extend(key);
    records.push(b'=');
    records.extend(value);
    records.push(b'\n');
}

fn time(seconds: i64, nanoseconds: u32) -> String {
    let (sign, seconds, nanoseconds) = match (seconds < 0, nanoseconds) {
        (true, 1..) => ("-", -(seconds + 1), 1_000_000_000 - nanoseconds),
        (true, 0) => ("-", -seconds, 0),
        (false, _) => ("", seconds, nanoseconds),
    };
    let text = format!("{sign}{seconds}.{nanoseconds:09}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

#[cfg(test)]
mod tests {
    use super::super::{Archive, EntryKind, Piece};
    use super::*;
    use crate::ext4::{Attribute, Timestamp};

    #[test]
    fn what_is_written_is_read() {
        let metadata = |seconds, nanoseconds, owner| Metadata {
            permissions: 0o4711,
            owner,
            group: 5,
            modified: Timestamp::new(seconds, nanoseconds),
            attributes: vec![Attribute { name: b"user.x".to_vec(), value: b"\0\n\xff".to_vec() }],
        };
        let long = [b"d/".repeat(80), b"name\n\xff".to_vec()].concat();
        let mut writer = ArchiveWriter::new(Vec::new());
        let mut expected = Vec::new();
        for (path, kind, read, metadata) in [
            (&b"dir"[..], WrittenKind::Directory, EntryKind::Directory, metadata(1, 0, 0)),
            (&long, WrittenKind::Fifo, EntryKind::Fifo, metadata(-1, 250_000_000, u32::MAX)),
            (
                b"link",
                WrittenKind::SymbolicLink(&long),
                EntryKind::SymbolicLink(long.clone()),
                metadata(-7, 0, 9),
            ),
            (
                b"device",
                WrittenKind::BlockDevice(300, 70_000),
                EntryKind::BlockDevice(300, 70_000),
                metadata(1 << 33, 999_999_999, 9),
            ),
            (b"file", WrittenKind::File(3), EntryKind::File, metadata(0, 1, 2_097_152)),
        ] {
            writer.entry(path, kind, &metadata).unwrap();
            expected.push((path.to_vec(), read, metadata));
        }
        writer.content(&b"abcdef"[..], 3).unwrap();
        writer.pad(3).unwrap();
        let sparse = metadata(5, 0, 0);
        writer.sparse(b"sparse", 10_000, &[(4096, 2), (9000, 1)], &sparse).unwrap();
        writer.content(&b"xyz"[..], 3).unwrap();
        writer.pad(3).unwrap();
        let bytes = writer.finish().unwrap();
        let mut archive = Archive::new(&bytes[..]);
        for (path, kind, metadata) in expected {
            let entry = archive.next_entry().unwrap().unwrap();
            assert_eq!((entry.path, entry.kind, entry.metadata), (path, kind, metadata));
        }
        let entry = archive.next_entry().unwrap().unwrap();
        assert_eq!((entry.path, entry.size, entry.metadata), (b"sparse".to_vec(), 10_000, sparse));
        let mut content = Vec::new();
        while let Some(piece) = archive.next_piece().unwrap() {
            match piece {
                Piece::Data(data) => content.extend_from_slice(data),
                Piece::Hole(length) => {
                    content.resize(content.len() + usize::try_from(length).unwrap(), 0)
                }
            }
        }
        let mut whole = vec![0; 10_000];
        whole[4096..4098].copy_from_slice(b"xy");
        whole[9000] = b'z';
        assert_eq!(content, whole);
        assert!(archive.next_entry().unwrap().is_none());
    }
}
