//! Directory blocks: a plain list while it fits one block, else a hash index over sorted leaves.
//!
//! Format: <https://docs.kernel.org/filesystems/ext4/directory.html>; the hash is the kernel's
//! half MD4 (`fs/ext4/hash.c`), keyed by the superblock's seed.

use super::Ext4Error;
use super::layout::{BLOCK_SIZE, put16, put32};

/// One name in a directory, ready to be written.
#[derive(Clone, Debug)]
pub(crate) struct Entry<'a> {
    pub(crate) name: &'a [u8],
    pub(crate) inode: u32,
    /// The inode's mode, for the type byte.
    pub(crate) mode: u16,
}

impl Entry<'_> {
    fn size(&self) -> usize {
        (8 + self.name.len()).next_multiple_of(4)
    }

    fn write(&self, out: &mut [u8], record: usize) {
        put32(out, 0, self.inode);
        put16(out, 4, u16::try_from(record).unwrap_or(0));
        out[6] = u8::try_from(self.name.len()).unwrap_or(u8::MAX);
        out[7] = match self.mode & 0o170_000 {
            0o100_000 => 1,
            0o040_000 => 2,
            0o020_000 => 3,
            0o060_000 => 4,
            0o010_000 => 5,
            0o140_000 => 6,
            0o120_000 => 7,
            _ => 0,
        };
        out[8..8 + self.name.len()].copy_from_slice(self.name);
    }
}

/// The entries of a directory by number, so that no list of them is made.
pub(crate) struct Entries<'a> {
    pub(crate) count: u32,
    pub(crate) get: &'a dyn Fn(u32) -> Entry<'a>,
}

impl<'a> Entries<'a> {
    fn iter(&self) -> impl Iterator<Item = Entry<'a>> {
        (0..self.count).map(self.get)
    }
}

/// Takes the blocks of a directory, one after the other.
pub(crate) type Emit<'a> = dyn FnMut(&[u8]) -> Result<(), Ext4Error> + 'a;

/// Entries of an index block that is the root, and of one below it.
const ROOT_LIMIT: usize = (BLOCK_SIZE - 32) / 8;
const NODE_LIMIT: usize = (BLOCK_SIZE - 8) / 8;

/// Lays out a directory with inode `own` and parent `parent`, and returns whether its first block
/// is a hash index.
pub(crate) fn encode(
    own: u32,
    parent: u32,
    entries: &Entries<'_>,
    seed: &[u8; 16],
    emit: &mut Emit<'_>,
) -> Result<bool, Ext4Error> {
    let dots = [
        Entry { name: b".", inode: own, mode: 0o040_000 },
        Entry { name: b"..", inode: parent, mode: 0o040_000 },
    ];
    let size: usize = entries.iter().map(|entry| entry.size()).sum();
    if 24 + size <= BLOCK_SIZE {
        let mut bytes = vec![0_u8; BLOCK_SIZE];
        let all: Vec<Entry<'_>> = dots.iter().cloned().chain(entries.iter()).collect();
        write_list(&mut bytes, &all);
        emit(&bytes)?;
        return Ok(false);
    }
    let mut hashed: Vec<(u32, u32, u32)> = (0..)
        .zip(entries.iter())
        .map(|(index, entry)| {
            let (major, minor) = half_md4(entry.name, seed);
            (major, minor, index)
        })
        .collect();
    hashed.sort_unstable();

    // Leaves in order of hash: each with the hash it begins at, whose lowest bit says that the
    // leaf before ends with the same hash; and the place of its first entry in that order.
    let mut leaves: Vec<(u32, usize)> = vec![(0, 0)];
    let mut room = BLOCK_SIZE;
    let mut previous = None;
    for (place, &(hash, _, index)) in hashed.iter().enumerate() {
        let size = (entries.get)(index).size();
        if size > room {
            let continued = u32::from(previous == Some(hash));
            leaves.push((hash | continued, place));
            room = BLOCK_SIZE;
        }
        room -= size;
        previous = Some(hash);
    }

    let nodes = if leaves.len() > ROOT_LIMIT { leaves.len().div_ceil(NODE_LIMIT) } else { 0 };
    if nodes > ROOT_LIMIT {
        // Over 20 million names of the longest kind: a list is slow to search, and correct.
        list_blocks(&dots, entries, emit)?;
        return Ok(false);
    }
    let mut bytes = vec![0_u8; BLOCK_SIZE * (1 + nodes)];
    let number = |index: usize| u32::try_from(index).unwrap_or(u32::MAX);
    let first_leaf = 1 + nodes;
    let pointers: Vec<(u32, u32)> = leaves
        .iter()
        .enumerate()
        .map(|(index, (hash, _))| (*hash, number(first_leaf + index)))
        .collect();
    dots[0].write(&mut bytes, 12);
    dots[1].write(&mut bytes[12..], BLOCK_SIZE - 12);
    bytes[28] = 1; // half MD4
    bytes[29] = 8; // length of this information
    bytes[30] = u8::from(nodes > 0); // levels between the root and the leaves
    if nodes == 0 {
        write_index(&mut bytes[32..BLOCK_SIZE], &pointers, ROOT_LIMIT);
    } else {
        let mut above = Vec::with_capacity(nodes);
        for (index, chunk) in pointers.chunks(NODE_LIMIT).enumerate() {
            let block = &mut bytes[BLOCK_SIZE * (1 + index)..BLOCK_SIZE * (2 + index)];
            put16(block, 4, 4096); // an entry without inode that covers the block
            write_index(&mut block[8..], chunk, NODE_LIMIT);
            above.push((chunk[0].0, number(1 + index)));
        }
        write_index(&mut bytes[32..BLOCK_SIZE], &above, ROOT_LIMIT);
    }
    for block in bytes.chunks_exact(BLOCK_SIZE) {
        emit(block)?;
    }
    let ends = leaves[1..].iter().map(|(_, start)| *start).chain([hashed.len()]);
    let mut block = vec![0_u8; BLOCK_SIZE];
    for (&(_, start), end) in leaves.iter().zip(ends) {
        let leaf: Vec<Entry<'_>> =
            hashed[start..end].iter().map(|&(_, _, index)| (entries.get)(index)).collect();
        block.fill(0);
        write_list(&mut block, &leaf);
        emit(&block)?;
    }
    Ok(true)
}

fn list_blocks<'a>(
    dots: &[Entry<'a>],
    entries: &Entries<'a>,
    emit: &mut Emit<'_>,
) -> Result<(), Ext4Error> {
    let mut list: Vec<Entry<'_>> = Vec::new();
    let mut room = BLOCK_SIZE;
    let mut finish = |list: &[Entry<'_>]| {
        let mut block = vec![0_u8; BLOCK_SIZE];
        write_list(&mut block, list);
        emit(&block)
    };
    for entry in dots.iter().cloned().chain(entries.iter()) {
        if entry.size() > room {
            finish(&list)?;
            list.clear();
            room = BLOCK_SIZE;
        }
        room -= entry.size();
        list.push(entry);
    }
    finish(&list)
}

/// Writes `entries`, which fit, into one block; the last takes the rest of it.
fn write_list(block: &mut [u8], entries: &[Entry<'_>]) {
    let mut at = 0;
    for (index, entry) in entries.iter().enumerate() {
        let record = if index + 1 == entries.len() { BLOCK_SIZE - at } else { entry.size() };
        entry.write(&mut block[at..], record);
        at += record;
    }
}

/// Writes limit, count and pointers; the first pointer's hash is not stored.
fn write_index(out: &mut [u8], pointers: &[(u32, u32)], limit: usize) {
    put16(out, 0, u16::try_from(limit).unwrap_or(0));
    put16(out, 2, u16::try_from(pointers.len()).unwrap_or(0));
    put32(out, 4, pointers[0].1);
    for (slot, (hash, block)) in out[8..].chunks_exact_mut(8).zip(&pointers[1..]) {
        put32(slot, 0, *hash);
        put32(slot, 4, *block);
    }
}

/// Returns the major and the minor hash of a name.
fn half_md4(name: &[u8], seed: &[u8; 16]) -> (u32, u32) {
    let mut state = [0_u32; 4];
    for (word, bytes) in state.iter_mut().zip(seed.chunks_exact(4)) {
        *word = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
    }
    let mut rest = name;
    loop {
        transform(&mut state, &words(rest));
        match rest.get(32..) {
            Some(more) if !more.is_empty() => rest = more,
            _ => break,
        }
    }
    let hash = state[1] & !1;
    // The largest value means the end of a directory.
    (if hash == 0xffff_fffe { 0xffff_fffc } else { hash }, state[2])
}

/// As `str2hashbuf_signed`: up to 32 bytes as eight words, padded with the remaining length.
fn words(name: &[u8]) -> [u32; 8] {
    let length = u32::try_from(name.len()).unwrap_or(u32::MAX);
    let mut pad = length | (length << 8);
    pad |= pad << 16;
    let mut out = [pad; 8];
    for (word, bytes) in out.iter_mut().zip(name.chunks(4)) {
        let mut value = pad;
        for &byte in bytes {
            let signed = i32::from(byte.cast_signed()).cast_unsigned();
            value = signed.wrapping_add(value << 8);
        }
        *word = value;
    }
    out
}

/// As `half_md4_transform` of `fs/ext4/hash.c`.
fn transform(state: &mut [u32; 4], input: &[u32; 8]) {
    type Mix = fn(u32, u32, u32) -> u32;
    const ROUNDS: [(Mix, u32, [usize; 8], [u32; 4]); 3] = [
        (|x, y, z| z ^ (x & (y ^ z)), 0, [0, 1, 2, 3, 4, 5, 6, 7], [3, 7, 11, 19]),
        (
            |x, y, z| (x & y).wrapping_add((x ^ y) & z),
            0x5A82_7999,
            [1, 3, 5, 7, 0, 2, 4, 6],
            [3, 5, 9, 13],
        ),
        (|x, y, z| x ^ y ^ z, 0x6ED9_EBA1, [3, 7, 2, 6, 1, 5, 0, 4], [3, 9, 11, 15]),
    ];
    let mut v = *state;
    for (mix, constant, order, shifts) in ROUNDS {
        for (step, &index) in order.iter().enumerate() {
            // The four registers take turns as target: a, d, c, b.
            let [a, b, c, d] = [0, 1, 2, 3].map(|offset| (offset + 8 - step) % 4);
            v[a] = v[a]
                .wrapping_add(mix(v[b], v[c], v[d]))
                .wrapping_add(input[index])
                .wrapping_add(constant)
                .rotate_left(shifts[step % 4]);
        }
    }
    for (word, add) in state.iter_mut().zip(v) {
        *word = word.wrapping_add(add);
    }
}
