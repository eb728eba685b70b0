//! Bundles: a finished file system and a manifest, as one compressed tar.

use std::fs::File;
use std::io::{self, BufWriter, Read, Write};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

use banger_types::{ImageConfig, KernelName};
use rustix::fs::SeekFrom;
use serde::{Deserialize, Serialize};

use super::documents::LARGEST_DOCUMENT;
use super::error::ContainerError;
use crate::builder::{BuildError, BuildOptions, BuildPaths, BuiltImage, check, create};
use crate::contents::{self, ContentsError};
use crate::ext4::Metadata;
use crate::ext4::reader::ReadError;
use crate::images::{ImageManifest, ImageStoreError, NewImage};
use crate::progress::{CancelFlag, Cancelled, Progress};
use crate::tarball::{
    Archive, ArchiveWriter, EntryKind, Piece, Source, SourceDigests, TarError, WrittenKind,
};

const ROOT: &[u8] = b"rootfs.ext4";
const MANIFEST: &[u8] = b"manifest.json";
/// Zeros of this length become holes.
const HOLE: usize = 64 << 10;

/// `manifest.json` of a bundle; other fields are passed over.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BundleManifest {
    /// What the image was called.
    #[serde(default)]
    pub name: Option<String>,
    /// How it wants to be run.
    #[serde(default)]
    pub config: Option<ImageConfig>,
    /// The kernel that its machines booted.
    #[serde(default)]
    pub kernel: Option<KernelName>,
}

/// Takes the file system and the manifest out of a bundle.
pub(crate) fn build_bundle(
    input: impl Read,
    new: &NewImage,
    paths: BuildPaths<'_>,
    options: &BuildOptions,
    progress: &dyn Progress,
    cancel: &CancelFlag,
) -> Result<(BuiltImage, BundleManifest), ImageStoreError> {
    let container =
        |source| ImageStoreError::Container { name: new.name.clone(), source: Box::new(source) };
    let (digests, manifest) =
        take(input, paths.image, options, progress, cancel).map_err(container)?;
    progress.stage("checking the file system");
    let built = inspect(paths, digests, cancel)
        .map_err(|source| ImageStoreError::Build { name: new.name.clone(), source })?;
    Ok((built, manifest))
}

/// Checks a finished file system and looks into it; makes the work seed where one is wanted.
pub(crate) fn inspect(
    paths: BuildPaths<'_>,
    digests: SourceDigests,
    cancel: &CancelFlag,
) -> Result<BuiltImage, BuildError> {
    let read_back = |source: ReadError| BuildError::ReadBack {
        path: paths.image.to_owned(),
        source: ContentsError::Read(source),
    };
    let reader = contents::open(paths.image).map_err(read_back)?;
    if reader.summary().needs_recovery {
        return Err(read_back(ReadError::Unsupported("was not unmounted: its journal is in use")));
    }
    check(paths.image, cancel)?;
    let (facts, has_work_seed) = crate::layers::read_back(paths, cancel)?;
    let failed =
        |source| BuildError::File { action: "look at", path: paths.image.to_owned(), source };
    let file = File::open(paths.image).map_err(failed)?;
    file.sync_all().map_err(failed)?;
    let metadata = file.metadata().map_err(failed)?;
    let summary = reader.summary();
    Ok(BuiltImage {
        uuid: summary.uuid,
        size: metadata.len(),
        allocated: metadata.blocks() * 512,
        entries: summary.inodes,
        digests,
        os_release: facts.os_release,
        has_init: facts.has_init,
        has_shell: facts.has_shell,
        ignored_attributes: 0,
        has_work_seed,
    })
}

fn take(
    input: impl Read,
    image: &Path,
    options: &BuildOptions,
    progress: &dyn Progress,
    cancel: &CancelFlag,
) -> Result<(SourceDigests, BundleManifest), ContainerError> {
    progress.stage("reading the bundle");
    let source = Source::new(input).map_err(|source| TarError::Read { position: 0, source })?;
    let mut archive = Archive::new(source);
    let mut manifest = None;
    let mut root = false;
    while let Some(entry) = archive.next_entry()? {
        let problem = |problem| ContainerError::Entry { entry: entry.shown(), problem };
        match (entry.path.as_slice(), &entry.kind) {
            (b"", EntryKind::Directory) => {}
            (ROOT, EntryKind::File) if !root => {
                if entry.size > options.limits.content {
                    let limit = options.limits.content;
                    return Err(ContainerError::Limit { what: "bytes", limit });
                }
                let file = File::options().write(true).create_new(true).open(image);
                let file = file.map_err(ContainerError::Keep)?;
                write_sparse(&mut archive, &file, cancel, |source, written| {
                    progress.bytes(source.bytes_in(), options.input_size);
                    if options.limits.ratio_fits(source.bytes_in(), written) {
                        return Ok(());
                    }
                    let limit = options.limits.ratio;
                    Err(ContainerError::Limit { what: "bytes for each compressed one", limit })
                })?;
                root = true;
            }
            (MANIFEST, EntryKind::File) if manifest.is_none() => {
                let mut text = Vec::new();
                while let Some(piece) = archive.next_piece()? {
                    let Piece::Data(data) = piece else { return Err(problem("sparse")) };
                    text.extend_from_slice(data);
                    if text.len() as u64 > LARGEST_DOCUMENT {
                        let limit = LARGEST_DOCUMENT;
                        return Err(ContainerError::Limit { what: "bytes in a document", limit });
                    }
                }
                let read = serde_json::from_slice(&text).map_err(|source| {
                    ContainerError::Document { name: "manifest.json".into(), source }
                });
                manifest = Some(read?);
            }
            (ROOT | MANIFEST, EntryKind::File) => return Err(problem("there twice")),
            (ROOT | MANIFEST, _) => return Err(problem("not a regular file")),
            _ => return Err(problem("neither rootfs.ext4 nor manifest.json")),
        }
    }
    archive.drain(options.limits.padding)?;
    if !root {
        return Err(ContainerError::Missing("rootfs.ext4".into()));
    }
    let manifest = manifest.ok_or_else(|| ContainerError::Missing("manifest.json".into()))?;
    Ok((archive.into_inner().finish(), manifest))
}

/// Writes the current entry's content, with holes where there are only zeros.
fn write_sparse<R: Read>(
    archive: &mut Archive<R>,
    file: &File,
    cancel: &CancelFlag,
    mut report: impl FnMut(&R, u64) -> Result<(), ContainerError>,
) -> Result<(), ContainerError> {
    let (mut at, mut written) = (0, 0);
    loop {
        cancel.check()?;
        match archive.next_piece()? {
            None => break,
            Some(Piece::Hole(length)) => at += length,
            Some(Piece::Data(data)) => {
                for part in data.chunks(HOLE) {
                    if part.iter().any(|&byte| byte != 0) {
                        file.write_all_at(part, at).map_err(ContainerError::Keep)?;
                        written += part.len() as u64;
                    }
                    at += part.len() as u64;
                }
            }
        }
        report(archive.source(), written)?;
    }
    file.set_len(at).map_err(ContainerError::Keep)
}

/// Writes a bundle of an image to `out`.
pub(crate) fn write_bundle(
    root: &Path,
    manifest: &ImageManifest,
    out: &Path,
    cancel: &CancelFlag,
) -> Result<(), ContentsError> {
    let failed = ContentsError::Write;
    let open = |path: &Path| File::open(path).map_err(failed);
    let file = BufWriter::new(create(out).map_err(|error| failed(io::Error::other(error)))?);
    let encoder = zstd::Encoder::new(file, 3).map_err(failed)?;
    let mut writer = ArchiveWriter::new(encoder);
    let text = serde_json::to_vec_pretty(&BundleManifest {
        name: Some(manifest.name.to_string()),
        config: manifest.config.clone(),
        kernel: manifest.kernel.clone(),
    })
    .map_err(|error| failed(error.into()))?;
    let metadata = Metadata {
        permissions: 0o644,
        modified: crate::ext4::Timestamp::new(manifest.created_at.as_second(), 0),
        ..Metadata::default()
    };
    let size = text.len() as u64;
    writer.entry(MANIFEST, WrittenKind::File(size), &metadata).map_err(failed)?;
    writer.content(&text[..], size).and_then(|()| writer.pad(size)).map_err(failed)?;
    let file = open(root)?;
    let size = file.metadata().map_err(failed)?.len();
    let pieces = pieces(&file, size).map_err(failed)?;
    writer.sparse(ROOT, size, &pieces, &metadata).map_err(failed)?;
    let mut stored = 0;
    for (offset, length) in pieces {
        let mut done = 0;
        while done < length {
            cancel.check()?;
            let part = (length - done).min(16 << 20);
            writer.content(At { file: &file, at: offset + done }, part).map_err(failed)?;
            done += part;
        }
        stored += length;
    }
    writer.pad(stored).map_err(failed)?;
    let encoder = writer.finish().map_err(failed)?;
    let mut file = encoder.finish().map_err(failed)?;
    file.flush().map_err(failed)
}

/// What of a file is no hole, as offset and length (lseek(2), `SEEK_DATA`).
fn pieces(file: &File, size: u64) -> io::Result<Vec<(u64, u64)>> {
    let mut pieces = Vec::new();
    let mut at = 0;
    while at < size {
        let start = match rustix::fs::seek(file, SeekFrom::Data(at)) {
            Ok(start) => start,
            Err(rustix::io::Errno::NXIO) => break,
            Err(errno) => return Err(errno.into()),
        };
        let end = rustix::fs::seek(file, SeekFrom::Hole(start))?.min(size);
        pieces.push((start, end - start));
        at = end;
    }
    if pieces.last().is_none_or(|(start, length)| start + length < size) {
        pieces.push((size, 0));
    }
    Ok(pieces)
}

/// Copies what of `from` is no hole to the same places of `to`.
pub(crate) fn copy_sparse(
    from: &File,
    to: &File,
    cancel: &CancelFlag,
) -> io::Result<Result<(), Cancelled>> {
    let size = from.metadata()?.len();
    let mut buffer = vec![0; 1 << 20];
    for (mut at, length) in pieces(from, size)? {
        let end = at + length;
        while at < end {
            if let Err(cancelled) = cancel.check() {
                return Ok(Err(cancelled));
            }
            let most = usize::try_from(end - at).unwrap_or(usize::MAX).min(buffer.len());
            from.read_exact_at(&mut buffer[..most], at)?;
            to.write_all_at(&buffer[..most], at)?;
            at += most as u64;
        }
    }
    to.set_len(size)?;
    Ok(Ok(()))
}

/// Reads a file from a place on.
struct At<'a> {
    file: &'a File,
    at: u64,
}

impl Read for At<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.file.read_at(buffer, self.at)?;
        self.at += read as u64;
        Ok(read)
    }
}
