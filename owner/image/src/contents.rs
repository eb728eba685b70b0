//! What is in a finished image: read back from its file system, never mounted.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::Path;

use crate::builder::OsRelease;
use crate::ext4::reader::{Node, NodeKind, ReadError, Reader};
use crate::progress::{CancelFlag, Cancelled};
use crate::tarball::{ArchiveWriter, MOST_PIECES, WrittenKind};

/// Where the os-release file is (os-release(5)).
const RELEASES: [&[u8]; 2] = [b"etc/os-release", b"usr/lib/os-release"];
const LARGEST_RELEASE: u64 = 64 << 10;
const INITS: [&[u8]; 4] =
    [b"sbin/init", b"usr/lib/systemd/systemd", b"lib/systemd/systemd", b"etc/init"];
const SHELLS: [&[u8]; 2] = [b"bin/sh", b"usr/bin/sh"];
/// Most names below one another; the kernel's `PATH_MAX` allows no more.
const DEEPEST: usize = 2048;
/// Holes worth a map: at least this many bytes.
const SMALLEST_HOLES: u64 = 64 << 10;

/// Why an image's content could not be read or copied.
#[derive(Debug, thiserror::Error)]
pub enum ContentsError {
    /// The file system cannot be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// The archive cannot be written.
    #[error("write the archive of the image's files")]
    Write(#[source] io::Error),
    /// Directories are within each other without an end that is sane.
    #[error("the file system has more than {DEEPEST} directories within each other")]
    TooDeep,
    /// A file of more pieces than an archive's reader takes.
    #[error("a file has more than {MOST_PIECES} pieces between holes")]
    Pieces,
    /// The work was cancelled.
    #[error(transparent)]
    Cancelled(#[from] Cancelled),
}

/// What an image is, seen from its files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Facts {
    pub(crate) os_release: Option<OsRelease>,
    pub(crate) has_init: bool,
    pub(crate) has_shell: bool,
}

impl Facts {
    pub(crate) fn read(reader: &Reader) -> Result<Self, ReadError> {
        let mut os_release = None;
        for path in RELEASES {
            if let Some(node) = reader.lookup(path)?
                && node.kind == NodeKind::File
                && node.size <= LARGEST_RELEASE
                && os_release.is_none()
            {
                let mut text = Vec::new();
                reader.content(&node)?.read_to_end(&mut text).map_err(ReadError::Read)?;
                os_release = OsRelease::parse(&String::from_utf8_lossy(&text));
            }
        }
        let executable = |paths: &[&[u8]]| -> Result<bool, ReadError> {
            for path in paths {
                if let Some(node) = reader.lookup(path)?
                    && node.kind == NodeKind::File
                    && node.metadata.permissions & 0o111 != 0
                {
                    return Ok(true);
                }
            }
            Ok(false)
        };
        let (has_init, has_shell) = (executable(&INITS)?, executable(&SHELLS)?);
        Ok(Self { os_release, has_init, has_shell })
    }
}

/// Opens the image at `path`.
pub(crate) fn open(path: &Path) -> Result<Reader, ReadError> {
    Reader::open(File::open(path).map_err(ReadError::Read)?)
}

/// Writes an archive of everything below `top` (a name in the root directory, or nothing for all)
/// and returns what it was written to, with the number of entries below `top`.
///
/// Sockets have no place in an archive and are left out, as are the names that only a file system
/// has (`lost+found` where it is empty).
pub(crate) fn write_archive<W: Write>(
    reader: &Reader,
    top: &[u8],
    out: W,
    cancel: &CancelFlag,
) -> Result<(W, u64), ContentsError> {
    let mut writer = ArchiveWriter::new(out);
    let mut first_names: HashMap<u32, Vec<u8>> = HashMap::new();
    let mut entries = 0;
    let root = reader.root()?;
    // What is still to be written, the next one last.
    let mut rest: Vec<(Vec<u8>, u32)> = Vec::new();
    let push =
        |rest: &mut Vec<(Vec<u8>, u32)>, path: &[u8], node: &Node| -> Result<(), ReadError> {
            for (name, number) in reader.entries(node)?.into_iter().rev() {
                let name = if path.is_empty() { name } else { [path, b"/", &name].concat() };
                rest.push((name, number));
            }
            Ok(())
        };
    if top.is_empty() {
        writer
            .entry(b"./", WrittenKind::Directory, &root.metadata)
            .map_err(ContentsError::Write)?;
        push(&mut rest, b"", &root)?;
    } else {
        rest.extend(reader.entries(&root)?.into_iter().filter(|(name, _)| name == top));
    }
    while let Some((path, number)) = rest.pop() {
        cancel.check()?;
        let node = reader.node(number)?;
        if path == b"lost+found"
            && node.kind == NodeKind::Directory
            && reader.entries(&node)?.is_empty()
        {
            continue;
        }
        if path.iter().filter(|&&byte| byte == b'/').count() > DEEPEST {
            return Err(ContentsError::TooDeep);
        }
        entries += u64::from(path != top);
        if node.links > 1 && node.kind != NodeKind::Directory {
            if let Some(first) = first_names.get(&number) {
                writer
                    .entry(&path, WrittenKind::HardLink(first), &node.metadata)
                    .map_err(ContentsError::Write)?;
                continue;
            }
            first_names.insert(number, path.clone());
        }
        write_node(reader, &mut writer, &path, &node, cancel)?;
        if node.kind == NodeKind::Directory {
            push(&mut rest, &path, &node)?;
        }
    }
    Ok((writer.finish().map_err(ContentsError::Write)?, entries))
}

fn write_node<W: Write>(
    reader: &Reader,
    writer: &mut ArchiveWriter<W>,
    path: &[u8],
    node: &Node,
    cancel: &CancelFlag,
) -> Result<(), ContentsError> {
    let metadata = &node.metadata;
    let target;
    let kind = match node.kind {
        NodeKind::Socket => return Ok(()),
        NodeKind::File => return write_file(reader, writer, path, node, cancel),
        NodeKind::Directory => WrittenKind::Directory,
        NodeKind::SymbolicLink => {
            target = reader.link_target(node)?;
            WrittenKind::SymbolicLink(&target)
        }
        NodeKind::CharacterDevice(major, minor) => WrittenKind::CharacterDevice(major, minor),
        NodeKind::BlockDevice(major, minor) => WrittenKind::BlockDevice(major, minor),
        NodeKind::Fifo => WrittenKind::Fifo,
    };
    writer.entry(path, kind, metadata).map_err(ContentsError::Write)
}

fn write_file<W: Write>(
    reader: &Reader,
    writer: &mut ArchiveWriter<W>,
    path: &[u8],
    node: &Node,
    cancel: &CancelFlag,
) -> Result<(), ContentsError> {
    let mut content = reader.content(node)?;
    let mut pieces = content.pieces();
    let stored: u64 = pieces.iter().map(|(_, length)| length).sum();
    let failed = ContentsError::Write;
    if node.size - stored < SMALLEST_HOLES {
        writer.entry(path, WrittenKind::File(node.size), &node.metadata).map_err(failed)?;
        writer.content(Until { content, cancel }, node.size).map_err(failed)?;
        return writer.pad(node.size).map_err(failed);
    }
    // Its holes are never written: they may be larger than any disk.
    if pieces.len() >= MOST_PIECES {
        return Err(ContentsError::Pieces);
    }
    // As GNU tar, which marks the end of a file that ends with a hole.
    if pieces.last().is_none_or(|(offset, length)| offset + length < node.size) {
        pieces.push((node.size, 0));
    }
    writer.sparse(path, node.size, &pieces, &node.metadata).map_err(failed)?;
    for (offset, length) in pieces {
        content.seek(offset);
        writer.content(Until { content: &mut content, cancel }, length).map_err(failed)?;
    }
    writer.pad(stored).map_err(failed)
}

/// A content that ends with an error where the work was cancelled.
struct Until<'a, R> {
    content: R,
    cancel: &'a CancelFlag,
}

impl<R: Read> Read for Until<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.cancel.check().map_err(io::Error::other)?;
        self.content.read(buffer)
    }
}
