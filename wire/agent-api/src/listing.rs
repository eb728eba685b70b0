//! The listing of a directory tree: a record a name, packed, because a tree may have a million.
//!
//! ```text
//!   kind 1 byte | mode 4 | size 8 | modified 8 | changed 8 | inode 8 | length of the name 2 | name
//! ```
//! Numbers are little endian; times are nanoseconds since 1970 UTC. Names are relative to the
//! directory that was listed; its own record, the first, has an empty one. The listing of a guest is
//! hostile input: [`ListingDecoder`] takes no name that is absolute or climbs, and none over
//! [`LISTED_NAME_LIMIT`].

/// Longest name in a listing, in bytes (`PATH_MAX`).
pub const LISTED_NAME_LIMIT: usize = 4096;

/// The part of a tar entry's type that has [`crate::Call::PutTree`] remove what has the entry's
/// name: a file, a link or an empty directory; what is not there, or not empty, stays as it is.
/// POSIX leaves the letters `A` to `Z` to those who agree on them (pax(1), ustar typeflag).
pub const TAR_REMOVAL: u8 = b'R';

const FIXED: usize = 1 + 4 + 8 * 4 + 2;

/// What a name is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ListedKind {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link.
    Link,
    /// A device, fifo or socket.
    Other,
}

/// One name of a tree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// What it is.
    pub kind: ListedKind,
    /// Permission bits.
    pub mode: u32,
    /// Bytes of a file.
    pub size: u64,
    /// When its content changed last.
    pub modified_nanos: i64,
    /// When it or its content changed last; the guest's kernel sets it.
    pub changed_nanos: i64,
    /// Its inode's number.
    pub inode: u64,
    /// Its name, relative to the directory that was listed.
    pub name: Vec<u8>,
}

/// Why a listing cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ListingError {
    /// A kind that is none.
    #[error("byte {0} is no kind of file")]
    Kind(u8),
    /// A name that leads elsewhere.
    #[error("the name {0:?} leaves the tree")]
    Name(String),
    /// A name over the limit.
    #[error("a name is {0} bytes long")]
    LongName(usize),
    /// The end comes inside a record.
    #[error("the listing ends inside a record")]
    Truncated,
}

impl Listed {
    /// Appends the record.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.push(match self.kind {
            ListedKind::File => b'f',
            ListedKind::Directory => b'd',
            ListedKind::Link => b'l',
            ListedKind::Other => b'o',
        });
        out.extend_from_slice(&self.mode.to_le_bytes());
        out.extend_from_slice(&self.size.to_le_bytes());
        out.extend_from_slice(&self.modified_nanos.to_le_bytes());
        out.extend_from_slice(&self.changed_nanos.to_le_bytes());
        out.extend_from_slice(&self.inode.to_le_bytes());
        // A path that a kernel takes is shorter than 64 KiB.
        let length = u16::try_from(self.name.len()).unwrap_or(u16::MAX);
        out.extend_from_slice(&length.to_le_bytes());
        out.extend_from_slice(&self.name[..usize::from(length)]);
    }
}

/// Reads records out of bytes that come in pieces.
#[derive(Debug, Default)]
pub struct ListingDecoder {
    buffer: Vec<u8>,
    start: usize,
}

impl ListingDecoder {
    /// Adds bytes.
    pub fn push(&mut self, bytes: &[u8]) {
        self.buffer.drain(..self.start);
        self.start = 0;
        self.buffer.extend_from_slice(bytes);
    }

    /// Returns the next record, or `None` until more bytes are there.
    pub fn next_record(&mut self) -> Result<Option<Listed>, ListingError> {
        let rest = &self.buffer[self.start..];
        let Some((fixed, rest)) = rest.split_at_checked(FIXED) else { return Ok(None) };
        let number = |at: usize| {
            let mut bytes = [0; 8];
            bytes.copy_from_slice(&fixed[at..at + 8]);
            bytes
        };
        let kind = match fixed[0] {
            b'f' => ListedKind::File,
            b'd' => ListedKind::Directory,
            b'l' => ListedKind::Link,
            b'o' => ListedKind::Other,
            other => return Err(ListingError::Kind(other)),
        };
        let length = usize::from(u16::from_le_bytes([fixed[FIXED - 2], fixed[FIXED - 1]]));
        if length > LISTED_NAME_LIMIT {
            return Err(ListingError::LongName(length));
        }
        let Some(name) = rest.get(..length) else { return Ok(None) };
        let is_plain = name.is_empty()
            || name.split(|&byte| byte == b'/').all(|part| !matches!(part, b"" | b"." | b".."));
        if !is_plain || name.contains(&0) {
            let text = crate::printable_excerpt(&String::from_utf8_lossy(name), 200);
            return Err(ListingError::Name(text));
        }
        let listed = Listed {
            kind,
            mode: u32::from_le_bytes([fixed[1], fixed[2], fixed[3], fixed[4]]),
            size: u64::from_le_bytes(number(5)),
            modified_nanos: i64::from_le_bytes(number(13)),
            changed_nanos: i64::from_le_bytes(number(21)),
            inode: u64::from_le_bytes(number(29)),
            name: name.to_vec(),
        };
        self.start += FIXED + length;
        Ok(Some(listed))
    }

    /// Checks that nothing is left over.
    pub fn finish(self) -> Result<(), ListingError> {
        if self.start == self.buffer.len() { Ok(()) } else { Err(ListingError::Truncated) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listed(name: &[u8]) -> Listed {
        Listed {
            kind: ListedKind::File,
            mode: 0o4755,
            size: u64::MAX,
            modified_nanos: -1,
            changed_nanos: i64::MAX,
            inode: 77,
            name: name.to_vec(),
        }
    }

    #[test]
    fn records_round_trip_in_pieces_of_any_size() {
        let all = [listed(b""), listed(b"a/\xff\n b"), listed(&[b'x'; LISTED_NAME_LIMIT])];
        let mut bytes = Vec::new();
        all.iter().for_each(|one| one.encode(&mut bytes));
        for size in [1, 7, 4096, bytes.len()] {
            let mut decoder = ListingDecoder::default();
            let mut found = Vec::new();
            for piece in bytes.chunks(size) {
                decoder.push(piece);
                while let Some(one) = decoder.next_record().unwrap() {
                    found.push(one);
                }
            }
            assert_eq!(found, all, "{size}");
            decoder.finish().unwrap();
        }
    }

    #[test]
    fn names_that_leave_the_tree_are_refused() {
        for bad in ["/etc/passwd", "..", "a/../b", "a//b", "a/", "./a", ".", "a\0b"] {
            let mut bytes = Vec::new();
            listed(bad.as_bytes()).encode(&mut bytes);
            let mut decoder = ListingDecoder::default();
            decoder.push(&bytes);
            assert!(matches!(decoder.next_record(), Err(ListingError::Name(_))), "{bad:?}");
        }
        let mut decoder = ListingDecoder::default();
        decoder.push(&[b'?'; FIXED]);
        assert_eq!(decoder.next_record(), Err(ListingError::Kind(b'?')));
        let mut long = Vec::new();
        listed(&[b'x'; LISTED_NAME_LIMIT + 1]).encode(&mut long);
        let mut decoder = ListingDecoder::default();
        decoder.push(&long);
        assert_eq!(decoder.next_record(), Err(ListingError::LongName(LISTED_NAME_LIMIT + 1)));
    }

    #[test]
    fn an_end_inside_a_record_is_seen() {
        let mut bytes = Vec::new();
        listed(b"name").encode(&mut bytes);
        let mut decoder = ListingDecoder::default();
        decoder.push(&bytes[..bytes.len() - 1]);
        assert_eq!(decoder.next_record(), Ok(None));
        assert_eq!(decoder.finish(), Err(ListingError::Truncated));
    }
}
