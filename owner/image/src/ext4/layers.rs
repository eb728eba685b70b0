//! Layers: what a name came with, and how a later layer takes it away.
//!
//! Every name remembers the layer it came with, and every directory the last layer that had
//! something below it. So a whiteout, wherever it stands in its layer, removes what older layers
//! brought and nothing of its own.

use super::layout::FIRST_INODE;
use super::{Ext4Error, Writer};

impl Writer {
    /// Begins the next layer; names added before the first call belong to none.
    ///
    /// Within layers a directory makes room for what is not one, with all that it holds.
    ///
    /// # Errors
    /// More than 65535 layers.
    pub fn begin_layer(&mut self) -> Result<(), Ext4Error> {
        self.layer = self.layer.checked_add(1).ok_or(Ext4Error::TooManyLayers)?;
        Ok(())
    }

    /// Removes `name` in `directory`, except what came with this layer; a plain whiteout.
    ///
    /// # Errors
    /// A loop of links.
    pub fn white_out(&mut self, directory: &[u8], name: &[u8]) -> Result<(), Ext4Error> {
        if let Some(parent) = self.existing_directory(directory)? {
            self.purge(
                self.names.find(parent, name).map(|name| (parent, name)).into_iter().collect(),
            );
        }
        Ok(())
    }

    /// Removes everything in `directory`, except what came with this layer; an opaque whiteout.
    ///
    /// # Errors
    /// A loop of links.
    pub fn white_out_below(&mut self, directory: &[u8]) -> Result<(), Ext4Error> {
        if let Some(parent) = self.existing_directory(directory)? {
            let names = self.names_in(parent).into_iter();
            self.purge(names.map(|name| (parent, name)).collect());
        }
        Ok(())
    }

    /// Follows `path` to a directory; `None` where there is none.
    fn existing_directory(&self, path: &[u8]) -> Result<Option<u32>, Ext4Error> {
        match self.lookup(path, true) {
            Ok(Some(found)) if self.directories.contains_key(&found.inode) => Ok(Some(found.inode)),
            Ok(_) | Err(Ext4Error::NotADirectory) => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn names_in(&self, directory: u32) -> Vec<u32> {
        let found = self.directories.get(&directory);
        found.map_or_else(Vec::new, |found| self.names.list(found.first).collect())
    }

    /// Removes the names, or below those of this layer what did not come with it.
    fn purge(&mut self, mut names: Vec<(u32, u32)>) {
        while let Some((parent, name)) = names.pop() {
            let number = self.names.inode(name);
            if number == FIRST_INODE {
                continue;
            }
            match self.directories.get(&number) {
                Some(directory) if directory.layer == self.layer => {
                    let below = self.names_in(number).into_iter();
                    names.extend(below.map(|name| (number, name)));
                }
                None if self.names.layer(name) == self.layer => {}
                _ => self.remove(parent, name),
            }
        }
    }

    /// Removes `name` of `parent` and, where it is a directory, all below it.
    pub(super) fn remove(&mut self, parent: u32, name: u32) {
        let number = self.names.inode(name);
        self.names.remove(name);
        let is_directory = self.directories.contains_key(&number);
        if let Some(directory) = self.directories.get_mut(&parent) {
            directory.count -= 1;
        }
        if is_directory {
            self.inode(parent).links -= 1;
        }
        let mut rest = vec![number];
        while let Some(number) = rest.pop() {
            match self.directories.remove(&number) {
                Some(directory) => {
                    let names: Vec<u32> = self.names.list(directory.first).collect();
                    for name in names {
                        rest.push(self.names.inode(name));
                        self.names.remove(name);
                    }
                    self.inode(number).links = 0;
                }
                None => self.inode(number).links -= 1,
            }
            if self.inode(number).links == 0 {
                self.release(number);
            }
        }
    }

    /// Notes that this layer has something in `directory` and so in all above it.
    pub(super) fn touch(&mut self, mut directory: u32) {
        while let Some(found) = self.directories.get_mut(&directory)
            && found.layer != self.layer
        {
            found.layer = self.layer;
            directory = found.parent;
        }
    }
}
