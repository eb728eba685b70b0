//! Builds an image from its layers.
//!
//! ```text
//! layer n, n-1 .. 1 --> contents into the file system, entries into the records   (extract)
//! records of 1 .. n --> names, whiteouts, links; then what was skipped wrongly     (merge)
//! ```

use std::io::BufWriter;

use uuid::Uuid;

use super::extract::Extraction;
use super::hidden::Hidden;
use super::merge::merge;
use super::record::Records;
use super::{Layer, LayerRecord};
use crate::builder::{BuildError, BuildOptions, BuildPaths, BuiltImage, check, create};
use crate::contents::{self, ContentsError, Facts};
use crate::ext4::{self, Kind, Metadata, Writer};
use crate::progress::{CancelFlag, Progress};
use crate::tarball::SourceDigests;

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
    let mut writer = Writer::new(file, ext4_options).map_err(failed)?;
    // Without an entry for it the root has the time 0, as where umoci unpacks.
    let root = Metadata { permissions: 0o755, ..Metadata::default() };
    writer.add(b"", &Kind::Directory, &root).map_err(failed)?;
    let records_failed = |source| BuildError::Records { source };
    let records = paths.image.with_extension("records");
    let mut extraction = Extraction {
        writer,
        records: Records::create(&records).map_err(records_failed)?,
        hidden: Hidden::default(),
        older: layers.len(),
        limits: options.limits,
        total: layers.iter().map(|layer| layer.size).sum::<Option<u64>>(),
        progress,
        cancel,
        entries: 0,
        content: 0,
        bytes_in: 0,
        bytes_out: 0,
        ignored_attributes: 0,
    };
    progress.stage("writing files");
    let mut read = Vec::with_capacity(layers.len());
    for (index, layer) in layers.iter().enumerate().rev() {
        read.push(extraction.layer(layer).map_err(|error| error.in_layer(index, layer))?);
    }
    read.reverse();
    let (layer_records, spans): (Vec<_>, Vec<_>) = read.into_iter().unzip();
    let Extraction { mut writer, records, entries, ignored_attributes, hidden, .. } = extraction;
    drop(hidden);
    progress.stage("merging layers");
    let records = records.read().map_err(records_failed)?;
    merge(&mut writer, records, layers, &spans, options.limits, cancel)?;
    let records = layer_records;
    let ignored_attributes = ignored_attributes + writer.ignored_attributes();
    progress.stage("writing the file system's tables");
    let finished = writer.finish().map_err(failed)?;
    cancel.check()?;
    progress.stage("checking the file system");
    check(paths.image, cancel)?;
    let (facts, has_work_seed) = read_back(paths, cancel)?;
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
        os_release: facts.os_release,
        has_init: facts.has_init,
        has_shell: facts.has_shell,
        ignored_attributes,
        has_work_seed,
    };
    Ok((built, records))
}

/// Looks into the finished image and copies what it has below `/root` to the work seed.
pub(crate) fn read_back(
    paths: BuildPaths<'_>,
    cancel: &CancelFlag,
) -> Result<(Facts, bool), BuildError> {
    let unreadable = |source| match source {
        ContentsError::Cancelled(cancelled) => BuildError::Cancelled(cancelled),
        source => BuildError::ReadBack { path: paths.image.to_owned(), source },
    };
    let reader = contents::open(paths.image).map_err(|error| unreadable(error.into()))?;
    let facts = Facts::read(&reader).map_err(|error| unreadable(error.into()))?;
    let Some(path) = paths.work_seed else { return Ok((facts, false)) };
    let out = BufWriter::new(create(path)?);
    let (out, entries) =
        contents::write_archive(&reader, b"root", out, cancel).map_err(unreadable)?;
    let failed = |source| BuildError::File { action: "write", path: path.to_owned(), source };
    if entries == 0 {
        std::fs::remove_file(path).map_err(failed)?;
        return Ok((facts, false));
    }
    let file = out.into_inner().map_err(|error| failed(error.into_error()))?;
    file.sync_all().map_err(failed)?;
    Ok((facts, true))
}
