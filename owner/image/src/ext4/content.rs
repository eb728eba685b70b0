//! The content of regular files, taken in pieces.

use std::collections::HashMap;

use super::extents::{self, Extent};
use super::layout::{BLOCK_BYTES, BLOCK_SIZE, Inode};
use super::{Ext4Error, Metadata, Writer, attributes};

const ZEROS: [u8; BLOCK_SIZE] = [0; BLOCK_SIZE];

/// A regular file whose content is being written; it has no name yet.
///
/// Dropped without [`Writer::add_file`], its blocks stay taken but nothing refers to them.
#[derive(Debug)]
pub struct FileContent {
    extents: Vec<Extent>,
    /// Bytes so far.
    length: u64,
    /// The bytes of the last block while it is not full.
    tail: Vec<u8>,
}

/// The whole content of a regular file that has no name yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SealedContent {
    pub(crate) extents: Vec<Extent>,
    pub(crate) length: u64,
}

impl FileContent {
    /// An empty file.
    #[must_use]
    pub fn new() -> Self {
        Self { extents: Vec::new(), length: 0, tail: Vec::new() }
    }

    /// Bytes so far.
    #[must_use]
    pub fn length(&self) -> u64 {
        self.length
    }
}

impl Default for FileContent {
    fn default() -> Self {
        Self::new()
    }
}

impl Writer {
    /// Appends `data` to `content`.
    ///
    /// # Errors
    /// A full or unwritable file, or a file beyond 16 TiB.
    pub fn append(&mut self, content: &mut FileContent, mut data: &[u8]) -> Result<(), Ext4Error> {
        if !content.tail.is_empty() {
            let take = (BLOCK_SIZE - content.tail.len()).min(data.len());
            content.tail.extend_from_slice(&data[..take]);
            content.length += take as u64;
            data = &data[take..];
            if content.tail.len() == BLOCK_SIZE {
                let tail = std::mem::take(&mut content.tail);
                self.append_block(content, &tail, content.length - BLOCK_BYTES)?;
            }
        }
        let whole = data.len() - data.len() % BLOCK_SIZE;
        for block in data[..whole].chunks_exact(BLOCK_SIZE) {
            self.append_block(content, block, content.length)?;
            content.length += BLOCK_BYTES;
        }
        content.tail.extend_from_slice(&data[whole..]);
        content.length += (data.len() - whole) as u64;
        Ok(())
    }

    /// Appends `length` bytes of zeros to `content` without storing them.
    ///
    /// # Errors
    /// As [`Writer::append`].
    pub fn append_hole(
        &mut self,
        content: &mut FileContent,
        mut length: u64,
    ) -> Result<(), Ext4Error> {
        // Fill the block that is begun, jump over whole blocks, begin the last one.
        let begun = content.tail.len() as u64;
        if begun > 0 {
            let fill = (BLOCK_BYTES - begun).min(length);
            self.append(content, &ZEROS[..usize::try_from(fill).unwrap_or(BLOCK_SIZE)])?;
            length -= fill;
        }
        let rest = length % BLOCK_BYTES;
        content.length =
            content.length.checked_add(length - rest).ok_or(Ext4Error::FileTooLarge)?;
        self.append(content, &ZEROS[..usize::try_from(rest).unwrap_or(BLOCK_SIZE)])
    }

    fn append_block(
        &mut self,
        content: &mut FileContent,
        block: &[u8],
        offset: u64,
    ) -> Result<(), Ext4Error> {
        if block == ZEROS {
            return Ok(());
        }
        let logical = u32::try_from(offset / BLOCK_BYTES).map_err(|_| Ext4Error::FileTooLarge)?;
        let physical = self.allocate()?;
        self.output.write(physical, block)?;
        let extents = content.extents.len();
        extents::append(&mut content.extents, logical, physical);
        // What is in the inode is counted with it.
        if content.extents.len() > extents && extents >= 4 {
            self.keep(size_of::<Extent>())?;
        }
        Ok(())
    }

    /// Ends `content`: nothing can be appended to it any more.
    ///
    /// # Errors
    /// A full or unwritable file, or a file beyond 16 TiB.
    pub fn seal(&mut self, mut content: FileContent) -> Result<SealedContent, Ext4Error> {
        if !content.tail.is_empty() {
            let mut tail = std::mem::take(&mut content.tail);
            let offset = content.length - tail.len() as u64;
            tail.resize(BLOCK_SIZE, 0);
            self.append_block(&mut content, &tail, offset)?;
        }
        if content.length > u64::from(u32::MAX) * BLOCK_BYTES {
            return Err(Ext4Error::FileTooLarge);
        }
        Ok(SealedContent { extents: content.extents, length: content.length })
    }

    /// Gives `content` the name `path`, replacing what had that name, and returns its inode.
    ///
    /// # Errors
    /// A bad path, attributes that do not fit, or an unwritable file.
    pub fn add_file(
        &mut self,
        path: &[u8],
        content: FileContent,
        metadata: &Metadata,
    ) -> Result<u32, Ext4Error> {
        let sealed = self.seal(content)?;
        self.add_sealed(path, &sealed, metadata)
    }

    /// Gives `content`, which has no name yet, the name `path`, as [`Writer::add_file`] does.
    ///
    /// # Errors
    /// A bad path, attributes that do not fit, or an unwritable file.
    pub(crate) fn add_sealed(
        &mut self,
        path: &[u8],
        content: &SealedContent,
        metadata: &Metadata,
    ) -> Result<u32, Ext4Error> {
        let (parent, name) = self.place(path)?;
        let mut inode = self.new_inode(0o100_000, metadata)?;
        inode.size = content.length;
        let deep = self.set_extents(&mut inode, &content.extents)?;
        let number = self.insert(parent, &name, inode)?;
        if let Some(blocks) = deep {
            self.deep.insert(number, blocks);
        }
        Ok(number)
    }

    /// Notes that the empty file `number` gets its content later, which `token` stands for.
    pub(crate) fn await_content(&mut self, number: u32, token: u64) {
        self.awaited.insert(number, token);
    }

    /// Takes the files that still have a name and no content, with their tokens.
    pub(crate) fn take_awaited(&mut self) -> HashMap<u64, u32> {
        std::mem::take(&mut self.awaited)
            .into_iter()
            .map(|(number, token)| (token, number))
            .collect()
    }

    /// Gives the empty file `number` its content.
    pub(crate) fn fill(&mut self, number: u32, content: &SealedContent) -> Result<(), Ext4Error> {
        let mut inode = self.inode(number).clone();
        inode.size = content.length;
        if let Some(blocks) = self.set_extents(&mut inode, &content.extents)? {
            self.deep.insert(number, blocks);
        }
        *self.inode(number) = inode;
        Ok(())
    }

    /// Makes an inode from `metadata`, storing its attributes.
    pub(super) fn new_inode(&mut self, kind: u16, metadata: &Metadata) -> Result<Inode, Ext4Error> {
        let mut inode = Inode {
            mode: kind | (metadata.permissions & 0o7777),
            owner: metadata.owner,
            group: metadata.group,
            modified: metadata.modified,
            links: 1,
            ..Inode::unused()
        };
        self.set_attributes(&mut inode, &metadata.attributes)?;
        Ok(inode)
    }

    pub(super) fn set_attributes(
        &mut self,
        inode: &mut Inode,
        list: &[attributes::Attribute],
    ) -> Result<(), Ext4Error> {
        let encoded = attributes::encode(list)?;
        self.ignored_attributes += u64::from(encoded.ignored);
        if inode.attribute_block != 0 {
            self.freed.push((inode.attribute_block, 1));
            inode.blocks -= 1;
            inode.attribute_block = 0;
        }
        self.keep(encoded.in_inode.as_ref().map_or(0, |bytes| bytes.len()))?;
        inode.attributes = encoded.in_inode;
        if let Some(block) = encoded.in_block {
            inode.attribute_block = self.allocate()?;
            self.output.write(inode.attribute_block, &block)?;
            inode.blocks += 1;
        }
        Ok(())
    }
}
