//! The content of files: extent trees, and reading along them.

use std::io::{self, Read};
use std::os::unix::fs::FileExt;

use super::{Node, ReadError, Reader, get16, get32, wide};

const FLAG_EXTENTS: u32 = 0x0008_0000;
const MAGIC: u16 = 0xF30A;
/// As the kernel's `EXT4_MAX_EXTENT_DEPTH`.
const DEEPEST: u16 = 5;
/// Most nodes of one file's tree; one of 4096 bytes leads to 340 runs.
const MOST_NODES: u32 = 1 << 17;
/// Most runs of one file.
const MOST_RUNS: usize = 8 << 20;

/// Blocks of a file in a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// The first, counted in the file.
    pub logical: u32,
    /// The first, counted in the file system.
    pub physical: u64,
    /// How many there are.
    pub length: u32,
}

impl Reader {
    /// Returns the runs of blocks that `node` has content in, in order; the rest is holes.
    ///
    /// # Errors
    /// An unreadable or damaged extent tree, or a file with a block map.
    pub fn runs(&self, node: &Node) -> Result<Vec<Run>, ReadError> {
        if node.flags & FLAG_EXTENTS == 0 {
            if node.size == 0 {
                return Ok(Vec::new());
            }
            return Err(ReadError::Unsupported("has files with block maps, as ext2 and ext3"));
        }
        let damaged = || ReadError::Damaged { what: "the extents", inode: node.number };
        let mut runs: Vec<Run> = Vec::new();
        let (mut bytes, mut depth) = (node.block.to_vec(), get16(&node.block, 6));
        if depth > DEEPEST {
            return Err(damaged());
        }
        // Nodes still to be read, the next one last, with the depth that each must have.
        let mut rest: Vec<(u64, u16)> = Vec::new();
        for _ in 0..MOST_NODES {
            let count = usize::from(get16(&bytes, 2));
            if get16(&bytes, 0) != MAGIC
                || get16(&bytes, 6) != depth
                || 12 + count * 12 > bytes.len()
            {
                return Err(damaged());
            }
            let entries = bytes[12..12 + count * 12].chunks_exact(12);
            if depth == 0 {
                for entry in entries {
                    self.push(&mut runs, entry).ok_or_else(damaged)?;
                }
            } else {
                for entry in entries.rev() {
                    rest.push((wide(get32(entry, 4), u32::from(get16(entry, 8))), depth - 1));
                }
            }
            let Some((block, next)) = rest.pop() else { return Ok(runs) };
            bytes.resize(usize::try_from(self.block_size).unwrap_or(4096), 0);
            self.read_block(block, &mut bytes)?;
            depth = next;
        }
        Err(damaged())
    }

    fn push(&self, runs: &mut Vec<Run>, entry: &[u8]) -> Option<()> {
        let (logical, length) = (get32(entry, 0), u32::from(get16(entry, 4)));
        let physical = wide(get32(entry, 8), u32::from(get16(entry, 6)));
        let end = runs.last().map_or(0, |run| u64::from(run.logical) + u64::from(run.length));
        if u64::from(logical) < end || runs.len() >= MOST_RUNS {
            return None;
        }
        // Above 32768 the extent is allocated and not written, which reads as zeros.
        if length > 32_768 {
            return Some(());
        }
        let beyond = physical.checked_add(u64::from(length))?;
        if length == 0 || physical == 0 || beyond > self.blocks {
            return None;
        }
        runs.push(Run { logical, physical, length });
        Some(())
    }

    /// Reads the content of `node` from its beginning; holes are zeros.
    ///
    /// # Errors
    /// As [`Reader::runs`].
    pub fn content(&self, node: &Node) -> Result<ContentReader<'_>, ReadError> {
        Ok(ContentReader { reader: self, runs: self.runs(node)?, next: 0, at: 0, size: node.size })
    }

    /// Bytes of a block.
    #[must_use]
    pub fn block_size(&self) -> u64 {
        self.block_size
    }
}

/// Reads the content of a file.
#[derive(Debug)]
pub struct ContentReader<'a> {
    reader: &'a Reader,
    runs: Vec<Run>,
    /// The run that the position is in or before.
    next: usize,
    at: u64,
    size: u64,
}

impl ContentReader<'_> {
    /// Returns the pieces of the file that are no holes, as offset and length in bytes.
    #[must_use]
    pub fn pieces(&self) -> Vec<(u64, u64)> {
        let block = self.reader.block_size;
        let mut pieces: Vec<(u64, u64)> = Vec::new();
        for run in &self.runs {
            let start = u64::from(run.logical) * block;
            let end = (start + u64::from(run.length) * block).min(self.size);
            match pieces.last_mut() {
                _ if start >= end => {}
                Some((first, length)) if *first + *length == start => *length += end - start,
                _ => pieces.push((start, end - start)),
            }
        }
        pieces
    }

    /// Goes to the byte `at`.
    pub fn seek(&mut self, at: u64) {
        self.at = at;
        self.next = 0;
    }
}

impl Read for ContentReader<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let block = self.reader.block_size;
        let rest = usize::try_from(self.size.saturating_sub(self.at)).unwrap_or(usize::MAX);
        let most = rest.min(buffer.len());
        if most == 0 {
            return Ok(0);
        }
        let end = |index: usize| {
            self.runs.get(index).map(|run| (u64::from(run.logical) + u64::from(run.length)) * block)
        };
        while end(self.next).is_some_and(|end| end <= self.at) {
            self.next += 1;
        }
        let within = |length: u64| most.min(usize::try_from(length).unwrap_or(usize::MAX));
        let read = match self.runs.get(self.next) {
            Some(run) if u64::from(run.logical) * block <= self.at => {
                let offset = self.at - u64::from(run.logical) * block;
                let length = within(u64::from(run.length) * block - offset);
                let place = run.physical * block + offset;
                self.reader.file.read_exact_at(&mut buffer[..length], place)?;
                length
            }
            later => {
                let hole = later.map_or(u64::MAX, |run| u64::from(run.logical) * block - self.at);
                let length = within(hole);
                buffer[..length].fill(0);
                length
            }
        };
        self.at += read as u64;
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use super::super::{NodeKind, Reader};
    use super::*;

    /// An extent tree's node of these entries.
    fn tree(depth: u16, entries: &[[u32; 3]]) -> Vec<u8> {
        let count = u16::try_from(entries.len()).unwrap();
        let mut bytes: Vec<u8> =
            [MAGIC, count, count, depth, 0, 0].into_iter().flat_map(u16::to_le_bytes).collect();
        bytes.extend(entries.iter().flatten().flat_map(|word| word.to_le_bytes()));
        bytes
    }

    #[test]
    fn extents_that_name_blocks_over_and_over_end() {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(256 << 20).unwrap();
        let made = std::process::Command::new("/usr/sbin/mke2fs")
            .args(["-q", "-t", "ext4", "-b", "4096"])
            .arg(file.path())
            .status();
        assert!(made.unwrap().success());
        let reader = Reader::open(file.reopen().unwrap()).unwrap();
        let mut node = reader.root().unwrap();
        assert_eq!(node.kind, NodeKind::Directory);
        assert_eq!(reader.entries(&node).unwrap().len(), 1, "lost+found");
        let put = |node: &mut Node, bytes: &[u8]| node.block[..bytes.len()].copy_from_slice(bytes);
        let directory = u32::try_from(reader.runs(&node).unwrap()[0].physical).unwrap();
        // More blocks than a directory has, all with the same names.
        let again = [0, 1, 2].map(|part| [part * 32_768, 32_768, directory]);
        put(&mut node, &tree(0, &again));
        assert_eq!(reader.runs(&node).unwrap().len(), 3);
        assert!(matches!(reader.entries(&node), Err(ReadError::Damaged { .. })));
        // A node below that leads to many, and each of them to itself.
        let block = 40_000;
        let below: Vec<_> = (0..340).map(|part| [part, block, 0]).collect();
        for depth in [1, 4] {
            let bytes = tree(depth, &below);
            std::os::unix::fs::FileExt::write_all_at(
                file.as_file(),
                &bytes,
                u64::from(block) * 4096,
            )
            .unwrap();
            put(&mut node, &tree(depth + 1, &[[0, block, 0], [1, block, 0]]));
            assert!(matches!(reader.runs(&node), Err(ReadError::Damaged { .. })));
        }
    }
}
