//! The first part of a build: contents into the file system, entries into the records.

use std::io::{self, Read};

use banger_types::Digest;

use super::decode::{Decoded, decode};
use super::hidden::{Hidden, Hides};
use super::record::{Change, Records};
use super::whiteout::{Meaning, meaning};
use super::{Layer, LayerRecord};
use crate::builder::BuildError;
use crate::ext4::{Ext4Error, FileContent, Kind, SealedContent, Writer};
use crate::limits::Limits;
use crate::progress::{CancelFlag, Progress};
use crate::tarball::{Archive, Entry, EntryKind, Piece, SourceDigests, TarError, shown};

/// What the first part of a build works on.
pub(crate) struct Extraction<'a> {
    pub(crate) writer: Writer,
    pub(crate) records: Records,
    pub(crate) hidden: Hidden,
    /// Layers that come after the current one, which it can hide something of.
    pub(crate) older: usize,
    pub(crate) limits: Limits,
    pub(crate) total: Option<u64>,
    pub(crate) progress: &'a dyn Progress,
    pub(crate) cancel: &'a CancelFlag,
    pub(crate) entries: u64,
    pub(crate) content: u64,
    /// Bytes of the layers read before, as they came and uncompressed.
    pub(crate) bytes_in: u64,
    pub(crate) bytes_out: u64,
    pub(crate) ignored_attributes: u64,
}

/// The records of one layer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Span {
    pub(crate) start: u64,
    pub(crate) end: u64,
}

impl Extraction<'_> {
    /// Reads `layer` to its end; the newest comes first.
    pub(crate) fn layer(&mut self, layer: &Layer) -> Result<(LayerRecord, Span), BuildError> {
        let start = self.records.position();
        self.older = self.older.saturating_sub(1);
        let record = read_layer(layer, |archive| {
            let mut number = 0;
            while let Some(entry) = next_entry(archive)? {
                self.cancel.check()?;
                self.entries += 1;
                if self.entries > self.limits.entries {
                    let limit = self.limits.entries;
                    return Err(BuildError::Limit { what: "entries", limit });
                }
                self.ignored_attributes += entry.ignored_attributes;
                self.entry(archive, entry, number)?;
                self.report(archive)?;
                number += 1;
            }
            self.bytes_out += archive.position();
            archive.drain(self.limits.padding)?;
            Ok(())
        })?;
        self.bytes_in += record.size;
        self.hidden.next_layer();
        Ok((record, Span { start, end: self.records.position() }))
    }

    fn report(&self, archive: &Archive<Decoded>) -> Result<(), BuildError> {
        let bytes_in = self.bytes_in + archive.source().bytes_in();
        self.progress.bytes(bytes_in, self.total);
        self.limits.check_ratio(bytes_in, self.bytes_out + archive.position())
    }

    fn entry(
        &mut self,
        archive: &mut Archive<Decoded>,
        entry: Entry,
        number: u64,
    ) -> Result<(), BuildError> {
        let (path, change, hides) = match meaning(&entry.path) {
            Meaning::Nothing => return Ok(()),
            Meaning::Bad => return Err(BuildError::Whiteout { entry: shown(&entry.path) }),
            Meaning::Whiteout { directory, name } => {
                let gone = [directory, name].join(&b"/"[..]);
                let gone = gone.strip_prefix(b"/").unwrap_or(&gone);
                self.hide(gone, Hides::AndBelow);
                return self.write(directory, &Change::Whiteout(name.to_vec()));
            }
            Meaning::Opaque { directory } => {
                self.hide(directory, Hides::Below);
                return self.write(directory, &Change::Opaque);
            }
            Meaning::Entry if entry.kind == EntryKind::File => {
                let change = if self.hidden.contains(&entry.path) {
                    self.skip(archive)?;
                    Change::Skipped(entry.metadata, number)
                } else {
                    let content = self.content(archive, &entry)?;
                    Change::File(entry.metadata, content)
                };
                (entry.path, change, Hides::AndBelow)
            }
            Meaning::Entry => {
                let hides = match entry.kind {
                    EntryKind::Directory => Hides::Itself,
                    _ => Hides::AndBelow,
                };
                (entry.path, without_content(entry.kind, entry.metadata), hides)
            }
        };
        self.hide(&path, hides);
        self.write(&path, &change)
    }

    fn hide(&mut self, path: &[u8], hides: Hides) {
        if self.older > 0 {
            self.hidden.add(path, hides);
        }
    }

    fn write(&mut self, path: &[u8], change: &Change) -> Result<(), BuildError> {
        self.records.write(path, change).map_err(|source| BuildError::Records { source })
    }

    fn skip(&mut self, archive: &mut Archive<Decoded>) -> Result<(), BuildError> {
        loop {
            self.cancel.check()?;
            match archive.next_piece()? {
                None => return Ok(()),
                Some(Piece::Hole(_)) => {}
                Some(Piece::Data(data)) => {
                    count(&mut self.content, data.len() as u64, self.limits)?;
                }
            }
            self.report(archive)?;
        }
    }

    fn content(
        &mut self,
        archive: &mut Archive<Decoded>,
        entry: &Entry,
    ) -> Result<SealedContent, BuildError> {
        let mut content = FileContent::new();
        let at = |source| at(&entry.path, source);
        loop {
            self.cancel.check()?;
            match archive.next_piece()? {
                None => return self.writer.seal(content).map_err(at),
                Some(Piece::Hole(length)) => self.writer.append_hole(&mut content, length),
                Some(Piece::Data(data)) => {
                    count(&mut self.content, data.len() as u64, self.limits)?;
                    self.writer.append(&mut content, data)
                }
            }
            .map_err(at)?;
            self.report(archive)?;
        }
    }
}

/// Adds to the bytes of content so far.
fn count(content: &mut u64, bytes: u64, limits: Limits) -> Result<(), BuildError> {
    *content += bytes;
    if *content > limits.content {
        return Err(BuildError::Limit { what: "bytes of content", limit: limits.content });
    }
    Ok(())
}

/// Gives the files that `wanted` names, by the number of their entry in `layer`, their content.
pub(crate) fn read_again(
    layer: &Layer,
    writer: &mut Writer,
    cancel: &CancelFlag,
    mut wanted: impl FnMut(u64) -> Option<u32>,
) -> Result<(), BuildError> {
    read_layer(layer, |archive| {
        let mut number = 0;
        while let Some(entry) = next_entry(archive)? {
            cancel.check()?;
            if let Some(inode) = wanted(number) {
                let mut content = FileContent::new();
                while let Some(piece) = archive.next_piece()? {
                    cancel.check()?;
                    match piece {
                        Piece::Hole(length) => writer.append_hole(&mut content, length),
                        Piece::Data(data) => writer.append(&mut content, data),
                    }
                    .map_err(|source| at(&entry.path, source))?;
                }
                writer
                    .seal(content)
                    .and_then(|content| writer.fill(inode, &content))
                    .map_err(|source| at(&entry.path, source))?;
            }
            number += 1;
        }
        archive.drain(u64::MAX)?;
        Ok(())
    })
    .map(drop)
}

/// Opens `layer`, gives it to `read`, and checks what it turned out to be.
fn read_layer(
    layer: &Layer,
    read: impl FnOnce(&mut Archive<Decoded>) -> Result<(), BuildError>,
) -> Result<LayerRecord, BuildError> {
    let open = |source| BuildError::Open { source };
    let reader = layer.source.open().map_err(open)?;
    let digests = std::thread::scope(|scope| {
        let (decoded, decoder) = decode(scope, reader).map_err(open)?;
        let mut archive = Archive::new(decoded);
        let result = read(&mut archive);
        // Stops the decoder where it is not at its end.
        drop(archive);
        let digests = decoder.join();
        result?;
        digests.ok().flatten().ok_or_else(|| {
            open(io::Error::other("the decompression ended before the end of the layer"))
        })
    })?;
    verify(layer, &digests)
}

/// Goes to the next entry; a layer of no bytes has none.
fn next_entry(archive: &mut Archive<impl Read>) -> Result<Option<Entry>, BuildError> {
    match archive.next_entry() {
        Err(TarError::Empty) => Ok(None),
        other => Ok(other?),
    }
}

fn without_content(kind: EntryKind, metadata: crate::ext4::Metadata) -> Change {
    let kind = match kind {
        EntryKind::HardLink(target) => return Change::HardLink(target),
        EntryKind::SymbolicLink(target) => Kind::SymbolicLink(target),
        EntryKind::CharacterDevice(major, minor) => Kind::CharacterDevice(major, minor),
        EntryKind::BlockDevice(major, minor) => Kind::BlockDevice(major, minor),
        EntryKind::Fifo => Kind::Fifo,
        EntryKind::Directory | EntryKind::File => Kind::Directory,
    };
    Change::Other(metadata, kind)
}

pub(crate) fn at(path: &[u8], source: Ext4Error) -> BuildError {
    BuildError::Entry { entry: shown(path), source }
}

fn verify(layer: &Layer, digests: &SourceDigests) -> Result<LayerRecord, BuildError> {
    let parse = |hex: &str| {
        format!("sha256:{hex}")
            .parse::<Digest>()
            .unwrap_or_else(|_| unreachable!("SHA-256 has 64 hexadecimal digits"))
    };
    let found = LayerRecord {
        digest: parse(&digests.compressed),
        diff_id: parse(&digests.uncompressed),
        size: digests.bytes,
    };
    if let Some(size) = layer.size
        && size != found.size
    {
        return Err(BuildError::LayerSize { expected: size, found: found.size });
    }
    if let Some(digest) = &layer.digest
        && *digest != found.digest
    {
        let (expected, found) = (digest.clone(), found.digest);
        return Err(BuildError::LayerDigest { what: "compressed", expected, found });
    }
    if layer.diff_id != found.diff_id {
        let (expected, found) = (layer.diff_id.clone(), found.diff_id);
        return Err(BuildError::LayerDigest { what: "uncompressed", expected, found });
    }
    Ok(found)
}
