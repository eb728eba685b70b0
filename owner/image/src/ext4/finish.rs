//! The last part of writing a file system: directories, inode tables, bitmaps, superblocks.

use std::fs::File;

use uuid::Uuid;

use super::directory::{self, Entries, Entry};
use super::extents;
use super::layout::{
    BLOCK_BYTES, BLOCK_SIZE, BLOCKS_PER_GROUP, DESCRIPTOR_BLOCKS, DESCRIPTORS_PER_BLOCK,
    FLAG_INDEXED, GROUP_BLOCKS_UNUSED, GROUP_INODES_UNUSED, GROUP_TABLE_ZEROED, GroupDescriptor,
    INODE_SIZE, INODES_PER_BLOCK, Inode, RESIZE_INODE, Superblock, has_superblock, put32,
};
use super::names::Names;
use super::{Ext4Error, Writer};

/// Bytes of the file system for each inode, the default of `mke2fs`.
const BYTES_PER_INODE: u64 = 16_384;
/// The fewest blocks that make a last group worth having.
const SMALLEST_GROUP: u32 = 1024 + DESCRIPTOR_BLOCKS;

/// A finished file system.
#[derive(Debug)]
pub struct Finished {
    /// The file, complete but not synced.
    pub file: File,
    /// The file system's identity.
    pub uuid: Uuid,
    /// Bytes of the file; the file system uses all of it, or all but an unusably small last group.
    pub size: u64,
    /// Inodes in use.
    pub inodes: u64,
}

/// How many groups there are and how the inodes are spread over them.
struct Plan {
    blocks: u32,
    groups: u32,
    inodes_per_group: u32,
}

impl Plan {
    fn table_blocks(&self) -> u32 {
        self.inodes_per_group / INODES_PER_BLOCK
    }

    fn blocks_in(&self, group: u32) -> u32 {
        (self.blocks - group * BLOCKS_PER_GROUP).min(BLOCKS_PER_GROUP)
    }
}

impl Writer {
    /// Writes everything that is not content and returns the file.
    ///
    /// # Errors
    /// A file system that is too small for its content, or an unwritable file.
    pub fn finish(mut self) -> Result<Finished, Ext4Error> {
        let seed = Uuid::new_v4();
        self.punch_freed()?;
        self.write_directories(&seed)?;
        let plan = self.plan()?;
        let used = self.inodes.len() - self.free_inodes.len();
        // After the plan, so that it is counted in the size of the resize inode.
        let descriptor_blocks = plan.groups.div_ceil(DESCRIPTORS_PER_BLOCK);
        self.write_resize_inode(&plan, descriptor_blocks)?;
        let groups = self.place_tables(&plan)?;
        self.write_tables(&plan, &groups)?;
        self.write_superblocks(&plan, &groups, descriptor_blocks, seed)?;
        self.output.flush()?;
        let size = if self.options.grow_with_free.is_some() {
            u64::from(plan.blocks) * BLOCK_BYTES
        } else {
            self.options.size
        };
        let file = self.output.file;
        file.set_len(size).map_err(Ext4Error::Write)?;
        Ok(Finished { file, uuid: self.options.uuid, size, inodes: used as u64 })
    }

    /// Gives the host back what was written and is no longer part of any file.
    fn punch_freed(&mut self) -> Result<(), Ext4Error> {
        use rustix::fs::FallocateFlags;
        self.freed.sort_unstable();
        self.output.flush()?;
        let mut runs: Vec<(u32, u32)> = Vec::new();
        for &(first, count) in &self.freed {
            match runs.last_mut() {
                Some(last) if last.0 + last.1 == first => last.1 += count,
                _ => runs.push((first, count)),
            }
        }
        for &(first, count) in &runs {
            let (offset, length) = (u64::from(first) * BLOCK_BYTES, u64::from(count) * BLOCK_BYTES);
            let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            match rustix::fs::fallocate(&self.output.file, flags, offset, length) {
                Ok(()) => {}
                // It costs space and nothing else.
                Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::NOSYS) => break,
                Err(errno) => return Err(Ext4Error::Write(errno.into())),
            }
        }
        self.freed = runs;
        Ok(())
    }

    fn write_directories(&mut self, seed: &Uuid) -> Result<(), Ext4Error> {
        let mut numbers: Vec<u32> = self.directories.keys().copied().collect();
        numbers.sort_unstable();
        // Out of the way of what writes blocks; nothing is named any more.
        let names = std::mem::replace(&mut self.names, Names::new());
        for number in numbers {
            let Some(directory) = self.directories.remove(&number) else { continue };
            let mut order: Vec<u32> = names.list(directory.first).collect();
            order.sort_unstable_by_key(|&index| names.name(index));
            let inodes = std::mem::take(&mut self.inodes);
            let get = |number: u32| {
                let index = order[number as usize];
                let inode = names.inode(index);
                Entry { name: names.name(index), inode, mode: inodes[inode as usize - 1].mode }
            };
            let entries = Entries { count: directory.count, get: &get };
            let mut runs = Vec::new();
            let mut logical = 0;
            let mut emit = |block: &[u8]| {
                let physical = self.allocate()?;
                self.output.write(physical, block)?;
                extents::append(&mut runs, logical, physical);
                logical += 1;
                Ok(())
            };
            let parent = directory.parent;
            let indexed = directory::encode(number, parent, &entries, seed.as_bytes(), &mut emit)?;
            self.inodes = inodes;
            let mut inode = self.inode(number).clone();
            inode.size = u64::from(logical) * BLOCK_BYTES;
            if indexed {
                inode.flags |= FLAG_INDEXED;
            }
            self.set_extents(&mut inode, &runs)?;
            *self.inode(number) = inode;
        }
        Ok(())
    }

    /// Chooses the size and the number of inodes so that everything fits.
    fn plan(&self) -> Result<Plan, Ext4Error> {
        let inodes = self.inodes.len() as u64;
        let mut size = self.options.size;
        if let Some(free) = self.options.grow_with_free {
            let tables = inodes * INODE_SIZE as u64 * 2;
            let needed = self.used_bytes() + tables + free;
            // The tables of the default number of inodes take a 64th.
            let needed = needed + needed / 32;
            // A group has no more inodes than blocks.
            let needed = needed.max(inodes * 2 * BLOCK_BYTES);
            if needed > size {
                size = needed.next_multiple_of(u64::from(BLOCKS_PER_GROUP) * BLOCK_BYTES);
            }
        }
        if size > super::LARGEST_SIZE {
            return Err(Ext4Error::Size(size));
        }
        let mut blocks = u32::try_from(size / BLOCK_BYTES).map_err(|_| Ext4Error::Size(size))?;
        let last = blocks % BLOCKS_PER_GROUP;
        if last != 0 && last < SMALLEST_GROUP && blocks > BLOCKS_PER_GROUP {
            blocks -= last;
        }
        let groups = blocks.div_ceil(BLOCKS_PER_GROUP);
        // At least twice as many inodes as are used, so that the machine can make files.
        let wanted = (size / BYTES_PER_INODE).max(inodes * 2).div_ceil(u64::from(groups));
        let per_group = u32::try_from(wanted)
            .unwrap_or(u32::MAX)
            .clamp(INODES_PER_BLOCK, BLOCKS_PER_GROUP)
            .next_multiple_of(INODES_PER_BLOCK);
        if u64::from(per_group) * u64::from(groups) < inodes {
            return Err(Ext4Error::NoInodes);
        }
        Ok(Plan { blocks, groups, inodes_per_group: per_group })
    }

    /// Makes the inode that holds the blocks into which the group descriptors can grow
    /// (`ext2fs_create_resize_inode` of e2fsprogs): each reserved block of the primary copy lists
    /// the blocks at the same place in the copies.
    fn write_resize_inode(&mut self, plan: &Plan, used: u32) -> Result<(), Ext4Error> {
        let copies: Vec<u32> = (1..plan.groups).filter(|&group| has_superblock(group)).collect();
        let double_indirect = self.allocate()?;
        let mut map = vec![0_u8; BLOCK_SIZE];
        let mut blocks = 1;
        for block in 1 + used..=DESCRIPTOR_BLOCKS {
            // Descriptor block n is entry n of the map; the first descriptor block is block 1.
            put32(&mut map, (block as usize - 1) * 4, block);
            let mut list = vec![0_u8; BLOCK_SIZE];
            for (slot, group) in list.chunks_exact_mut(4).zip(&copies) {
                put32(slot, 0, group * BLOCKS_PER_GROUP + block);
            }
            self.output.write(block, &list)?;
            blocks += 1 + copies.len() as u64;
        }
        self.output.write(double_indirect, &map)?;
        let addresses = BLOCK_BYTES / 4;
        let mut inode = Inode {
            mode: 0o100_600,
            links: 1,
            size: (addresses * addresses + addresses + 12) * BLOCK_BYTES,
            modified: self.now,
            blocks,
            ..Inode::unused()
        };
        let mut block = [0; 60];
        put32(&mut block, 13 * 4, double_indirect);
        inode.block = Some(Box::new(block));
        *self.inode(RESIZE_INODE) = inode;
        Ok(())
    }

    /// Gives every group its bitmaps and inode table: behind the content for the groups that the
    /// content reached, at their own beginning for the others.
    fn place_tables(&mut self, plan: &Plan) -> Result<Vec<GroupDescriptor>, Ext4Error> {
        self.last_block = plan.blocks;
        let mut groups = Vec::with_capacity(plan.groups as usize);
        for group in 0..plan.groups {
            let start = group * BLOCKS_PER_GROUP;
            let mut descriptor =
                GroupDescriptor { flags: GROUP_TABLE_ZEROED, ..GroupDescriptor::default() };
            if start <= self.next_block {
                descriptor.block_bitmap = self.allocate()?;
                descriptor.inode_bitmap = self.allocate()?;
                descriptor.inode_table = self.allocate_row(plan.table_blocks())?;
            } else {
                let overhead = if has_superblock(group) { 1 + DESCRIPTOR_BLOCKS } else { 0 };
                descriptor.block_bitmap = start + overhead;
                descriptor.inode_bitmap = start + overhead + 1;
                descriptor.inode_table = start + overhead + 2;
                let own = overhead + 2 + plan.table_blocks();
                let blocks = plan.blocks_in(group);
                if own > blocks {
                    return Err(Ext4Error::Full { size: self.options.size });
                }
                descriptor.free_blocks = blocks - own;
                if group + 1 < plan.groups {
                    descriptor.flags |= GROUP_BLOCKS_UNUSED;
                }
            }
            groups.push(descriptor);
        }
        Ok(groups)
    }

    /// Takes `count` blocks in a row, which a superblock copy must not interrupt.
    fn allocate_row(&mut self, count: u32) -> Result<u32, Ext4Error> {
        let mut first = self.allocate()?;
        let mut last = first;
        while last - first + 1 < count {
            let next = self.allocate()?;
            if next != last + 1 {
                self.freed.push((first, last - first + 1));
                first = next;
            }
            last = next;
        }
        Ok(first)
    }

    fn write_tables(
        &mut self,
        plan: &Plan,
        descriptors: &[GroupDescriptor],
    ) -> Result<(), Ext4Error> {
        let inodes = std::mem::take(&mut self.inodes);
        let mut table = vec![0_u8; BLOCK_SIZE];
        for (descriptor, chunk) in
            descriptors.iter().zip(inodes.chunks(plan.inodes_per_group as usize))
        {
            for (index, row) in (0_u32..).zip(chunk.chunks(INODES_PER_BLOCK as usize)) {
                table.fill(0);
                for (slot, inode) in table.chunks_exact_mut(INODE_SIZE).zip(row) {
                    inode.encode(self.now, slot);
                }
                self.output.write(descriptor.inode_table + index, &table)?;
            }
        }
        self.inodes = inodes;
        Ok(())
    }

    /// Returns group `group`'s block bitmap: everything below `next_block` is used except `freed`.
    fn block_bitmap(&self, plan: &Plan, group: u32, own: &GroupDescriptor) -> Bitmap {
        let start = group * BLOCKS_PER_GROUP;
        let mut bitmap = Bitmap::new();
        let used = self.next_block.saturating_sub(start).min(BLOCKS_PER_GROUP);
        bitmap.set(0, used, true);
        for &(first, count) in &self.freed {
            let from = first.max(start);
            let to = (first + count).min(start + BLOCKS_PER_GROUP);
            if from < to {
                bitmap.set(from - start, to - from, false);
            }
        }
        if used == 0 {
            bitmap.set(0, own.inode_table + plan.table_blocks() - start, true);
        } else if has_superblock(group) {
            // A group that was only just reached may have its copy beyond `next_block`.
            bitmap.set(0, 1 + DESCRIPTOR_BLOCKS, true);
        }
        let blocks = plan.blocks_in(group);
        bitmap.set(blocks, BLOCKS_PER_GROUP - blocks, true);
        bitmap
    }

    fn write_superblocks(
        &mut self,
        plan: &Plan,
        descriptors: &[GroupDescriptor],
        descriptor_blocks: u32,
        hash_seed: Uuid,
    ) -> Result<(), Ext4Error> {
        let mut freed = std::mem::take(&mut self.freed);
        freed.sort_unstable();
        self.freed = freed;
        let mut table = vec![0_u8; descriptor_blocks as usize * BLOCK_SIZE];
        let (mut free_blocks, mut free_inodes) = (0, 0);
        for (group, descriptor) in (0_u32..).zip(descriptors) {
            let mut descriptor = descriptor.clone();
            if descriptor.flags & GROUP_BLOCKS_UNUSED == 0 {
                let bitmap = self.block_bitmap(plan, group, &descriptor);
                descriptor.free_blocks = bitmap.clear_bits();
                self.output.write(descriptor.block_bitmap, &bitmap.bytes)?;
            }
            let inodes = self.group_inodes(plan, group);
            descriptor.free_inodes = plan.inodes_per_group - inodes.used;
            descriptor.directories = inodes.directories;
            descriptor.unused_inodes = plan.inodes_per_group - inodes.last;
            if inodes.last == 0 {
                descriptor.flags |= GROUP_INODES_UNUSED;
            } else {
                self.output.write(descriptor.inode_bitmap, &inodes.bitmap.bytes)?;
            }
            free_blocks += descriptor.free_blocks;
            free_inodes += descriptor.free_inodes;
            let at = group as usize * super::layout::DESCRIPTOR_SIZE;
            let encoded = descriptor.encode(&self.options.uuid, group);
            table[at..at + encoded.len()].copy_from_slice(&encoded);
        }
        let journal = (self.journal_blocks > 0).then(|| {
            let inode = &self.inodes[super::layout::JOURNAL_INODE as usize - 1];
            (inode.block_field(), inode.size)
        });
        let superblock = Superblock {
            inodes: plan.inodes_per_group * plan.groups,
            blocks: plan.blocks,
            free_blocks,
            free_inodes,
            inodes_per_group: plan.inodes_per_group,
            reserved_descriptor_blocks: DESCRIPTOR_BLOCKS - descriptor_blocks,
            now: self.now,
            uuid: self.options.uuid,
            hash_seed,
            label: self.label,
            journal,
        };
        for group in (0..plan.groups).filter(|&group| has_superblock(group)) {
            let mut block = vec![0_u8; BLOCK_SIZE];
            // The primary copy leaves the first 1024 bytes to a boot loader.
            let at = if group == 0 { 1024 } else { 0 };
            block[at..at + 1024].copy_from_slice(&superblock.encode(group));
            self.output.write(group * BLOCKS_PER_GROUP, &block)?;
            self.output.write(group * BLOCKS_PER_GROUP + 1, &table)?;
        }
        Ok(())
    }

    fn group_inodes(&self, plan: &Plan, group: u32) -> GroupInodes {
        let per_group = plan.inodes_per_group as usize;
        let first = group as usize * per_group;
        let mut result = GroupInodes { bitmap: Bitmap::new(), used: 0, directories: 0, last: 0 };
        let padding = plan.inodes_per_group;
        result.bitmap.set(padding, BLOCKS_PER_GROUP - padding, true);
        let here = self.inodes.iter().skip(first).take(per_group);
        for (index, inode) in (0_u32..).zip(here) {
            // The first ten are reserved and count as used.
            if inode.links > 0 || (first == 0 && index < 10) {
                result.bitmap.set(index, 1, true);
                result.used += 1;
                result.directories += u32::from(inode.is_directory());
                result.last = index + 1;
            }
        }
        result
    }
}

struct GroupInodes {
    bitmap: Bitmap,
    used: u32,
    directories: u32,
    /// One more than the index of the last used inode.
    last: u32,
}

/// One block of bits.
struct Bitmap {
    bytes: Vec<u8>,
}

impl Bitmap {
    fn new() -> Self {
        Self { bytes: vec![0; BLOCK_SIZE] }
    }

    fn set(&mut self, first: u32, count: u32, value: bool) {
        let mut bit = first;
        let end = first + count;
        while bit < end {
            let byte = &mut self.bytes[bit as usize / 8];
            if bit.is_multiple_of(8) && end - bit >= 8 {
                *byte = if value { 0xff } else { 0 };
                bit += 8;
                continue;
            }
            let mask = 1 << (bit % 8);
            *byte = if value { *byte | mask } else { *byte & !mask };
            bit += 1;
        }
    }

    fn clear_bits(&self) -> u32 {
        self.bytes.iter().map(|byte| byte.count_zeros()).sum()
    }
}
