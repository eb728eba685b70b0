//! Writes a new ext4 file system into a file, in one pass and without mounting anything.
//!
//! Content goes to the file in the order in which it is given, so an archive can be turned into a
//! file system while it is being read; names, inodes and sizes are kept in memory and written by
//! [`Writer::finish`]. The layout is what `mke2fs` would make (sparse superblocks, flexible groups,
//! blocks reserved for growth while mounted, a journal, group checksums), so every tool and kernel
//! takes it. Only blocks with content are written: the rest of the file stays a hole, and a block
//! of zeros in a file becomes a hole too.
//!
//! ```text
//! group 0: superblock, descriptors, reserved descriptors, journal | content ... | directories |
//! bitmaps and inode tables of the groups used so far | groups without content, unwritten
//! ```
//!
//! It knows nothing of archives or of images, and it never reads back what it wrote; that is what
//! [`reader`] is for.

mod attributes;
mod content;
mod directory;
mod extents;
mod finish;
mod layers;
mod layout;
mod names;
pub mod reader;
mod tree;

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use uuid::Uuid;

pub use attributes::{Attribute, AttributeError};
pub use content::{FileContent, SealedContent};
pub(crate) use extents::Extent;
pub use finish::Finished;
pub use layout::BLOCK_BYTES;
pub use tree::{Kind, Resolved};

use layout::{
    BLOCK_SIZE, BLOCKS_PER_GROUP, DESCRIPTOR_BLOCKS, FIRST_INODE, Inode, ROOT_INODE, has_superblock,
};

/// The largest file system: all descriptor blocks in use.
const LARGEST_SIZE: u64 = (DESCRIPTOR_BLOCKS * layout::DESCRIPTORS_PER_BLOCK) as u64
    * BLOCKS_PER_GROUP as u64
    * BLOCK_BYTES;

/// Most bytes of what is kept in memory for each name and each file beside fixed records. A large
/// distribution with all its sources has 10 MiB.
const MOST_KEPT: u64 = 40 << 20;

/// Why a file system could not be written.
#[derive(Debug, thiserror::Error)]
pub enum Ext4Error {
    /// The file could not be written; a full disk is one of the causes.
    #[error("write the ext4 file system")]
    Write(#[source] io::Error),
    /// The label is longer than the superblock's field.
    #[error("the label {0:?} is longer than 16 bytes")]
    Label(String),
    /// What was added does not fit into the size asked for.
    #[error("the content needs more than the {size} bytes of the file system")]
    Full {
        /// The size asked for, in bytes.
        size: u64,
    },
    /// The size is outside of what this writer makes (8 MiB to 1 TiB).
    #[error("a file system of {0} bytes is outside 8 MiB to 1 TiB")]
    Size(u64),
    /// A name that a directory cannot hold.
    #[error("a name in its path is {0}")]
    Name(&'static str),
    /// A component in the middle of a path is neither a directory nor a link to one.
    #[error("a component of its path is not a directory")]
    NotADirectory,
    /// Too many symbolic links while following a path.
    #[error("its path goes through more than 40 symbolic links")]
    LinkLoop,
    /// Something would replace a directory that holds entries.
    #[error("it would replace a directory that is not empty")]
    NotEmpty,
    /// A hard link to something that is not there.
    #[error("its hard link's target does not exist")]
    NoTarget,
    /// A hard link to a directory.
    #[error("its hard link's target is a directory")]
    TargetIsDirectory,
    /// More hard links than an inode can count.
    #[error("its target has more than 65000 hard links")]
    TooManyLinks,
    /// The target of a symbolic link is empty, has a NUL byte or over 4095 bytes.
    #[error("its symbolic link's target is empty, over 4095 bytes, or holds a NUL byte")]
    BadLinkTarget,
    /// A file larger than an extent tree can map.
    #[error("it is larger than the 16 TiB a file can have")]
    FileTooLarge,
    /// A device number that does not fit into an inode.
    #[error("its device number is out of range")]
    DeviceNumber,
    /// Its extended attributes cannot be stored.
    #[error(transparent)]
    Attributes(#[from] AttributeError),
    /// More files than inode numbers.
    #[error("the file system has no inode left")]
    NoInodes,
    /// What is kept in memory until the end has become too much.
    #[error("there are more than {MOST_KEPT} bytes of names, link targets, attributes and extents")]
    TooMuchKept,
    /// More layers than are counted.
    #[error("the image has more than 65535 layers")]
    TooManyLayers,
}

/// A point in time as ext4 stores it: seconds since 1970 in 34 bits, and nanoseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Timestamp {
    seconds: i64,
    nanoseconds: u32,
}

impl Timestamp {
    const EARLIEST: i64 = -(1 << 31);
    const LATEST: i64 = (1 << 34) - (1 << 31) - 1;

    /// Takes seconds since 1970, moved into what ext4 can store (1901 to 2446).
    #[must_use]
    pub fn new(seconds: i64, nanoseconds: u32) -> Self {
        Self {
            seconds: seconds.clamp(Self::EARLIEST, Self::LATEST),
            nanoseconds: nanoseconds.min(999_999_999),
        }
    }

    /// The present.
    #[must_use]
    pub fn now() -> Self {
        let since =
            std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        Self::new(i64::try_from(since.as_secs()).unwrap_or(i64::MAX), since.subsec_nanos())
    }

    /// Seconds since 1970, negative before.
    #[must_use]
    pub fn seconds(self) -> i64 {
        self.seconds
    }

    /// Nanoseconds behind the seconds.
    #[must_use]
    pub fn nanoseconds(self) -> u32 {
        self.nanoseconds
    }

    fn seconds_field(self) -> u32 {
        layout::halves64(self.seconds.cast_unsigned()).0
    }

    /// Nanoseconds and the two epoch bits (`fs/ext4/ext4.h`, `ext4_encode_extra_time`).
    fn extra_field(self) -> u32 {
        let signed = i64::from(self.seconds_field().cast_signed());
        let epoch = layout::halves64((self.seconds - signed).cast_unsigned()).1 & 3;
        (self.nanoseconds << 2) | epoch
    }
}

/// Everything about a file except its content and its names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Metadata {
    /// The lower 12 bits of the mode.
    pub permissions: u16,
    /// User id.
    pub owner: u32,
    /// Group id.
    pub group: u32,
    /// When the content last changed.
    pub modified: Timestamp,
    /// Extended attributes.
    pub attributes: Vec<Attribute>,
}

/// How a file system is made.
#[derive(Clone, Debug)]
pub struct Options {
    /// Bytes, rounded down to whole blocks.
    pub size: u64,
    /// Where the content needs it, make the file system larger than `size`, with at least this
    /// many free bytes; `None` keeps the size and reports [`Ext4Error::Full`].
    pub grow_with_free: Option<u64>,
    /// The file system's identity.
    pub uuid: Uuid,
    /// At most 16 bytes.
    pub label: String,
    /// With a journal; without one only for what is never mounted for writing.
    pub journal: bool,
}

/// Buffers writes to neighbouring blocks into large ones.
struct Output {
    file: File,
    start: u64,
    buffer: Vec<u8>,
}

const OUTPUT_BUFFER: usize = 1 << 20;

impl Output {
    fn write(&mut self, block: u32, data: &[u8]) -> Result<(), Ext4Error> {
        let offset = u64::from(block) * BLOCK_BYTES;
        let end = self.start + self.buffer.len() as u64;
        if offset != end || self.buffer.len() + data.len() > OUTPUT_BUFFER {
            self.flush()?;
            self.start = offset;
        }
        self.buffer.extend_from_slice(data);
        Ok(())
    }

    fn flush(&mut self) -> Result<(), Ext4Error> {
        if !self.buffer.is_empty() {
            self.file.write_all_at(&self.buffer, self.start).map_err(Ext4Error::Write)?;
            self.buffer.clear();
        }
        Ok(())
    }
}

/// A file system being written.
pub struct Writer {
    output: Output,
    options: Options,
    label: [u8; 16],
    now: Timestamp,
    /// The next block to give out; everything below is in use or in `freed`.
    next_block: u32,
    /// Blocks there are, [`u32::MAX`] while the file system may grow.
    last_block: u32,
    freed: Vec<(u32, u32)>,
    /// Index `n` is inode `n + 1`.
    inodes: Vec<Inode>,
    free_inodes: Vec<u32>,
    directories: HashMap<u32, tree::Directory>,
    names: names::Names,
    links: HashMap<u32, Box<[u8]>>,
    /// The blocks of files whose extents do not all fit into the inode.
    deep: HashMap<u32, Vec<(u32, u32)>>,
    /// Files whose content comes later, by inode.
    awaited: HashMap<u32, u64>,
    journal_blocks: u32,
    /// Bytes of names, link targets, attributes and extents so far, removed ones included.
    kept: u64,
    /// The layer being written, 0 where there are none.
    layer: u16,
    /// Attributes that ext4 cannot store and that were left out.
    ignored_attributes: u64,
}

impl std::fmt::Debug for Writer {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("Writer")
            .field("options", &self.options)
            .field("inodes", &self.inodes.len())
            .field("next_block", &self.next_block)
            .finish_non_exhaustive()
    }
}

impl Writer {
    /// Begins a file system in `file`, which must be empty and open for writing.
    ///
    /// # Errors
    /// A size or label out of range, or a file that cannot be written.
    pub fn new(file: File, options: Options) -> Result<Self, Ext4Error> {
        if !(8 << 20..=LARGEST_SIZE).contains(&options.size) {
            return Err(Ext4Error::Size(options.size));
        }
        let mut label = [0_u8; 16];
        match label.get_mut(..options.label.len()) {
            Some(field) if !options.label.contains('\0') => {
                field.copy_from_slice(options.label.as_bytes());
            }
            _ => return Err(Ext4Error::Label(options.label)),
        }
        file.set_len(options.size).map_err(Ext4Error::Write)?;
        let mut inodes = vec![Inode::unused(); 10];
        inodes[ROOT_INODE as usize - 1] =
            Inode { mode: 0o040_755, links: 2, modified: Timestamp::now(), ..Inode::unused() };
        let last_block = match options.grow_with_free {
            Some(_) => u32::MAX - BLOCKS_PER_GROUP,
            None => u32::try_from(options.size / BLOCK_BYTES)
                .map_err(|_| Ext4Error::Size(options.size))?,
        };
        let mut writer = Self {
            output: Output { file, start: 0, buffer: Vec::with_capacity(OUTPUT_BUFFER) },
            label,
            now: Timestamp::now(),
            next_block: 1 + DESCRIPTOR_BLOCKS,
            last_block,
            freed: Vec::new(),
            inodes,
            free_inodes: Vec::new(),
            directories: HashMap::from([(ROOT_INODE, tree::Directory::new(ROOT_INODE))]),
            names: names::Names::new(),
            links: HashMap::new(),
            deep: HashMap::new(),
            awaited: HashMap::new(),
            journal_blocks: if options.journal { journal_blocks(options.size) } else { 0 },
            kept: 0,
            layer: 0,
            ignored_attributes: 0,
            options,
        };
        writer.write_journal()?;
        let lost = Metadata { permissions: 0o700, modified: writer.now, ..Metadata::default() };
        let number = writer.add(b"lost+found", &Kind::Directory, &lost)?;
        debug_assert_eq!(number, FIRST_INODE);
        Ok(writer)
    }

    /// Bytes of the file that are in use so far.
    #[must_use]
    pub fn used_bytes(&self) -> u64 {
        u64::from(self.next_block) * BLOCK_BYTES
    }

    /// Returns how many extended attributes were left out because ext4 has no place for them.
    #[must_use]
    pub fn ignored_attributes(&self) -> u64 {
        self.ignored_attributes
    }

    /// Returns how many inodes there are, the reserved ones included.
    #[must_use]
    pub fn inodes(&self) -> u64 {
        self.inodes.len() as u64
    }

    /// Counts what is kept in memory until the end.
    fn keep(&mut self, bytes: usize) -> Result<(), Ext4Error> {
        self.kept += bytes as u64;
        if self.kept > MOST_KEPT { Err(Ext4Error::TooMuchKept) } else { Ok(()) }
    }

    fn inode(&mut self, number: u32) -> &mut Inode {
        &mut self.inodes[number as usize - 1]
    }

    /// Takes the next block, stepping over the places of superblock copies.
    fn allocate(&mut self) -> Result<u32, Ext4Error> {
        if self.next_block.is_multiple_of(BLOCKS_PER_GROUP)
            && has_superblock(self.next_block / BLOCKS_PER_GROUP)
        {
            self.next_block += 1 + DESCRIPTOR_BLOCKS;
        }
        if self.next_block >= self.last_block {
            return Err(Ext4Error::Full { size: self.options.size });
        }
        self.next_block += 1;
        Ok(self.next_block - 1)
    }

    /// Records `extents` in `inode`, writing tree blocks where the inode has no room.
    ///
    /// Returns the runs of blocks that the inode itself does not show: all of them for a deep tree.
    fn set_extents(
        &mut self,
        inode: &mut Inode,
        extents: &[Extent],
    ) -> Result<Option<Vec<(u32, u32)>>, Ext4Error> {
        let mut failed = None;
        let tree = extents::tree(extents, || {
            self.allocate().unwrap_or_else(|error| {
                failed = Some(error);
                0
            })
        });
        if let Some(error) = failed {
            return Err(error);
        }
        for (number, block) in &tree.blocks {
            self.output.write(*number, block)?;
        }
        let data: u64 = extents.iter().map(|extent| u64::from(extent.length)).sum();
        inode.block = (!extents.is_empty()).then(|| Box::new(tree.root));
        inode.flags |= layout::FLAG_EXTENTS;
        inode.blocks += data + tree.blocks.len() as u64;
        if tree.blocks.is_empty() {
            return Ok(None);
        }
        let runs = extents.iter().map(|extent| (extent.physical, extent.length));
        Ok(Some(runs.chain(tree.blocks.iter().map(|(number, _)| (*number, 1))).collect()))
    }

    /// Makes the journal: one block that says it is empty, and blocks that stay unwritten.
    fn write_journal(&mut self) -> Result<(), Ext4Error> {
        if self.journal_blocks == 0 {
            return Ok(());
        }
        let mut extents = Vec::new();
        for logical in 0..self.journal_blocks {
            let block = self.allocate()?;
            extents::append(&mut extents, logical, block);
        }
        let mut head = vec![0_u8; BLOCK_SIZE];
        // The journal is big endian; fields of journal_superblock_s (include/linux/jbd2.h).
        let fields: [(usize, u32); 7] = [
            (0, 0xC03B_3998),          // h_magic
            (4, 4),                    // h_blocktype: superblock, version 2
            (12, 4096),                // s_blocksize
            (16, self.journal_blocks), // s_maxlen
            (20, 1),                   // s_first
            (24, 1),                   // s_sequence; s_start 0 says that it is empty
            (64, 1),                   // s_nr_users
        ];
        for (at, value) in fields {
            head[at..at + 4].copy_from_slice(&value.to_be_bytes());
        }
        self.output.write(extents[0].physical, &head)?;
        let mut inode = Inode {
            mode: 0o100_600,
            links: 1,
            size: u64::from(self.journal_blocks) * BLOCK_BYTES,
            modified: self.now,
            ..Inode::unused()
        };
        self.set_extents(&mut inode, &extents)?;
        *self.inode(layout::JOURNAL_INODE) = inode;
        Ok(())
    }
}

/// The journal's size as `mke2fs` chooses it (`ext2fs_default_journal_size`), at most 64 MiB here:
/// a larger one only helps disks with many writers.
fn journal_blocks(size: u64) -> u32 {
    match size >> 20 {
        0..128 => 1024,
        128..1024 => 4096,
        1024..2048 => 8192,
        _ => 16_384,
    }
}
