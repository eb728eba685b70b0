//! The entries of all layers, kept in a file without a name until the layers are merged.
//!
//! Contents go into the file system while the layers come, the newest first; what they mean
//! together is only known when the oldest has come. A million entries would take more memory than
//! a build may have, and they are written once and read once, in order.

use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Seek, SeekFrom, Write};
use std::path::Path;

use crate::ext4::{Attribute, Extent, Kind, Metadata, SealedContent, Timestamp};

/// What a layer says of one path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    /// A file whose content is in the file system already.
    File(Metadata, SealedContent),
    /// A file whose content was stepped over because a newer layer seemed to replace it; with the
    /// number of its entry in its layer.
    Skipped(Metadata, u64),
    /// Another name for this path.
    HardLink(Vec<u8>),
    /// Anything else that has a place in a file system.
    Other(Metadata, Kind),
    /// This name of older layers is gone; the record's path is the directory.
    Whiteout(Vec<u8>),
    /// All of older layers in the directory is gone.
    Opaque,
}

/// Writes records and, when all are written, reads them.
#[derive(Debug)]
pub(crate) struct Records {
    file: BufWriter<File>,
    /// Bytes so far.
    length: u64,
    buffer: Vec<u8>,
}

impl Records {
    /// Makes the file at `path` and takes away its name.
    pub(crate) fn create(path: &Path) -> io::Result<Self> {
        let file = File::options().read(true).write(true).create_new(true).open(path)?;
        std::fs::remove_file(path)?;
        let file = BufWriter::with_capacity(64 << 10, file);
        Ok(Self { file, length: 0, buffer: Vec::new() })
    }

    /// Where the next record begins.
    pub(crate) fn position(&self) -> u64 {
        self.length
    }

    pub(crate) fn write(&mut self, path: &[u8], change: &Change) -> io::Result<()> {
        let mut out = std::mem::take(&mut self.buffer);
        out.clear();
        put_bytes(&mut out, path);
        match change {
            Change::File(metadata, content) => {
                out.push(0);
                put_metadata(&mut out, metadata);
                out.extend(content.length.to_le_bytes());
                out.extend((content.extents.len() as u64).to_le_bytes());
                for extent in &content.extents {
                    for value in [extent.logical, extent.physical, extent.length] {
                        out.extend(value.to_le_bytes());
                    }
                }
            }
            Change::Skipped(metadata, number) => {
                out.push(1);
                put_metadata(&mut out, metadata);
                out.extend(number.to_le_bytes());
            }
            Change::HardLink(target) => {
                out.push(2);
                put_bytes(&mut out, target);
            }
            Change::Other(metadata, kind) => {
                let (code, numbers) = match kind {
                    Kind::Directory => (3, (0, 0)),
                    Kind::SymbolicLink(_) => (4, (0, 0)),
                    &Kind::CharacterDevice(major, minor) => (5, (major, minor)),
                    &Kind::BlockDevice(major, minor) => (6, (major, minor)),
                    Kind::Fifo => (7, (0, 0)),
                    Kind::Socket => (8, (0, 0)),
                };
                out.push(code);
                put_metadata(&mut out, metadata);
                match kind {
                    Kind::SymbolicLink(target) => put_bytes(&mut out, target),
                    Kind::CharacterDevice(..) | Kind::BlockDevice(..) => {
                        out.extend(numbers.0.to_le_bytes());
                        out.extend(numbers.1.to_le_bytes());
                    }
                    Kind::Directory | Kind::Fifo | Kind::Socket => {}
                }
            }
            Change::Whiteout(name) => {
                out.push(9);
                put_bytes(&mut out, name);
            }
            Change::Opaque => out.push(10),
        }
        self.length += out.len() as u64;
        let written = self.file.write_all(&out);
        self.buffer = out;
        written
    }

    /// Ends writing; what was written can be read.
    pub(crate) fn read(self) -> io::Result<RecordReader> {
        let file = self.file.into_inner().map_err(io::IntoInnerError::into_error)?;
        Ok(RecordReader { file: BufReader::with_capacity(64 << 10, file), position: 0 })
    }
}

/// Reads records.
#[derive(Debug)]
pub(crate) struct RecordReader {
    file: BufReader<File>,
    position: u64,
}

impl RecordReader {
    pub(crate) fn seek(&mut self, position: u64) -> io::Result<()> {
        self.position = self.file.seek(SeekFrom::Start(position))?;
        Ok(())
    }

    pub(crate) fn position(&self) -> u64 {
        self.position
    }

    /// Reads the next record: a path, and what is said of it.
    pub(crate) fn next(&mut self) -> io::Result<(Vec<u8>, Change)> {
        let path = self.bytes()?;
        let [code] = self.array()?;
        let change = match code {
            0 => {
                let metadata = self.metadata()?;
                let length = self.number()?;
                let count = self.number()?;
                let mut extents = Vec::new();
                for _ in 0..count {
                    let (logical, physical, length) = (self.small()?, self.small()?, self.small()?);
                    extents.push(Extent { logical, physical, length });
                }
                Change::File(metadata, SealedContent { extents, length })
            }
            1 => Change::Skipped(self.metadata()?, self.number()?),
            2 => Change::HardLink(self.bytes()?),
            3 => Change::Other(self.metadata()?, Kind::Directory),
            4 => Change::Other(self.metadata()?, Kind::SymbolicLink(self.bytes()?)),
            5 => {
                Change::Other(self.metadata()?, Kind::CharacterDevice(self.small()?, self.small()?))
            }
            6 => Change::Other(self.metadata()?, Kind::BlockDevice(self.small()?, self.small()?)),
            7 => Change::Other(self.metadata()?, Kind::Fifo),
            8 => Change::Other(self.metadata()?, Kind::Socket),
            9 => Change::Whiteout(self.bytes()?),
            10 => Change::Opaque,
            _ => return Err(io::ErrorKind::InvalidData.into()),
        };
        Ok((path, change))
    }

    fn metadata(&mut self) -> io::Result<Metadata> {
        let permissions = u16::from_le_bytes(self.array()?);
        let (owner, group) = (self.small()?, self.small()?);
        let seconds = i64::from_le_bytes(self.array()?);
        let modified = Timestamp::new(seconds, self.small()?);
        let mut attributes = Vec::new();
        for _ in 0..self.small()? {
            attributes.push(Attribute { name: self.bytes()?, value: self.bytes()? });
        }
        Ok(Metadata { permissions, owner, group, modified, attributes })
    }

    fn bytes(&mut self) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; self.small()? as usize];
        self.file.read_exact(&mut bytes)?;
        self.position += bytes.len() as u64;
        Ok(bytes)
    }

    fn small(&mut self) -> io::Result<u32> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    fn number(&mut self) -> io::Result<u64> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    fn array<const LENGTH: usize>(&mut self) -> io::Result<[u8; LENGTH]> {
        let mut bytes = [0; LENGTH];
        self.file.read_exact(&mut bytes)?;
        self.position += LENGTH as u64;
        Ok(bytes)
    }
}

fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    // Paths, link targets and attributes have limits far below this (tarball).
    out.extend(u32::try_from(bytes.len()).unwrap_or(u32::MAX).to_le_bytes());
    out.extend(bytes);
}

fn put_metadata(out: &mut Vec<u8>, metadata: &Metadata) {
    out.extend(metadata.permissions.to_le_bytes());
    out.extend(metadata.owner.to_le_bytes());
    out.extend(metadata.group.to_le_bytes());
    out.extend(metadata.modified.seconds().to_le_bytes());
    out.extend(metadata.modified.nanoseconds().to_le_bytes());
    out.extend(u32::try_from(metadata.attributes.len()).unwrap_or(u32::MAX).to_le_bytes());
    for attribute in &metadata.attributes {
        put_bytes(out, &attribute.name);
        put_bytes(out, &attribute.value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_read_as_they_were_written() {
        let metadata = Metadata {
            permissions: 0o4755,
            owner: u32::MAX,
            group: 7,
            modified: Timestamp::new(-5, 999_999_999),
            attributes: vec![Attribute { name: b"user.a".to_vec(), value: vec![0; 3000] }],
        };
        let extents = vec![Extent { logical: 1, physical: 2, length: 3 }; 5];
        let changes = [
            Change::File(metadata.clone(), SealedContent { extents, length: 1 << 40 }),
            Change::Skipped(metadata.clone(), 9),
            Change::HardLink(b"a/b".to_vec()),
            Change::Other(metadata.clone(), Kind::Directory),
            Change::Other(metadata.clone(), Kind::SymbolicLink(b"../x".to_vec())),
            Change::Other(metadata.clone(), Kind::CharacterDevice(300, 70_000)),
            Change::Other(metadata.clone(), Kind::BlockDevice(8, 1)),
            Change::Other(metadata.clone(), Kind::Fifo),
            Change::Other(Metadata::default(), Kind::Socket),
            Change::Whiteout(b"gone".to_vec()),
            Change::Opaque,
        ];
        let directory = tempfile::tempdir().unwrap();
        let mut records = Records::create(&directory.path().join("records")).unwrap();
        let mut second = 0;
        for (index, change) in changes.iter().enumerate() {
            if index == 1 {
                second = records.position();
            }
            records.write(b"a/path", change).unwrap();
        }
        let end = records.position();
        let mut reader = records.read().unwrap();
        reader.seek(second).unwrap();
        for change in &changes[1..] {
            assert_eq!(reader.next().unwrap(), (b"a/path".to_vec(), change.clone()));
        }
        assert_eq!(reader.position(), end);
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
    }
}
