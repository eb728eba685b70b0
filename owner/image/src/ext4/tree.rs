//! Names: directories in memory, and how paths are followed in them.
//!
//! Paths are followed as a process changed to this root would: an absolute link starts at the root
//! again and `..` at the root stays there, so nothing in an archive can mean a path of the host.

use std::collections::VecDeque;

use super::layout::{FIRST_INODE, Inode, ROOT_INODE, put32};
use super::{Ext4Error, Metadata, Writer, extents, names};

/// As the kernel's `MAXSYMLINKS`.
const MOST_LINKS_FOLLOWED: u32 = 40;
/// As `EXT4_LINK_MAX`.
const MOST_HARD_LINKS: u32 = 65_000;

/// A directory; its names are in [`super::names::Names`].
#[derive(Debug)]
pub(crate) struct Directory {
    pub(crate) parent: u32,
    /// The name that came last, and how many there are.
    pub(super) first: u32,
    pub(super) count: u32,
    /// The last layer that had an entry for it or for something below it.
    pub(super) layer: u16,
}

impl Directory {
    pub(crate) fn new(parent: u32) -> Self {
        Self { parent, first: names::NONE, count: 0, layer: 0 }
    }
}

/// What is added by [`Writer::add`]; files with content go through [`Writer::add_file`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A directory; one that exists keeps its entries and gets the new metadata.
    Directory,
    /// A symbolic link to these bytes.
    SymbolicLink(Vec<u8>),
    /// A character device with major and minor number.
    CharacterDevice(u32, u32),
    /// A block device with major and minor number.
    BlockDevice(u32, u32),
    /// A named pipe.
    Fifo,
    /// A socket.
    Socket,
}

/// What a path leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Resolved {
    /// The inode's number.
    pub inode: u32,
    /// Type and permission bits.
    pub mode: u16,
    /// Bytes of content.
    pub size: u64,
}

impl Writer {
    /// Adds something without content at `path`, creating missing parents (0755, root), and
    /// returns its inode.
    ///
    /// # Errors
    /// A bad path, something that cannot be replaced, or an unwritable file.
    pub fn add(&mut self, path: &[u8], kind: &Kind, metadata: &Metadata) -> Result<u32, Ext4Error> {
        if *kind == Kind::Directory {
            return self.add_directory(path, metadata);
        }
        let (parent, name) = self.place(path)?;
        let device = |major: u32, minor: u32| {
            if major >= 1 << 12 || minor >= 1 << 20 {
                return Err(Ext4Error::DeviceNumber);
            }
            let mut block = Box::new([0_u8; 60]);
            if major < 256 && minor < 256 {
                put32(&mut *block, 0, (major << 8) | minor);
            } else {
                put32(&mut *block, 4, (minor & 0xff) | (major << 8) | ((minor & !0xff) << 12));
            }
            Ok(Some(block))
        };
        let mut target = None;
        let inode = match kind {
            Kind::Directory => return self.add_directory(path, metadata),
            Kind::SymbolicLink(to) => {
                if to.is_empty() || to.len() > 4095 || to.contains(&0) {
                    return Err(Ext4Error::BadLinkTarget);
                }
                let mut inode = self.new_inode(0o120_000, metadata)?;
                inode.mode |= 0o777;
                inode.size = to.len() as u64;
                if to.len() < 60 {
                    let mut block = Box::new([0_u8; 60]);
                    block[..to.len()].copy_from_slice(to);
                    inode.block = Some(block);
                } else {
                    let physical = self.allocate()?;
                    let mut block = to.clone();
                    block.resize(super::layout::BLOCK_SIZE, 0);
                    self.output.write(physical, &block)?;
                    let extent = extents::Extent { logical: 0, physical, length: 1 };
                    self.set_extents(&mut inode, &[extent])?;
                }
                self.keep(to.len())?;
                target = Some(to.clone().into_boxed_slice());
                inode
            }
            Kind::CharacterDevice(major, minor) => {
                let block = device(*major, *minor)?;
                Inode { block, ..self.new_inode(0o020_000, metadata)? }
            }
            Kind::BlockDevice(major, minor) => {
                let block = device(*major, *minor)?;
                Inode { block, ..self.new_inode(0o060_000, metadata)? }
            }
            Kind::Fifo => self.new_inode(0o010_000, metadata)?,
            Kind::Socket => self.new_inode(0o140_000, metadata)?,
        };
        let number = self.insert(parent, &name, inode)?;
        if let Some(target) = target {
            self.links.insert(number, target);
        }
        Ok(number)
    }

    /// Adds the name `path` for what `target` names; a link as target is not followed.
    ///
    /// # Errors
    /// A missing target, a directory as target, or a bad path.
    pub fn add_hard_link(&mut self, path: &[u8], target: &[u8]) -> Result<u32, Ext4Error> {
        let number = match self.lookup(target, false) {
            Ok(Some(found)) => found.inode,
            Ok(None) => return Err(Ext4Error::NoTarget),
            Err(error) => return Err(error),
        };
        if self.inode(number).is_directory() {
            return Err(Ext4Error::TargetIsDirectory);
        }
        let (parent, name) = self.place(path)?;
        if self.child(parent, &name) == Some(number) {
            self.enter(parent, &name, number)?;
            return Ok(number);
        }
        if self.inode(number).links >= MOST_HARD_LINKS {
            return Err(Ext4Error::TooManyLinks);
        }
        self.vacate(parent, &name)?;
        // The target may have been below what has just made room.
        if self.inode(number).links == 0 {
            return Err(Ext4Error::NoTarget);
        }
        self.inode(number).links += 1;
        self.enter(parent, &name, number)?;
        Ok(number)
    }

    /// Follows `path` to what it names, through symbolic links in the middle and, if `follow`, at
    /// the end; `None` where nothing has that name.
    ///
    /// # Errors
    /// A loop of links, or a path through something that is not a directory.
    pub fn lookup(&self, path: &[u8], follow: bool) -> Result<Option<Resolved>, Ext4Error> {
        let mut rest: VecDeque<Vec<u8>> = components(path);
        let mut here = ROOT_INODE;
        let mut followed = 0;
        while let Some(name) = rest.pop_front() {
            let Some(directory) = self.directories.get(&here) else {
                return Err(Ext4Error::NotADirectory);
            };
            if name == b".." {
                here = directory.parent;
                continue;
            }
            let Some(next) = self.child(here, &name) else {
                return Ok(None);
            };
            match self.links.get(&next) {
                Some(target) if follow || !rest.is_empty() => {
                    followed += 1;
                    if followed > MOST_LINKS_FOLLOWED {
                        return Err(Ext4Error::LinkLoop);
                    }
                    prepend(&mut rest, target, &mut here);
                }
                _ => here = next,
            }
        }
        let inode = &self.inodes[here as usize - 1];
        Ok(Some(Resolved { inode: here, mode: inode.mode, size: inode.size }))
    }

    fn add_directory(&mut self, path: &[u8], metadata: &Metadata) -> Result<u32, Ext4Error> {
        let place = if components(path).is_empty() { None } else { Some(self.place(path)?) };
        let existing = match &place {
            None => Some(ROOT_INODE),
            Some((parent, name)) => {
                self.child(*parent, name).filter(|number| self.directories.contains_key(number))
            }
        };
        if let Some(number) = existing {
            let mut inode = self.inode(number).clone();
            inode.mode = 0o040_000 | (metadata.permissions & 0o7777);
            inode.owner = metadata.owner;
            inode.group = metadata.group;
            inode.modified = metadata.modified;
            self.set_attributes(&mut inode, &metadata.attributes)?;
            *self.inode(number) = inode;
            self.touch(number);
            return Ok(number);
        }
        let inode = self.new_inode(0o040_000, metadata)?;
        match place {
            Some((parent, name)) => self.insert(parent, &name, inode),
            None => Ok(ROOT_INODE),
        }
    }

    /// Finds the directory that `path`'s last name belongs into, creating it where it is missing.
    pub(super) fn place(&mut self, path: &[u8]) -> Result<(u32, Box<[u8]>), Ext4Error> {
        let mut rest = components(path);
        let last = rest.pop_back().ok_or(Ext4Error::Name("empty"))?;
        check_name(&last)?;
        let mut here = ROOT_INODE;
        let mut followed = 0;
        while let Some(name) = rest.pop_front() {
            let Some(directory) = self.directories.get(&here) else {
                return Err(Ext4Error::NotADirectory);
            };
            if name == b".." {
                here = directory.parent;
                continue;
            }
            match self.child(here, &name) {
                Some(next) if self.directories.contains_key(&next) => here = next,
                Some(next) => match self.links.get(&next) {
                    Some(target) => {
                        followed += 1;
                        if followed > MOST_LINKS_FOLLOWED {
                            return Err(Ext4Error::LinkLoop);
                        }
                        prepend(&mut rest, target, &mut here);
                    }
                    None => return Err(Ext4Error::NotADirectory),
                },
                None => {
                    check_name(&name)?;
                    let metadata =
                        Metadata { permissions: 0o755, modified: self.now, ..Metadata::default() };
                    let inode = self.new_inode(0o040_000, &metadata)?;
                    here = self.insert(here, &name, inode)?;
                }
            }
        }
        Ok((here, last.into_boxed_slice()))
    }

    pub(super) fn child(&self, parent: u32, name: &[u8]) -> Option<u32> {
        self.names.find(parent, name).map(|index| self.names.inode(index))
    }

    /// Gives `inode` a number and the name `name` in `parent`, replacing what was there.
    pub(super) fn insert(
        &mut self,
        parent: u32,
        name: &[u8],
        mut inode: Inode,
    ) -> Result<u32, Ext4Error> {
        self.vacate(parent, name)?;
        let directory = inode.is_directory();
        if directory {
            inode.links = 2;
        }
        let number = match self.free_inodes.pop() {
            Some(number) => {
                *self.inode(number) = inode;
                number
            }
            None => {
                let number =
                    u32::try_from(self.inodes.len() + 1).map_err(|_| Ext4Error::NoInodes)?;
                self.inodes.push(inode);
                number
            }
        };
        if directory {
            self.directories.insert(number, Directory::new(parent));
            self.inode(parent).links += 1;
        }
        self.enter(parent, name, number)?;
        Ok(number)
    }

    fn enter(&mut self, parent: u32, name: &[u8], number: u32) -> Result<(), Ext4Error> {
        if let Some(index) = self.names.find(parent, name) {
            self.names.set_layer(index, self.layer);
        } else if let Some(directory) = self.directories.get_mut(&parent) {
            self.kept += name.len() as u64;
            let added = self.names.add(parent, name, number, self.layer, directory.first);
            directory.first = added.ok_or(Ext4Error::NoInodes)?;
            directory.count += 1;
        }
        self.touch(if self.directories.contains_key(&number) { number } else { parent });
        self.keep(0)
    }

    /// Removes what has the name `name` in `parent`, if anything, to make room.
    fn vacate(&mut self, parent: u32, name: &[u8]) -> Result<(), Ext4Error> {
        let Some(index) = self.names.find(parent, name) else {
            return Ok(());
        };
        let number = self.names.inode(index);
        if let Some(directory) = self.directories.get(&number) {
            // The check tool wants /lost+found to be a directory.
            let kept = self.layer == 0 && directory.count > 0;
            if kept || number == FIRST_INODE {
                return Err(Ext4Error::NotEmpty);
            }
        }
        self.remove(parent, index);
        Ok(())
    }

    /// Frees an inode without names, and its blocks.
    pub(super) fn release(&mut self, number: u32) {
        let inode = std::mem::replace(self.inode(number), Inode::unused());
        if inode.attribute_block != 0 {
            self.freed.push((inode.attribute_block, 1));
        }
        match self.deep.remove(&number) {
            Some(runs) => self.freed.extend(runs),
            None => self.freed.extend(extents::in_inode(&inode)),
        }
        self.links.remove(&number);
        self.awaited.remove(&number);
        self.free_inodes.push(number);
    }
}

/// Splits a path into its names, without empty ones and `.`.
fn components(path: &[u8]) -> VecDeque<Vec<u8>> {
    path.split(|&byte| byte == b'/')
        .filter(|name| !name.is_empty() && *name != b".")
        .map(<[u8]>::to_vec)
        .collect()
}

fn prepend(rest: &mut VecDeque<Vec<u8>>, target: &[u8], here: &mut u32) {
    if target.first() == Some(&b'/') {
        *here = ROOT_INODE;
    }
    for name in components(target).into_iter().rev() {
        rest.push_front(name);
    }
}

fn check_name(name: &[u8]) -> Result<(), Ext4Error> {
    match name {
        b".." => Err(Ext4Error::Name("`..`")),
        _ if name.len() > 255 => Err(Ext4Error::Name("longer than 255 bytes")),
        _ if name.contains(&0) => Err(Ext4Error::Name("one with a NUL byte")),
        _ => Ok(()),
    }
}
