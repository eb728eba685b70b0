//! Builds an image from its layers.

use std::io::Read;

use banger_types::Digest;
use uuid::Uuid;

use super::whiteout::{Meaning, meaning};
use super::{Layer, LayerRecord};
use crate::builder::{BuildError, BuildOptions, BuildPaths, BuiltImage, check, create};
use crate::ext4::{self, Ext4Error, FileContent, Kind, Writer};
use crate::progress::{CancelFlag, Progress};
use crate::tarball::{Archive, Entry, EntryKind, Piece, Source, SourceDigests, TarError, shown};

/// Builds the image at `paths.image` from `layers`, the oldest first.
///
/// On an error the files may be left incomplete: the caller owns the directory and removes it.
///
/// # Errors
/// A layer that cannot be had, is no archive or is not what its digests say; a full disk, a failed
/// check, or a cancelled build.
pub fn build_layers(
    layers: &[Layer],
    paths: BuildPaths<'_>,
    options: &BuildOptions,
    progress: &dyn Progress,
    cancel: &CancelFlag,
) -> Result<(BuiltImage, Vec<LayerRecord>), BuildError> {
    let failed = |source| BuildError::FileSystem { path: paths.image.to_owned(), source };
    let file = create(paths.image)?;
    let uuid = Uuid::new_v4();
    let ext4_options = ext4::Options {
        size: options.size,
        grow_with_free: Some(options.free),
        uuid,
        label: options.label.clone(),
        journal: true,
    };
    let writer = Writer::new(file, ext4_options).map_err(failed)?;
    let mut build =
        Build { writer, options, progress, cancel, entries: 0, content: 0, bytes_before: 0 };
    progress.stage("writing files");
    let mut records = Vec::with_capacity(layers.len());
    for (index, layer) in layers.iter().enumerate() {
        let record = build.layer(layer).map_err(|error| error.in_layer(index, layer))?;
        build.bytes_before += record.size;
        records.push(record);
    }
    let Build { writer, entries, .. } = build;
    let executable = |paths: &[&str]| paths.iter().any(|path| is_executable(&writer, path));
    let has_init =
        executable(&["sbin/init", "usr/lib/systemd/systemd", "lib/systemd/systemd", "etc/init"]);
    let has_shell = executable(&["bin/sh", "usr/bin/sh"]);
    let ignored_attributes = writer.ignored_attributes();
    progress.stage("writing the file system's tables");
    let finished = writer.finish().map_err(failed)?;
    cancel.check()?;
    progress.stage("checking the file system");
    check(paths.image, cancel)?;
    let file_failed =
        |source| BuildError::File { action: "sync", path: paths.image.to_owned(), source };
    finished.file.sync_all().map_err(file_failed)?;
    let metadata = finished.file.metadata().map_err(file_failed)?;
    let hex = super::chain_id(&records).map(|digest| digest.hex().to_owned()).unwrap_or_default();
    let built = BuiltImage {
        uuid,
        size: finished.size,
        allocated: std::os::unix::fs::MetadataExt::blocks(&metadata) * 512,
        entries,
        digests: SourceDigests {
            compressed: hex.clone(),
            uncompressed: hex,
            bytes: records.iter().map(|record| record.size).sum(),
        },
        os_release: None,
        has_init,
        has_shell,
        ignored_attributes,
        has_work_seed: false,
    };
    Ok((built, records))
}

fn is_executable(writer: &Writer, path: &str) -> bool {
    let found = writer.lookup(path.as_bytes(), true);
    matches!(found, Ok(Some(found)) if found.mode & 0o170_000 == 0o100_000 && found.mode & 0o111 != 0)
}

struct Build<'a> {
    writer: Writer,
    options: &'a BuildOptions,
    progress: &'a dyn Progress,
    cancel: &'a CancelFlag,
    entries: u64,
    content: u64,
    bytes_before: u64,
}

impl Build<'_> {
    fn layer(&mut self, layer: &Layer) -> Result<LayerRecord, BuildError> {
        self.writer
            .begin_layer()
            .map_err(|source| BuildError::Entry { entry: "the first".into(), source })?;
        let open = |source| BuildError::Open { source };
        let reader = layer.source.open().map_err(open)?;
        let source = Source::new(reader).map_err(open)?;
        let mut archive = Archive::new(source);
        while let Some(entry) = archive.next_entry().or_else(no_entries)? {
            self.cancel.check()?;
            self.entries += 1;
            if self.entries > self.options.limits.entries {
                let limit = self.options.limits.entries;
                return Err(BuildError::Limit { what: "entries", limit });
            }
            self.entry(&mut archive, &entry)?;
            let done = self.bytes_before + archive.source().bytes_in();
            self.progress.bytes(done, self.options.input_size);
        }
        archive.drain(self.options.limits.padding)?;
        let digests = archive.into_inner().finish();
        verify(layer, &digests)
    }

    fn entry<R: Read>(
        &mut self,
        archive: &mut Archive<R>,
        entry: &Entry,
    ) -> Result<(), BuildError> {
        let at = |source: Ext4Error| BuildError::Entry { entry: shown(&entry.path), source };
        match meaning(&entry.path) {
            Meaning::Entry => {}
            Meaning::Nothing => return Ok(()),
            Meaning::Whiteout { directory, name } => {
                return self.writer.white_out(directory, name).map_err(at);
            }
            Meaning::Opaque { directory } => {
                return self.writer.white_out_below(directory).map_err(at);
            }
            Meaning::Bad => return Err(BuildError::Whiteout { entry: shown(&entry.path) }),
        }
        let metadata = &entry.metadata;
        let result = match &entry.kind {
            EntryKind::File => {
                let content = self.content(archive, entry)?;
                self.writer.add_file(&entry.path, content, metadata)
            }
            EntryKind::HardLink(target) => self.writer.add_hard_link(&entry.path, target),
            EntryKind::Directory => self.writer.add(&entry.path, &Kind::Directory, metadata),
            EntryKind::SymbolicLink(target) => {
                self.writer.add(&entry.path, &Kind::SymbolicLink(target.clone()), metadata)
            }
            &EntryKind::CharacterDevice(major, minor) => {
                self.writer.add(&entry.path, &Kind::CharacterDevice(major, minor), metadata)
            }
            &EntryKind::BlockDevice(major, minor) => {
                self.writer.add(&entry.path, &Kind::BlockDevice(major, minor), metadata)
            }
            EntryKind::Fifo => self.writer.add(&entry.path, &Kind::Fifo, metadata),
        };
        result.map(drop).map_err(at)
    }

    fn content<R: Read>(
        &mut self,
        archive: &mut Archive<R>,
        entry: &Entry,
    ) -> Result<FileContent, BuildError> {
        let mut content = FileContent::new();
        loop {
            self.cancel.check()?;
            let result = match archive.next_piece()? {
                None => return Ok(content),
                Some(Piece::Hole(length)) => self.writer.append_hole(&mut content, length),
                Some(Piece::Data(data)) => {
                    self.content += data.len() as u64;
                    if self.content > self.options.limits.content {
                        let limit = self.options.limits.content;
                        return Err(BuildError::Limit { what: "bytes of content", limit });
                    }
                    self.writer.append(&mut content, data)
                }
            };
            result.map_err(|source| BuildError::Entry { entry: shown(&entry.path), source })?;
        }
    }
}

/// Takes a layer of no bytes as one of no entries.
fn no_entries(error: TarError) -> Result<Option<Entry>, TarError> {
    match error {
        TarError::Empty => Ok(None),
        error => Err(error),
    }
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
