//! On-disk records of ext4: constants, the inode, the group descriptor and the superblock.
//!
//! Field offsets are those of <https://docs.kernel.org/filesystems/ext4/globals.html> and
//! `.../dynamic.html`. Everything on disk is little endian (only the journal is big endian).

use super::{Timestamp, extents};

/// Bytes of a block; the only block size this writer makes.
pub(crate) const BLOCK_SIZE: usize = 4096;
/// `BLOCK_SIZE` for file offsets.
pub const BLOCK_BYTES: u64 = 4096;
/// Blocks of a group: the bits of one bitmap block.
pub(crate) const BLOCKS_PER_GROUP: u32 = 32_768;
/// Bytes of an inode on disk.
pub(crate) const INODE_SIZE: usize = 256;
/// Inodes in one block of an inode table.
pub(crate) const INODES_PER_BLOCK: u32 = 16;
/// Bytes behind the first 128 of an inode that hold fields (up to `i_projid`).
const INODE_EXTRA: u16 = 32;
/// Where the attributes inside an inode begin.
pub(crate) const INODE_ATTRIBUTES: usize = 128 + 32;
/// Bytes of a group descriptor without the 64-bit feature.
pub(crate) const DESCRIPTOR_SIZE: usize = 32;
/// Group descriptors in one block.
pub(crate) const DESCRIPTORS_PER_BLOCK: u32 = 128;
/// Blocks behind each superblock kept for group descriptors, used or reserved for growth:
/// 64 blocks describe 8192 groups, so a mounted file system can grow to 1 TiB.
pub(crate) const DESCRIPTOR_BLOCKS: u32 = 64;

/// The root directory.
pub(crate) const ROOT_INODE: u32 = 2;
/// Maps the descriptor blocks reserved for growth.
pub(crate) const RESIZE_INODE: u32 = 7;
/// The journal.
pub(crate) const JOURNAL_INODE: u32 = 8;
/// The first inode that is not reserved; by convention `/lost+found`.
pub(crate) const FIRST_INODE: u32 = 11;

/// `i_flags`: the block field holds an extent tree.
pub(crate) const FLAG_EXTENTS: u32 = 0x0008_0000;
/// `i_flags`: the directory has a hash index.
pub(crate) const FLAG_INDEXED: u32 = 0x0000_1000;

/// Group flag: no inode of the group is used and its inode bitmap is not written.
pub(crate) const GROUP_INODES_UNUSED: u16 = 1;
/// Group flag: only the group's own metadata is used and its block bitmap is not written.
pub(crate) const GROUP_BLOCKS_UNUSED: u16 = 2;
/// Group flag: the inode table is known to be zero behind the used inodes.
pub(crate) const GROUP_TABLE_ZEROED: u16 = 4;

/// Returns whether `group` holds a copy of the superblock: 0, 1 and the powers of 3, 5 and 7.
pub(crate) fn has_superblock(group: u32) -> bool {
    let power_of = |base: u32| {
        let mut value = base;
        while value < group {
            value = value.saturating_mul(base);
        }
        value == group
    };
    group <= 1 || power_of(3) || power_of(5) || power_of(7)
}

pub(crate) fn put16(buffer: &mut [u8], at: usize, value: u16) {
    buffer[at..at + 2].copy_from_slice(&value.to_le_bytes());
}

pub(crate) fn put32(buffer: &mut [u8], at: usize, value: u32) {
    buffer[at..at + 4].copy_from_slice(&value.to_le_bytes());
}

/// Returns the low and the high half of `value`.
pub(crate) fn halves64(value: u64) -> (u32, u32) {
    let bytes = value.to_le_bytes();
    let word =
        |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
    (word(0), word(4))
}

/// Returns the low and the high half of `value`.
pub(crate) fn halves32(value: u32) -> (u16, u16) {
    let bytes = value.to_le_bytes();
    (u16::from_le_bytes([bytes[0], bytes[1]]), u16::from_le_bytes([bytes[2], bytes[3]]))
}

/// One inode as it is kept until the inode tables are written.
#[derive(Clone, Debug)]
pub(crate) struct Inode {
    /// Type and permission bits.
    pub(crate) mode: u16,
    pub(crate) owner: u32,
    pub(crate) group: u32,
    /// Bytes of content.
    pub(crate) size: u64,
    pub(crate) modified: Timestamp,
    /// Names that refer to this inode; a directory also counts `.` and its children's `..`.
    pub(crate) links: u32,
    /// Blocks used, data and metadata, in units of [`BLOCK_SIZE`].
    pub(crate) blocks: u64,
    pub(crate) flags: u32,
    /// Extent tree, short symbolic link or device number; `None` for one without content.
    pub(crate) block: Option<Box<[u8; 60]>>,
    /// Attributes that fit behind the inode's fields.
    pub(crate) attributes: Option<Box<[u8]>>,
    /// The block with the other attributes, 0 for none.
    pub(crate) attribute_block: u32,
}

impl Inode {
    /// An inode that is not in use.
    pub(crate) fn unused() -> Self {
        Self {
            mode: 0,
            owner: 0,
            group: 0,
            size: 0,
            modified: Timestamp::default(),
            links: 0,
            blocks: 0,
            flags: 0,
            block: None,
            attributes: None,
            attribute_block: 0,
        }
    }

    /// Returns the block field as it stands on disk.
    pub(crate) fn block_field(&self) -> [u8; 60] {
        match &self.block {
            Some(block) => **block,
            None if self.flags & FLAG_EXTENTS != 0 => extents::tree(&[], || 0).root,
            None => [0; 60],
        }
    }

    pub(crate) fn is_directory(&self) -> bool {
        self.mode & 0o170_000 == 0o040_000
    }

    /// Writes the inode's 256 bytes; `changed` becomes its change and creation time.
    pub(crate) fn encode(&self, changed: Timestamp, out: &mut [u8]) {
        out.fill(0);
        if self.mode == 0 && self.links == 0 {
            return;
        }
        let (owner_low, owner_high) = halves32(self.owner);
        let (group_low, group_high) = halves32(self.group);
        let (size_low, size_high) = halves64(self.size);
        // In 512-byte sectors, 48 bits wide (the HUGE_FILE feature).
        let (sectors_low, sectors_high) = halves64(self.blocks * 8);
        put16(out, 0, self.mode);
        put16(out, 2, owner_low);
        put32(out, 4, size_low);
        put32(out, 8, self.modified.seconds_field());
        put32(out, 12, changed.seconds_field());
        put32(out, 16, self.modified.seconds_field());
        put16(out, 24, group_low);
        // DIR_NLINK: a directory with more links than 16 bits can say has the count 1.
        let links = if self.links > 65_000 { 1 } else { self.links };
        put16(out, 26, halves32(links).0);
        put32(out, 28, sectors_low);
        put32(out, 32, self.flags);
        out[40..100].copy_from_slice(&self.block_field());
        put32(out, 104, self.attribute_block);
        put32(out, 108, size_high);
        put16(out, 116, halves32(sectors_high).0);
        put16(out, 120, owner_high);
        put16(out, 122, group_high);
        put16(out, 128, INODE_EXTRA);
        put32(out, 132, changed.extra_field());
        put32(out, 136, self.modified.extra_field());
        put32(out, 140, self.modified.extra_field());
        put32(out, 144, changed.seconds_field());
        put32(out, 148, changed.extra_field());
        if let Some(attributes) = &self.attributes {
            out[INODE_ATTRIBUTES..INODE_ATTRIBUTES + attributes.len()].copy_from_slice(attributes);
        }
    }
}

/// One block group's descriptor.
#[derive(Clone, Debug, Default)]
pub(crate) struct GroupDescriptor {
    pub(crate) block_bitmap: u32,
    pub(crate) inode_bitmap: u32,
    pub(crate) inode_table: u32,
    pub(crate) free_blocks: u32,
    pub(crate) free_inodes: u32,
    pub(crate) directories: u32,
    pub(crate) flags: u16,
    /// Inodes at the end of the table that were never used.
    pub(crate) unused_inodes: u32,
}

impl GroupDescriptor {
    /// Returns the descriptor's bytes with its checksum (the `uninit_bg` feature: CRC-16 over the
    /// file system's UUID, the group's number and the descriptor).
    pub(crate) fn encode(&self, uuid: &uuid::Uuid, group: u32) -> [u8; DESCRIPTOR_SIZE] {
        let mut out = [0_u8; DESCRIPTOR_SIZE];
        put32(&mut out, 0, self.block_bitmap);
        put32(&mut out, 4, self.inode_bitmap);
        put32(&mut out, 8, self.inode_table);
        // At most 32768 each, so the low half is all of it.
        put16(&mut out, 12, halves32(self.free_blocks).0);
        put16(&mut out, 14, halves32(self.free_inodes).0);
        put16(&mut out, 16, halves32(self.directories).0);
        put16(&mut out, 18, self.flags);
        put16(&mut out, 28, halves32(self.unused_inodes).0);
        let mut checksum = crc16(0xffff, uuid.as_bytes());
        checksum = crc16(checksum, &group.to_le_bytes());
        checksum = crc16(checksum, &out[..30]);
        put16(&mut out, 30, checksum);
        out
    }
}

/// CRC-16 with the reflected polynomial 0xA001, as the kernel's `lib/crc16.c`.
fn crc16(mut crc: u16, bytes: &[u8]) -> u16 {
    for &byte in bytes {
        crc ^= u16::from(byte);
        for _ in 0..8 {
            crc = if crc & 1 == 1 { (crc >> 1) ^ 0xA001 } else { crc >> 1 };
        }
    }
    crc
}

/// What the superblock says about the finished file system.
#[derive(Clone, Debug)]
pub(crate) struct Superblock {
    pub(crate) inodes: u32,
    pub(crate) blocks: u32,
    pub(crate) free_blocks: u32,
    pub(crate) free_inodes: u32,
    pub(crate) inodes_per_group: u32,
    pub(crate) reserved_descriptor_blocks: u32,
    pub(crate) now: Timestamp,
    pub(crate) uuid: uuid::Uuid,
    pub(crate) hash_seed: uuid::Uuid,
    pub(crate) label: [u8; 16],
    /// The journal inode's block field and size, where there is a journal.
    pub(crate) journal: Option<([u8; 60], u64)>,
}

impl Superblock {
    /// Returns the 1024 bytes of the copy that lives in `group`.
    pub(crate) fn encode(&self, group: u32) -> [u8; 1024] {
        const EXT_ATTR: u32 = 0x8;
        const HAS_JOURNAL: u32 = 0x4;
        const RESIZE: u32 = 0x10;
        const DIR_INDEX: u32 = 0x20;
        const FILETYPE: u32 = 0x2;
        const EXTENTS: u32 = 0x40;
        const FLEX_BG: u32 = 0x200;
        const SPARSE_SUPER: u32 = 0x1;
        const LARGE_FILE: u32 = 0x2;
        const HUGE_FILE: u32 = 0x8;
        const GDT_CSUM: u32 = 0x10;
        const DIR_NLINK: u32 = 0x20;
        const EXTRA_ISIZE: u32 = 0x40;
        let mut out = [0_u8; 1024];
        let now = self.now.seconds_field();
        put32(&mut out, 0, self.inodes);
        put32(&mut out, 4, self.blocks);
        put32(&mut out, 12, self.free_blocks);
        put32(&mut out, 16, self.free_inodes);
        put32(&mut out, 24, 2); // block size: 1024 << 2
        put32(&mut out, 28, 2); // cluster size
        put32(&mut out, 32, BLOCKS_PER_GROUP);
        put32(&mut out, 36, BLOCKS_PER_GROUP);
        put32(&mut out, 40, self.inodes_per_group);
        put32(&mut out, 48, now);
        put16(&mut out, 54, 0xffff); // never force a check by mount count
        put16(&mut out, 56, 0xEF53);
        put16(&mut out, 58, 1); // cleanly unmounted
        put16(&mut out, 60, 1); // on errors: continue
        put32(&mut out, 64, now);
        put32(&mut out, 76, 1); // dynamic revision
        put32(&mut out, 84, FIRST_INODE);
        put16(&mut out, 88, 256); // INODE_SIZE
        put16(&mut out, 90, halves32(group).0);
        let journal = if self.journal.is_some() { HAS_JOURNAL } else { 0 };
        put32(&mut out, 92, EXT_ATTR | RESIZE | DIR_INDEX | journal);
        put32(&mut out, 96, FILETYPE | EXTENTS | FLEX_BG);
        put32(
            &mut out,
            100,
            SPARSE_SUPER | LARGE_FILE | HUGE_FILE | GDT_CSUM | DIR_NLINK | EXTRA_ISIZE,
        );
        out[104..120].copy_from_slice(self.uuid.as_bytes());
        out[120..136].copy_from_slice(&self.label);
        put16(&mut out, 206, halves32(self.reserved_descriptor_blocks).0);
        out[236..252].copy_from_slice(self.hash_seed.as_bytes());
        out[252] = 1; // directories are hashed with half MD4
        put32(&mut out, 256, 0xC); // default mount options user_xattr and acl
        put32(&mut out, 264, now);
        if let Some((block, size)) = &self.journal {
            put32(&mut out, 224, JOURNAL_INODE);
            out[253] = 1; // the next field is a copy of the journal inode's blocks
            out[268..328].copy_from_slice(block);
            let (low, high) = halves64(*size);
            put32(&mut out, 328, high);
            put32(&mut out, 332, low);
        }
        put16(&mut out, 348, INODE_EXTRA);
        put16(&mut out, 350, INODE_EXTRA);
        put32(&mut out, 352, 1); // signed directory hash, as on x86
        out[372] = 4; // 16 groups to a flexible group
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn superblock_copies_are_in_sparse_groups() {
        let groups: Vec<u32> = (0..130).filter(|&group| has_superblock(group)).collect();
        assert_eq!(groups, [0, 1, 3, 5, 7, 9, 25, 27, 49, 81, 125]);
    }

    #[test]
    fn crc16_matches_the_known_check_value() {
        // CRC-16/ARC of "123456789" is 0xBB3D; it starts at 0.
        assert_eq!(crc16(0, b"123456789"), 0xBB3D);
    }
}
