//! Why an archive is refused.

use std::io;

/// Why an archive was refused.
#[derive(Debug, thiserror::Error)]
pub enum TarError {
    /// The source failed, or its compression is damaged.
    #[error("read the archive at byte {position}")]
    Read {
        /// Where in the uncompressed archive.
        position: u64,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// Not one byte.
    #[error("the archive is empty: it has no bytes at all")]
    Empty,
    /// The archive ends in the middle.
    #[error("the archive ends at byte {position}, in the middle of {inside}")]
    Truncated {
        /// Where in the uncompressed archive.
        position: u64,
        /// What was being read.
        inside: String,
    },
    /// Bytes that should be a header are none.
    #[error("no tar header at byte {position}: it is not a tar archive, or it is damaged")]
    NotAHeader {
        /// Where in the uncompressed archive.
        position: u64,
    },
    /// A header's field is not a number or is out of range.
    #[error("entry {entry}: the field {field} is malformed")]
    Field {
        /// The entry's name.
        entry: String,
        /// The field.
        field: &'static str,
    },
    /// An extended header that is malformed.
    #[error("the extended header at byte {position} is malformed: {record}")]
    Extended {
        /// Where in the uncompressed archive.
        position: u64,
        /// The record's keyword.
        record: String,
    },
    /// A name or an extended header over the limit.
    #[error("the {what} at byte {position} has {size} bytes, more than {limit}")]
    TooLong {
        /// `path`, `link target` or `extended header`.
        what: &'static str,
        /// Where in the uncompressed archive.
        position: u64,
        /// Its size in bytes.
        size: u64,
        /// The most allowed.
        limit: u64,
    },
    /// A path with `..`.
    #[error("entry {entry}: its path climbs out of the archive with `..`")]
    Traversal {
        /// The entry's name.
        entry: String,
    },
    /// A type that has no place in a file system image.
    #[error("entry {entry}: its type {type_flag:?} is none that a file system has")]
    Type {
        /// The entry's name.
        entry: String,
        /// The type byte.
        type_flag: char,
    },
    /// A sparse file's map that contradicts itself or the entry's size.
    #[error("entry {entry}: its sparse map does not fit its size")]
    SparseMap {
        /// The entry's name.
        entry: String,
    },
}
