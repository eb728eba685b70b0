//! Reads an ext4 file system from its file, without mounting it and without trusting it.
//!
//! It reads what `mke2fs` and [`super::Writer`] make: extents, directories in blocks (indexed or
//! not), attributes in the inode or in one block. What it does not understand (block maps, inline
//! data, encryption, a journal that has to be replayed) is an error, never a guess. Every number
//! that comes from the file is checked before it is used, and every list has a limit.

mod attributes;
mod content;
mod inode;

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use uuid::Uuid;

use super::layout::ROOT_INODE;
pub use content::ContentReader;
pub use inode::{Node, NodeKind};

const MOST_LINKS_FOLLOWED: u32 = 40;
/// Bytes of the largest directory: with a million long names it has 256 MiB.
const LARGEST_DIRECTORY: u64 = 1 << 28;
/// The most names of a directory, about what an image may have files.
const MOST_NAMES: usize = 1_300_000;

/// Why a file system cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The file could not be read.
    #[error("read the ext4 file system")]
    Read(#[source] io::Error),
    /// There is no ext4 superblock.
    #[error("the file holds no ext4 file system")]
    NotExt4,
    /// It has a feature that is not understood.
    #[error("the file system {0}")]
    Unsupported(&'static str),
    /// It contradicts itself.
    #[error("the file system is damaged: {what} of inode {inode}")]
    Damaged {
        /// What is wrong.
        what: &'static str,
        /// Where.
        inode: u32,
    },
}

/// What a superblock says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Summary {
    /// The file system's identity.
    pub uuid: Uuid,
    /// Bytes that it covers.
    pub size: u64,
    /// Inodes in use.
    pub inodes: u64,
    /// Whether the journal holds something that is not in its place yet.
    pub needs_recovery: bool,
}

/// A file system being read.
#[derive(Debug)]
pub struct Reader {
    file: File,
    block_size: u64,
    blocks: u64,
    inodes: u32,
    inodes_per_group: u32,
    inode_size: u64,
    /// The first block of each group's inode table.
    tables: Vec<u64>,
    summary: Summary,
}

pub(super) fn get16(bytes: &[u8], at: usize) -> u16 {
    bytes.get(at..at + 2).map_or(0, |field| u16::from_le_bytes([field[0], field[1]]))
}

pub(super) fn get32(bytes: &[u8], at: usize) -> u32 {
    let field = |at| u32::from(get16(bytes, at));
    field(at) | (field(at + 2) << 16)
}

fn wide(low: u32, high: u32) -> u64 {
    (u64::from(high) << 32) | u64::from(low)
}

impl Reader {
    /// Reads the superblock and the group descriptors.
    ///
    /// # Errors
    /// An unreadable file, or one that holds no ext4 file system of a kind that is understood.
    pub fn open(file: File) -> Result<Self, ReadError> {
        const INLINE_DATA: u32 = 0x8000;
        const ENCRYPTED: u32 = 0x1_0000;
        const JOURNAL_DEVICE: u32 = 0x8;
        const META_BG: u32 = 0x10;
        const RECOVER: u32 = 0x4;
        const WIDE: u32 = 0x80;
        let mut superblock = [0; 1024];
        match file.read_exact_at(&mut superblock, 1024) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                return Err(ReadError::NotExt4);
            }
            Err(error) => return Err(ReadError::Read(error)),
        }
        if get16(&superblock, 56) != 0xEF53 {
            return Err(ReadError::NotExt4);
        }
        let block_size = match get32(&superblock, 24) {
            shift @ 0..=6 => 1024_u64 << shift,
            _ => return Err(ReadError::Unsupported("has blocks of an unknown size")),
        };
        let incompatible = get32(&superblock, 96);
        for (flag, what) in [
            (INLINE_DATA, "keeps data in inodes (inline_data)"),
            (ENCRYPTED, "is encrypted"),
            (JOURNAL_DEVICE, "is a journal"),
            (META_BG, "has its descriptors in meta groups (meta_bg)"),
        ] {
            if incompatible & flag != 0 {
                return Err(ReadError::Unsupported(what));
            }
        }
        let large = incompatible & WIDE != 0;
        let descriptor_size = if large { u64::from(get16(&superblock, 254)) } else { 32 };
        let high = if large { get32(&superblock, 336) } else { 0 };
        let blocks = wide(get32(&superblock, 4), high);
        let inode_size =
            if get32(&superblock, 76) == 0 { 128 } else { u64::from(get16(&superblock, 88)) };
        let (inodes, inodes_per_group) = (get32(&superblock, 0), get32(&superblock, 40));
        let blocks_per_group = u64::from(get32(&superblock, 32));
        let first = u64::from(get32(&superblock, 20));
        let length = file.metadata().map_err(ReadError::Read)?.len();
        let damaged = |what| ReadError::Damaged { what, inode: 0 };
        if !matches!(inode_size, 128 | 256 | 512 | 1024) || !(32..=1024).contains(&descriptor_size)
        {
            return Err(ReadError::Unsupported("has records of an unknown size"));
        }
        if inodes_per_group == 0 || blocks_per_group == 0 || blocks <= first {
            return Err(damaged("the superblock"));
        }
        if blocks.checked_mul(block_size).is_none_or(|size| size > length) {
            return Err(ReadError::Unsupported("is larger than its file"));
        }
        let groups = (blocks - first).div_ceil(blocks_per_group);
        if groups > 1 << 20 || u64::from(inodes) > groups * u64::from(inodes_per_group) {
            return Err(damaged("the superblock"));
        }
        let mut tables = Vec::new();
        let mut descriptor = vec![0; usize::try_from(descriptor_size).unwrap_or(32)];
        for group in 0..groups {
            let at = (first + 1) * block_size + group * descriptor_size;
            file.read_exact_at(&mut descriptor, at).map_err(ReadError::Read)?;
            let high = if descriptor_size >= 64 { get32(&descriptor, 40) } else { 0 };
            tables.push(wide(get32(&descriptor, 8), high));
        }
        let mut uuid = [0; 16];
        uuid.copy_from_slice(&superblock[104..120]);
        let summary = Summary {
            uuid: Uuid::from_bytes(uuid),
            size: blocks * block_size,
            inodes: u64::from(inodes.saturating_sub(get32(&superblock, 16))),
            needs_recovery: incompatible & RECOVER != 0,
        };
        Ok(Self { file, block_size, blocks, inodes, inodes_per_group, inode_size, tables, summary })
    }

    /// Returns what the superblock says.
    #[must_use]
    pub fn summary(&self) -> &Summary {
        &self.summary
    }

    /// Reads the root directory's inode.
    ///
    /// # Errors
    /// An unreadable or damaged file system.
    pub fn root(&self) -> Result<Node, ReadError> {
        self.node(ROOT_INODE)
    }

    /// Returns the names in `directory`, sorted, with their inodes; without `.` and `..`.
    ///
    /// # Errors
    /// An unreadable or damaged directory.
    pub fn entries(&self, directory: &Node) -> Result<Vec<(Vec<u8>, u32)>, ReadError> {
        let mut names = Vec::new();
        self.each_entry(directory, |name, inode| {
            names.push((name.to_vec(), inode));
            names.len() <= MOST_NAMES
        })?;
        if names.len() > MOST_NAMES {
            return Err(ReadError::Unsupported("has a directory with too many names"));
        }
        names.sort_unstable();
        if names.windows(2).any(|pair| pair[0].0 == pair[1].0) {
            return Err(ReadError::Damaged { what: "the directory", inode: directory.number });
        }
        Ok(names)
    }

    /// Returns the inode that has `name` in `directory`; takes no more memory for a larger one.
    fn entry(&self, directory: &Node, name: &[u8]) -> Result<Option<u32>, ReadError> {
        let mut found = None;
        self.each_entry(directory, |entry, inode| {
            if entry == name {
                found = Some(inode);
            }
            found.is_none()
        })?;
        Ok(found)
    }

    /// Visits the names in `directory` with their inodes, without `.` and `..`, until `visit`
    /// returns false.
    fn each_entry(
        &self,
        directory: &Node,
        mut visit: impl FnMut(&[u8], u32) -> bool,
    ) -> Result<(), ReadError> {
        let damaged = || ReadError::Damaged { what: "the directory", inode: directory.number };
        if directory.kind != NodeKind::Directory || directory.size > LARGEST_DIRECTORY {
            return Err(damaged());
        }
        let runs = self.runs(directory)?;
        // Its extents may name more blocks than it has, and the same ones over and over.
        let blocks: u64 = runs.iter().map(|run| u64::from(run.length)).sum();
        if blocks > LARGEST_DIRECTORY / self.block_size {
            return Err(damaged());
        }
        let mut bytes = vec![0; usize::try_from(self.block_size).unwrap_or(4096)];
        for run in runs {
            for index in 0..u64::from(run.length) {
                self.read_block(run.physical + index, &mut bytes)?;
                let mut at = 0;
                while at + 8 <= bytes.len() {
                    let length = usize::from(get16(&bytes, at + 4));
                    let (inode, name) = (get32(&bytes, at), usize::from(bytes[at + 6]));
                    if length < 8 || at + length > bytes.len() || 8 + name > length {
                        return Err(damaged());
                    }
                    let name = &bytes[at + 8..at + 8 + name];
                    // Index blocks are entries without an inode; a checksum's too.
                    if inode != 0 && name != b"." && name != b".." {
                        if name.is_empty() || name.contains(&b'/') || name.contains(&0) {
                            return Err(damaged());
                        }
                        if !visit(name, inode) {
                            return Ok(());
                        }
                    }
                    at += length;
                }
            }
        }
        Ok(())
    }

    /// Follows `path` from the root through all links; `None` where nothing has that name.
    ///
    /// # Errors
    /// An unreadable or damaged file system.
    pub fn lookup(&self, path: &[u8]) -> Result<Option<Node>, ReadError> {
        let split = |path: &[u8]| -> Vec<Vec<u8>> {
            let names = path.split(|&byte| byte == b'/');
            names.filter(|name| !name.is_empty() && *name != b".").map(<[u8]>::to_vec).collect()
        };
        let mut rest: VecDeque<Vec<u8>> = split(path).into();
        let mut above = vec![self.root()?];
        let mut followed = 0;
        while let Some(name) = rest.pop_front() {
            if name == b".." {
                if above.len() > 1 {
                    above.pop();
                }
                continue;
            }
            let Some(here) = above.last() else { return Ok(None) };
            if here.kind != NodeKind::Directory {
                return Ok(None);
            }
            let Some(number) = self.entry(here, &name)? else { return Ok(None) };
            let node = self.node(number)?;
            if node.kind != NodeKind::SymbolicLink {
                above.push(node);
                continue;
            }
            followed += 1;
            if followed > MOST_LINKS_FOLLOWED {
                return Ok(None);
            }
            let target = self.link_target(&node)?;
            if target.first() == Some(&b'/') {
                above.truncate(1);
            }
            for name in split(&target).into_iter().rev() {
                rest.push_front(name);
            }
        }
        Ok(above.pop())
    }

    fn read_block(&self, block: u64, bytes: &mut [u8]) -> Result<(), ReadError> {
        if block == 0 || block >= self.blocks {
            return Err(ReadError::Damaged { what: "a block number", inode: 0 });
        }
        self.file.read_exact_at(bytes, block * self.block_size).map_err(ReadError::Read)
    }
}
