//! Reads a tar archive as a stream, in one pass, from a source that is not trusted.
//!
//! Understood: POSIX ustar and pax (long names, large numbers, `SCHILY.xattr` attributes, the three
//! `GNU.sparse` forms), GNU tar (long names, base-256 numbers, sparse files) and old V7 headers.
//! Every number, name and header that an archive can make large has a limit, so memory stays
//! bounded; whatever is not understood is an error that names the entry, never a guess.

mod error;
mod header;
mod pax;
mod source;
mod window;
mod writer;

use std::io::{self, Read};

pub use error::TarError;
use pax::Extended;
pub(crate) use pax::MOST_PIECES;
pub use source::{Compression, Source, SourceDigests};
pub(crate) use source::{Hashing, hexadecimal};
pub(crate) use writer::{ArchiveWriter, WrittenKind};

use crate::ext4::{Metadata, Timestamp};
use header::{Header, RECORD};
use window::Window;

/// Most bytes of a path or link target; the kernel's `PATH_MAX`.
const LONGEST_PATH: u64 = 4096;
/// Most bytes of one extended header, which holds attributes of up to 64 KiB each.
const LONGEST_EXTENDED: u64 = 1 << 20;
/// Most bytes of all headers before one entry: what describes the next entry is kept until it comes.
const LONGEST_HEADERS: u64 = 4 << 20;
const BUFFER: usize = 256 << 10;

/// What an entry is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EntryKind {
    /// A regular file; its content follows.
    File,
    /// A directory.
    Directory,
    /// A symbolic link to these bytes.
    SymbolicLink(Vec<u8>),
    /// Another name for the entry with this path.
    HardLink(Vec<u8>),
    /// A character device with major and minor number.
    CharacterDevice(u32, u32),
    /// A block device with major and minor number.
    BlockDevice(u32, u32),
    /// A named pipe.
    Fifo,
}

/// One entry of an archive.
#[derive(Clone, Debug)]
pub struct Entry {
    /// The path relative to the archive's root, without `.`, `..` or a leading slash; empty for
    /// the root itself.
    pub path: Vec<u8>,
    /// What it is.
    pub kind: EntryKind,
    /// Mode, owner, time and attributes.
    pub metadata: Metadata,
    /// Bytes of content, holes included.
    pub size: u64,
    /// Attributes in a form that is not understood.
    pub ignored_attributes: u64,
}

impl Entry {
    /// The path as it may be shown.
    #[must_use]
    pub fn shown(&self) -> String {
        shown(&self.path)
    }
}

/// A piece of a file's content.
#[derive(Debug)]
pub enum Piece<'a> {
    /// Bytes.
    Data(&'a [u8]),
    /// This many zeros, not stored.
    Hole(u64),
}

/// An archive being read.
#[derive(Debug)]
pub struct Archive<R> {
    reader: Window<R>,
    /// Uncompressed bytes read so far.
    position: u64,
    /// Bytes of the current entry's content still in the stream, and the padding behind them.
    stored: u64,
    padding: u64,
    /// The current entry's stored pieces that are not read yet, the next one last; none is empty.
    pieces: Vec<(u64, u64)>,
    /// Bytes of the current entry's content given out so far, and in all.
    given: u64,
    size: u64,
    global: Extended,
    shown: String,
    /// The headers of the current entry as they stand in the archive.
    raw: Vec<u8>,
}

impl<R: Read> Archive<R> {
    /// Reads an uncompressed archive.
    pub fn new(reader: R) -> Self {
        Self {
            reader: Window::new(reader, BUFFER),
            position: 0,
            stored: 0,
            padding: 0,
            pieces: Vec::new(),
            given: 0,
            size: 0,
            global: Extended::default(),
            shown: String::new(),
            raw: Vec::new(),
        }
    }

    /// Uncompressed bytes read so far.
    #[must_use]
    pub fn position(&self) -> u64 {
        self.position
    }

    /// The headers of the current entry as they stand in the archive; with its stored content and
    /// padding they are an archive of that one entry.
    #[must_use]
    pub fn raw_headers(&self) -> &[u8] {
        &self.raw
    }

    /// Goes to the next entry; `None` at the end-of-archive marker.
    ///
    /// # Errors
    /// A malformed, truncated or unreadable archive.
    pub fn next_entry(&mut self) -> Result<Option<Entry>, TarError> {
        self.skip_content()?;
        self.raw.clear();
        let mut extended = self.global.clone();
        let mut long_path = None;
        let mut long_link = None;
        loop {
            let start = self.position;
            let headers = self.raw.len() as u64;
            if headers > LONGEST_HEADERS {
                let (what, limit) = ("run of headers", LONGEST_HEADERS);
                return Err(TarError::TooLong { what, position: start, size: headers, limit });
            }
            let Some(header) = self.header()? else {
                return Ok(None);
            };
            let size = |header: &Header| {
                header
                    .size()
                    .map_err(|bad| TarError::Field { entry: shown(&header.path()), field: bad.0 })
            };
            match header.type_flag() {
                b'L' => {
                    let text = self.text(size(&header)?, LONGEST_PATH, "path", start)?;
                    long_path = Some(header::until_nul(&text).to_vec());
                }
                b'K' => {
                    let text = self.text(size(&header)?, LONGEST_PATH, "link target", start)?;
                    long_link = Some(header::until_nul(&text).to_vec());
                }
                flag @ (b'x' | b'X' | b'g') => {
                    let size = size(&header)?;
                    let text = self.text(size, LONGEST_EXTENDED, "extended header", start)?;
                    let into = if flag == b'g' { &mut self.global } else { &mut extended };
                    into.read(&text).map_err(|bad| TarError::Extended {
                        position: start,
                        record: bad.0.escape_debug().to_string(),
                    })?;
                    if flag == b'g' {
                        extended = self.global.clone();
                    }
                }
                // A volume's name.
                b'V' => {}
                _ => {
                    let entry = self.entry(&header, extended, long_path, long_link, start)?;
                    return Ok(Some(entry));
                }
            }
        }
    }

    /// Returns the next piece of the current entry's content; `None` at its end.
    ///
    /// # Errors
    /// A truncated or unreadable archive.
    pub fn next_piece(&mut self) -> Result<Option<Piece<'_>>, TarError> {
        let Some((offset, length)) = self.pieces.last().copied() else {
            let rest = self.size - self.given;
            self.given = self.size;
            return Ok((rest > 0).then_some(Piece::Hole(rest)));
        };
        if offset > self.given {
            let hole = offset - self.given;
            self.given = offset;
            return Ok(Some(Piece::Hole(hole)));
        }
        let available = self.fill()?;
        if available == 0 {
            return Err(self.truncated());
        }
        let take = usize::try_from(length).unwrap_or(usize::MAX).min(available);
        let taken = take as u64;
        if taken == length {
            self.pieces.pop();
        } else if let Some(piece) = self.pieces.last_mut() {
            *piece = (offset + taken, length - taken);
        }
        self.given += taken;
        self.stored -= taken;
        self.position += taken;
        Ok(Some(Piece::Data(self.reader.take(take))))
    }

    /// Reads what follows the end-of-archive marker, so that the writer at the other end of a pipe
    /// is not cut off and a compressed stream's own checksum is seen.
    ///
    /// # Errors
    /// An unreadable source, or more than `limit` bytes.
    pub fn drain(&mut self, limit: u64) -> Result<(), TarError> {
        let mut rest = 0;
        loop {
            let available = self.fill()?;
            if available == 0 {
                return Ok(());
            }
            rest += available as u64;
            if rest > limit {
                let (what, position) = ("padding behind the archive", self.position);
                return Err(TarError::TooLong { what, position, size: rest, limit });
            }
            self.reader.take(available);
            self.position += available as u64;
        }
    }

    /// The source, some of which is read ahead.
    pub fn source(&self) -> &R {
        self.reader.source()
    }

    /// Gives back the source.
    pub fn into_inner(self) -> R {
        self.reader.into_inner()
    }

    fn entry(
        &mut self,
        header: &Header,
        extended: Extended,
        long_path: Option<Vec<u8>>,
        long_link: Option<Vec<u8>>,
        start: u64,
    ) -> Result<Entry, TarError> {
        let sparse = extended.sparse;
        let path = sparse.name.or(extended.path).or(long_path).unwrap_or_else(|| header.path());
        self.shown = shown(&path);
        let bad = |field: header::BadField| TarError::Field { entry: shown(&path), field: field.0 };
        let link = extended.link.or(long_link).unwrap_or_else(|| header.link());
        for (what, text) in [("path", &path), ("link target", &link)] {
            if text.len() as u64 > LONGEST_PATH {
                let size = text.len() as u64;
                return Err(TarError::TooLong { what, position: start, size, limit: LONGEST_PATH });
            }
        }
        let names = names(&path).ok_or_else(|| TarError::Traversal { entry: shown(&path) })?;
        let kind = match header.type_flag() {
            b'0' | 0 if path.ends_with(b"/") => EntryKind::Directory,
            b'0' | 0 | b'7' | b'S' => EntryKind::File,
            b'1' => EntryKind::HardLink(
                self::names(&link).ok_or_else(|| TarError::Traversal { entry: shown(&path) })?,
            ),
            b'2' => EntryKind::SymbolicLink(link),
            b'3' => {
                let (major, minor) = header.device().map_err(bad)?;
                EntryKind::CharacterDevice(major, minor)
            }
            b'4' => {
                let (major, minor) = header.device().map_err(bad)?;
                EntryKind::BlockDevice(major, minor)
            }
            b'5' => EntryKind::Directory,
            b'6' => EntryKind::Fifo,
            other => {
                return Err(TarError::Type { entry: shown(&path), type_flag: other.into() });
            }
        };
        let metadata = Metadata {
            permissions: header.mode().map_err(bad)?,
            owner: extended.owner.map_or_else(|| header.owner(), Ok).map_err(bad)?,
            group: extended.group.map_or_else(|| header.group(), Ok).map_err(bad)?,
            modified: match extended.modified {
                Some(time) => time,
                None => Timestamp::new(header.modified().map_err(bad)?, 0),
            },
            attributes: extended.attributes,
        };
        self.given = 0;
        self.size = 0;
        self.pieces.clear();
        if kind == EntryKind::File {
            self.stored = extended.size.map_or_else(|| header.size(), Ok).map_err(bad)?;
            self.padding = self.stored.wrapping_neg() % RECORD as u64;
            let map = if header.type_flag() == b'S' {
                let (map, real) = self.gnu_map(header)?;
                Some((map, real))
            } else if sparse.major == Some(1) {
                Some((self.stored_map()?, sparse.real_size.unwrap_or(0)))
            } else {
                sparse.map.map(|map| (map, sparse.real_size.unwrap_or(0)))
            };
            match map {
                Some((map, real)) => self.set_sparse(map, real)?,
                None => {
                    self.size = self.stored;
                    self.pieces.extend((self.stored > 0).then_some((0, self.stored)));
                }
            }
        }
        Ok(Entry {
            path: names,
            kind,
            metadata,
            size: self.size,
            ignored_attributes: extended.ignored_attributes,
        })
    }

    /// The map of GNU's own sparse type: four pieces in the header, 21 in each record behind it.
    fn gnu_map(&mut self, header: &Header) -> Result<(Vec<(u64, u64)>, u64), TarError> {
        let malformed = |shown: &str| TarError::SparseMap { entry: shown.to_owned() };
        let unsigned =
            |field: &[u8]| header::number(field).and_then(|value| u64::try_from(value).ok());
        let real = unsigned(&header.bytes[483..495]).ok_or_else(|| malformed(&self.shown))?;
        let mut map = Vec::new();
        let mut more = header.bytes[482] != 0;
        let mut table = header.bytes[386..482].to_vec();
        loop {
            for slot in table.chunks_exact(24) {
                if slot[0] == 0 {
                    break;
                }
                let piece = unsigned(&slot[..12]).zip(unsigned(&slot[12..]));
                map.push(piece.ok_or_else(|| malformed(&self.shown))?);
            }
            if !more {
                return Ok((map, real));
            }
            if map.len() > MOST_PIECES {
                return Err(malformed(&self.shown));
            }
            let record = self.record()?.ok_or_else(|| self.truncated())?;
            self.raw.extend_from_slice(&record);
            more = record[504] != 0;
            table = record[..504].to_vec();
        }
    }

    /// The map of pax sparse form 1.0: decimal lines before the content, padded to a record.
    fn stored_map(&mut self) -> Result<Vec<(u64, u64)>, TarError> {
        let malformed = |shown: &str| TarError::SparseMap { entry: shown.to_owned() };
        let mut line = Vec::new();
        let mut numbers: Vec<u64> = Vec::new();
        let mut count = None;
        loop {
            if self.stored < RECORD as u64 {
                return Err(malformed(&self.shown));
            }
            let record = self.record()?.ok_or_else(|| self.truncated())?;
            self.stored -= RECORD as u64;
            self.raw.extend_from_slice(&record);
            for &byte in &record {
                if byte != b'\n' {
                    line.push(byte);
                    if line.len() > 20 {
                        return Err(malformed(&self.shown));
                    }
                    continue;
                }
                let value = pax::decimal(&line).ok_or_else(|| malformed(&self.shown))?;
                line.clear();
                match count {
                    None if value > MOST_PIECES as u64 => return Err(malformed(&self.shown)),
                    None => count = Some(value * 2),
                    Some(_) => numbers.push(value),
                }
                if count == Some(numbers.len() as u64) {
                    let pairs = numbers.chunks_exact(2).map(|pair| (pair[0], pair[1]));
                    return Ok(pairs.collect());
                }
            }
        }
    }

    fn set_sparse(&mut self, mut map: Vec<(u64, u64)>, real: u64) -> Result<(), TarError> {
        let mut end = 0_u64;
        let mut sum = 0_u64;
        for &(offset, length) in &map {
            let next = offset.checked_add(length).filter(|&next| offset >= end && next <= real);
            end = next.ok_or_else(|| TarError::SparseMap { entry: self.shown.clone() })?;
            sum += length;
        }
        if sum != self.stored {
            return Err(TarError::SparseMap { entry: self.shown.clone() });
        }
        map.retain(|&(_, length)| length > 0);
        map.reverse();
        self.pieces = map;
        self.size = real;
        Ok(())
    }

    /// Steps over what is left of the current entry's content and its padding.
    fn skip_content(&mut self) -> Result<(), TarError> {
        let mut rest = self.stored.saturating_add(self.padding);
        while rest > 0 {
            let available = self.fill()?;
            if available == 0 {
                return Err(self.truncated());
            }
            let take = usize::try_from(rest).unwrap_or(usize::MAX).min(available);
            self.reader.take(take);
            self.position += take as u64;
            rest -= take as u64;
        }
        self.stored = 0;
        self.padding = 0;
        self.pieces.clear();
        Ok(())
    }

    /// Reads a header; `None` at the two empty records that end an archive.
    fn header(&mut self) -> Result<Option<Header>, TarError> {
        let position = self.position;
        self.shown = "a header".into();
        let Some(bytes) = self.record()? else {
            if position == 0 {
                return Err(TarError::Empty);
            }
            let inside = "the file list: its end marker is missing".into();
            return Err(TarError::Truncated { position, inside });
        };
        if bytes == [0; RECORD] {
            // A second one follows; GNU tar accepts an archive that ends here, and so do we.
            return match self.record()? {
                None => Ok(None),
                Some(second) if second == [0; RECORD] => Ok(None),
                Some(_) => Err(TarError::NotAHeader { position: position + RECORD as u64 }),
            };
        }
        self.raw.extend_from_slice(&bytes);
        Header::parse(bytes).ok_or(TarError::NotAHeader { position }).map(Some)
    }

    /// Reads the content of a header that describes another one.
    fn text(
        &mut self,
        size: u64,
        limit: u64,
        what: &'static str,
        position: u64,
    ) -> Result<Vec<u8>, TarError> {
        if size > limit {
            return Err(TarError::TooLong { what, position, size, limit });
        }
        let size = usize::try_from(size).unwrap_or(usize::MAX);
        let mut text = Vec::new();
        while text.len() < size {
            let record = self.record()?.ok_or_else(|| TarError::Truncated {
                position: self.position,
                inside: format!("the {what} at byte {position}"),
            })?;
            self.raw.extend_from_slice(&record);
            text.extend_from_slice(&record);
        }
        text.truncate(size);
        Ok(text)
    }

    /// Reads one record; `None` where the archive ends before it.
    fn record(&mut self) -> Result<Option<[u8; RECORD]>, TarError> {
        let mut record = [0_u8; RECORD];
        let mut filled = 0;
        while filled < RECORD {
            let available = self.fill()?;
            if available == 0 {
                return if filled == 0 { Ok(None) } else { Err(self.truncated()) };
            }
            let take = available.min(RECORD - filled);
            record[filled..filled + take].copy_from_slice(self.reader.take(take));
            self.position += take as u64;
            filled += take;
        }
        Ok(Some(record))
    }

    /// Makes bytes available and returns how many; 0 at the end.
    fn fill(&mut self) -> Result<usize, TarError> {
        self.reader.fill().map_err(|source| match source.kind() {
            io::ErrorKind::UnexpectedEof => TarError::Truncated {
                position: self.position,
                inside: "the compressed stream".into(),
            },
            _ => TarError::Read { position: self.position, source },
        })
    }

    fn truncated(&self) -> TarError {
        TarError::Truncated { position: self.position, inside: self.shown.clone() }
    }
}

/// Splits a path into its names and joins them again without empty ones and `.`; `None` for `..`.
fn names(path: &[u8]) -> Option<Vec<u8>> {
    let mut clean = Vec::with_capacity(path.len());
    for name in path.split(|&byte| byte == b'/') {
        match name {
            b"" | b"." => {}
            b".." => return None,
            _ => {
                if !clean.is_empty() {
                    clean.push(b'/');
                }
                clean.extend_from_slice(name);
            }
        }
    }
    Some(clean)
}

/// A path as it may be shown: no control character survives, and it is cut at 200 bytes.
pub(crate) fn shown(path: &[u8]) -> String {
    let text = String::from_utf8_lossy(&path[..path.len().min(200)]);
    let dots = if path.len() > 200 { "..." } else { "" };
    format!("\"{}{dots}\"", text.escape_debug())
}
