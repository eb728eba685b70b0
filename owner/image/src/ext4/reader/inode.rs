//! Inodes as they are on disk.

use std::os::unix::fs::FileExt;

use super::super::{Metadata, Timestamp};
use super::{ReadError, Reader, attributes, get16, get32, wide};

const FLAG_EXTENTS: u32 = 0x0008_0000;

/// What an inode is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NodeKind {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link.
    SymbolicLink,
    /// A character device with major and minor number.
    CharacterDevice(u32, u32),
    /// A block device with major and minor number.
    BlockDevice(u32, u32),
    /// A named pipe.
    Fifo,
    /// A socket.
    Socket,
}

/// An inode.
#[derive(Clone, Debug)]
pub struct Node {
    /// Its number.
    pub number: u32,
    /// What it is.
    pub kind: NodeKind,
    /// Bytes of content.
    pub size: u64,
    /// Names that it has.
    pub links: u16,
    /// Mode, owner, time and attributes.
    pub metadata: Metadata,
    pub(super) flags: u32,
    pub(super) block: [u8; 60],
}

impl Reader {
    /// Reads inode `number`.
    ///
    /// # Errors
    /// A number that is none, or an unreadable or damaged inode.
    pub fn node(&self, number: u32) -> Result<Node, ReadError> {
        let damaged = |what| ReadError::Damaged { what, inode: number };
        let index = number.checked_sub(1).filter(|index| *index < self.inodes);
        let index = index.ok_or_else(|| damaged("the number"))?;
        let table = self.tables.get((index / self.inodes_per_group) as usize);
        let table = *table.ok_or_else(|| damaged("the number"))?;
        let within = u64::from(index % self.inodes_per_group) * self.inode_size;
        let mut bytes = vec![0; usize::try_from(self.inode_size).unwrap_or(256)];
        let at = table
            .checked_mul(self.block_size)
            .and_then(|at| at.checked_add(within))
            .filter(|at| at / self.block_size < self.blocks)
            .ok_or_else(|| damaged("the table"))?;
        self.file.read_exact_at(&mut bytes, at).map_err(ReadError::Read)?;
        let mode = get16(&bytes, 0);
        let mut block = [0; 60];
        block.copy_from_slice(&bytes[40..100]);
        let device = || {
            let (old, new) = (get32(&block, 0), get32(&block, 4));
            if old != 0 {
                return ((old >> 8) & 0xff, old & 0xff);
            }
            ((new & 0xf_ff00) >> 8, (new & 0xff) | ((new >> 12) & 0xf_ff00))
        };
        let kind = match mode & 0o170_000 {
            0o100_000 => NodeKind::File,
            0o040_000 => NodeKind::Directory,
            0o120_000 => NodeKind::SymbolicLink,
            0o020_000 => {
                let (major, minor) = device();
                NodeKind::CharacterDevice(major, minor)
            }
            0o060_000 => {
                let (major, minor) = device();
                NodeKind::BlockDevice(major, minor)
            }
            0o010_000 => NodeKind::Fifo,
            0o140_000 => NodeKind::Socket,
            _ => return Err(damaged("the type")),
        };
        let extra = if bytes.len() > 128 { usize::from(get16(&bytes, 128)) } else { 0 };
        if 128 + extra > bytes.len() {
            return Err(damaged("the extra size"));
        }
        let mut seconds = i64::from(get32(&bytes, 16).cast_signed());
        let mut nanoseconds = 0;
        if extra >= 12 {
            let field = get32(&bytes, 136);
            seconds += i64::from(field & 3) << 32;
            nanoseconds = field >> 2;
        }
        let mut list = Vec::new();
        if extra > 0 {
            attributes::read_in_inode(&bytes[128 + extra..], &mut list)
                .ok_or_else(|| damaged("an attribute"))?;
        }
        let outside = wide(get32(&bytes, 104), u32::from(get16(&bytes, 118)));
        if outside != 0 {
            let mut buffer = vec![0; usize::try_from(self.block_size).unwrap_or(4096)];
            self.read_block(outside, &mut buffer)?;
            attributes::read_block(&buffer, &mut list).ok_or_else(|| damaged("an attribute"))?;
        }
        let half =
            |low, high| u32::from(get16(&bytes, low)) | (u32::from(get16(&bytes, high)) << 16);
        Ok(Node {
            number,
            kind,
            size: wide(get32(&bytes, 4), get32(&bytes, 108)),
            links: get16(&bytes, 26),
            metadata: Metadata {
                permissions: mode & 0o7777,
                owner: half(2, 120),
                group: half(24, 122),
                modified: Timestamp::new(seconds, nanoseconds),
                attributes: list,
            },
            flags: get32(&bytes, 32),
            block,
        })
    }

    /// Returns the target of the symbolic link `node`.
    ///
    /// # Errors
    /// An unreadable or damaged link.
    pub fn link_target(&self, node: &Node) -> Result<Vec<u8>, ReadError> {
        let damaged = || ReadError::Damaged { what: "the link", inode: node.number };
        let length = usize::try_from(node.size).ok().filter(|length| (1..4096).contains(length));
        let length = length.ok_or_else(damaged)?;
        let target = if node.flags & FLAG_EXTENTS == 0 {
            node.block.get(..length).ok_or_else(damaged)?.to_vec()
        } else {
            let mut target = Vec::new();
            std::io::Read::read_to_end(&mut self.content(node)?, &mut target)
                .map_err(ReadError::Read)?;
            target
        };
        if target.contains(&0) { Err(damaged()) } else { Ok(target) }
    }
}
