//! Extents: runs of blocks of a file, and the tree that records them.

use super::layout::{BLOCK_SIZE, FLAG_EXTENTS, Inode, halves32, put16, put32};

/// Most blocks in one initialized extent (`ee_len` is 15 bits and one value).
const LONGEST: u32 = 32_768;
const MAGIC: u16 = 0xF30A;
/// Entries in the inode's 60 bytes: a header and four of 12 bytes.
const IN_INODE: usize = 4;
/// Entries in a block: a header, entries of 12 bytes, and room for a checksum.
const IN_BLOCK: usize = (BLOCK_SIZE - 12 - 4) / 12;

/// `length` blocks of a file from its block `logical` on, stored from block `physical` on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Extent {
    pub(crate) logical: u32,
    pub(crate) physical: u32,
    pub(crate) length: u32,
}

/// Appends one block to `extents`, extending the last one where it continues.
pub(crate) fn append(extents: &mut Vec<Extent>, logical: u32, physical: u32) {
    if let Some(last) = extents.last_mut()
        && last.length < LONGEST
        && last.logical + last.length == logical
        && last.physical + last.length == physical
    {
        last.length += 1;
        return;
    }
    extents.push(Extent { logical, physical, length: 1 });
}

/// An extent tree: the inode's block field and the blocks below it, in the order given out.
pub(crate) struct Tree {
    pub(crate) root: [u8; 60],
    pub(crate) blocks: Vec<(u32, Box<[u8]>)>,
}

/// Lays out the tree for `extents` (in logical order), taking block numbers from `allocate`.
pub(crate) fn tree(extents: &[Extent], mut allocate: impl FnMut() -> u32) -> Tree {
    let mut entries: Vec<(u32, [u8; 12])> = extents.iter().map(leaf).collect();
    let mut depth = 0_u16;
    let mut blocks = Vec::new();
    while entries.len() > IN_INODE {
        let mut above = Vec::with_capacity(entries.len() / IN_BLOCK + 1);
        for chunk in entries.chunks(IN_BLOCK) {
            let mut block = vec![0_u8; BLOCK_SIZE].into_boxed_slice();
            write_node(&mut block, chunk, IN_BLOCK, depth);
            let number = allocate();
            blocks.push((number, block));
            above.push((chunk[0].0, index(chunk[0].0, number)));
        }
        entries = above;
        depth += 1;
    }
    let mut root = [0_u8; 60];
    write_node(&mut root, &entries, IN_INODE, depth);
    Tree { root, blocks }
}

/// Returns the runs of blocks that an inode with a tree of no depth refers to.
pub(crate) fn in_inode(inode: &Inode) -> Vec<(u32, u32)> {
    let Some(block) = &inode.block else { return Vec::new() };
    let field = |at: usize| u16::from_le_bytes([block[at], block[at + 1]]);
    if inode.flags & FLAG_EXTENTS == 0 || field(6) != 0 {
        return Vec::new();
    }
    (0..usize::from(field(2)))
        .map(|index| 12 + index * 12)
        .map(|at| {
            let start = u32::from(field(at + 8)) | (u32::from(field(at + 10)) << 16);
            (start, u32::from(field(at + 4)))
        })
        .collect()
}

fn write_node(out: &mut [u8], entries: &[(u32, [u8; 12])], limit: usize, depth: u16) {
    let small = |count: usize| u16::try_from(count).unwrap_or(u16::MAX);
    put16(out, 0, MAGIC);
    put16(out, 2, small(entries.len()));
    put16(out, 4, small(limit));
    put16(out, 6, depth);
    for (slot, (_, entry)) in out[12..].chunks_exact_mut(12).zip(entries) {
        slot.copy_from_slice(entry);
    }
}

fn leaf(extent: &Extent) -> (u32, [u8; 12]) {
    let mut entry = [0_u8; 12];
    put32(&mut entry, 0, extent.logical);
    put16(&mut entry, 4, halves32(extent.length).0);
    put32(&mut entry, 8, extent.physical);
    (extent.logical, entry)
}

fn index(logical: u32, block: u32) -> [u8; 12] {
    let mut entry = [0_u8; 12];
    put32(&mut entry, 0, logical);
    put32(&mut entry, 4, block);
    entry
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_in_a_row_are_one_extent_and_holes_split() {
        let mut extents = Vec::new();
        for (logical, physical) in [(0, 10), (1, 11), (2, 12), (5, 13), (6, 20)] {
            append(&mut extents, logical, physical);
        }
        assert_eq!(
            extents,
            [
                Extent { logical: 0, physical: 10, length: 3 },
                Extent { logical: 5, physical: 13, length: 1 },
                Extent { logical: 6, physical: 20, length: 1 },
            ]
        );
    }

    #[test]
    fn many_extents_make_a_deeper_tree() {
        let extents: Vec<Extent> =
            (0..3000).map(|n| Extent { logical: n * 2, physical: 100 + n, length: 1 }).collect();
        let mut next = 10_000;
        let tree = tree(&extents, || {
            next += 1;
            next
        });
        // 3000 leaves need 9 blocks, which need one more level.
        assert_eq!(tree.blocks.len(), 10);
        assert_eq!(tree.root[6], 2);
    }
}
