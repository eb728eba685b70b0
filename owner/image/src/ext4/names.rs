//! All names of all directories, in as little memory as a million of them may take.
//!
//! A name costs its bytes, 20 bytes beside them and about 6 in a hash table. A removed name keeps
//! its place: what is removed is little beside what stays.

use std::hash::{BuildHasher, RandomState};

/// The end of a list of names.
pub(super) const NONE: u32 = u32::MAX;
const EMPTY: u32 = u32::MAX;
const REMOVED: u32 = u32::MAX - 1;

#[derive(Clone, Copy, Debug)]
struct Name {
    parent: u32,
    /// 0 where the name was removed.
    inode: u32,
    start: u32,
    /// The name that the same directory got before.
    next: u32,
    /// The layer that it came with.
    layer: u16,
    length: u8,
}

/// The names of a file system.
#[derive(Debug)]
pub(super) struct Names {
    bytes: Vec<u8>,
    names: Vec<Name>,
    /// Indices into `names` by hash, with linear probing.
    table: Vec<u32>,
    /// Slots of `table` that are not empty.
    taken: usize,
    state: RandomState,
}

impl Names {
    pub(super) fn new() -> Self {
        Self {
            bytes: Vec::new(),
            names: Vec::new(),
            table: vec![EMPTY; 64],
            taken: 0,
            state: RandomState::new(),
        }
    }

    /// Returns the index of `name` in directory `parent`.
    pub(super) fn find(&self, parent: u32, name: &[u8]) -> Option<u32> {
        let mut slot = self.first_slot(parent, name);
        loop {
            match self.table[slot] {
                EMPTY => return None,
                index if index != REMOVED && self.is(index, parent, name) => return Some(index),
                _ => slot = (slot + 1) & (self.table.len() - 1),
            }
        }
    }

    /// Adds a name that the directory does not have, before `next` in its list; `None` where there
    /// are too many.
    pub(super) fn add(
        &mut self,
        parent: u32,
        name: &[u8],
        inode: u32,
        layer: u16,
        next: u32,
    ) -> Option<u32> {
        let index = u32::try_from(self.names.len()).ok().filter(|index| *index < REMOVED)?;
        let start = u32::try_from(self.bytes.len()).ok()?;
        let length = u8::try_from(name.len()).ok()?;
        self.bytes.extend_from_slice(name);
        self.names.push(Name { parent, inode, start, next, layer, length });
        if (self.taken + 1) * 8 > self.table.len() * 7 {
            self.rebuild();
        } else {
            let slot = self.first_slot(parent, name);
            self.put(slot, index);
        }
        Some(index)
    }

    /// Removes the name `index`; it stays in its directory's list, without an inode.
    pub(super) fn remove(&mut self, index: u32) {
        let Name { parent, start, length, .. } = self.names[index as usize];
        let name = &self.bytes[start as usize..start as usize + usize::from(length)];
        let mut slot = self.first_slot(parent, name);
        while self.table[slot] != index {
            slot = (slot + 1) & (self.table.len() - 1);
        }
        self.table[slot] = REMOVED;
        self.names[index as usize].inode = 0;
    }

    /// Returns what the name `index` stands for, 0 for nothing.
    pub(super) fn inode(&self, index: u32) -> u32 {
        self.names[index as usize].inode
    }

    pub(super) fn layer(&self, index: u32) -> u16 {
        self.names[index as usize].layer
    }

    pub(super) fn set_layer(&mut self, index: u32, layer: u16) {
        self.names[index as usize].layer = layer;
    }

    pub(super) fn name(&self, index: u32) -> &[u8] {
        let Name { start, length, .. } = self.names[index as usize];
        &self.bytes[start as usize..start as usize + usize::from(length)]
    }

    /// Returns the names that are there in the list that begins with `first`, the newest first.
    pub(super) fn list(&self, first: u32) -> impl Iterator<Item = u32> {
        let next = |index: u32| self.names.get(index as usize).map(|_| index);
        std::iter::successors(next(first), move |&index| next(self.names[index as usize].next))
            .filter(|&index| self.inode(index) != 0)
    }

    fn first_slot(&self, parent: u32, name: &[u8]) -> usize {
        let hash = self.state.hash_one((parent, name));
        usize::try_from(hash & (self.table.len() as u64 - 1)).unwrap_or(0)
    }

    fn is(&self, index: u32, parent: u32, name: &[u8]) -> bool {
        self.names[index as usize].parent == parent && self.name(index) == name
    }

    fn put(&mut self, mut slot: usize, index: u32) {
        while self.table[slot] != EMPTY {
            slot = (slot + 1) & (self.table.len() - 1);
        }
        self.table[slot] = index;
        self.taken += 1;
    }

    /// Makes the table anew, without what was removed and with room to grow.
    fn rebuild(&mut self) {
        let live = self.names.iter().filter(|name| name.inode != 0).count();
        let size = (live * 8 / 5).next_power_of_two().max(64);
        self.table = vec![EMPTY; size];
        self.taken = 0;
        for index in 0..u32::try_from(self.names.len()).unwrap_or(u32::MAX) {
            if self.inode(index) != 0 {
                let slot = self.first_slot(self.names[index as usize].parent, self.name(index));
                self.put(slot, index);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    proptest::proptest! {
        #[test]
        fn names_are_found_until_they_are_removed(
            steps in proptest::collection::vec((0_u32..3, 0_u8..40, proptest::bool::ANY), 0..400),
        ) {
            let mut names = Names::new();
            let mut model: BTreeMap<(u32, Vec<u8>), u32> = BTreeMap::new();
            let mut firsts = [NONE; 3];
            for (number, (parent, byte, add)) in (1..).zip(steps) {
                let name = vec![b'n', byte];
                match names.find(parent, &name) {
                    Some(index) => {
                        proptest::prop_assert_eq!(
                            model.remove(&(parent, name)), Some(names.inode(index))
                        );
                        names.remove(index);
                    }
                    None => {
                        let key = (parent, name.clone());
                        proptest::prop_assert!(!model.contains_key(&key));
                        if add {
                            let first = &mut firsts[parent as usize];
                            *first = names.add(parent, &name, number, 1, *first).unwrap();
                            model.insert(key, number);
                        }
                    }
                }
            }
            let mut listed = BTreeMap::new();
            for (parent, first) in (0..).zip(firsts) {
                for index in names.list(first) {
                    let key = (parent, names.name(index).to_vec());
                    proptest::prop_assert!(listed.insert(key, names.inode(index)).is_none());
                }
            }
            proptest::prop_assert_eq!(listed, model);
        }
    }
}
