//! Images as others take them: an OCI layout, or a bundle.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use banger_types::{Digest, ImageConfig};
use serde_json::json;
use sha2::{Digest as _, Sha256};

use super::bundle::write_bundle;
use crate::contents::{self, ContentsError};
use crate::ext4::{Metadata, Timestamp};
use crate::images::{Image, ImageManifest};
use crate::progress::CancelFlag;
use crate::shelf::Staging;
use crate::tarball::{ArchiveWriter, WrittenKind};

/// How an image is exported.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExportFormat {
    /// A tar of an OCI layout with one layer.
    Layout,
    /// A tar compressed with Zstandard of `rootfs.ext4` and `manifest.json`.
    Bundle,
}

/// An export that is ready to be written; its files are removed when it is dropped.
#[derive(Debug)]
pub struct Export {
    staging: Staging,
    /// Paths in the archive and files; none for a bundle, which is a file already.
    files: Vec<(String, PathBuf)>,
    modified: Timestamp,
}

const BUNDLE: &str = "bundle.tar.zst";

impl Export {
    /// Makes what is to be written.
    pub(crate) fn prepare(
        staging: Staging,
        image: &Image,
        format: ExportFormat,
        cancel: &CancelFlag,
    ) -> Result<Self, ContentsError> {
        let modified = Timestamp::new(image.manifest.created_at.as_second(), 0);
        let directory = staging.path().to_owned();
        let files = match format {
            ExportFormat::Layout => layout(image, &directory, cancel)?,
            ExportFormat::Bundle => {
                write_bundle(&image.root(), &image.manifest, &directory.join(BUNDLE), cancel)?;
                Vec::new()
            }
        };
        Ok(Self { staging, files, modified })
    }

    /// Writes it to `out`.
    ///
    /// # Errors
    /// A file that cannot be read, or an `out` that takes no more.
    pub fn write(&self, mut out: impl Write) -> io::Result<()> {
        if self.files.is_empty() {
            io::copy(&mut File::open(self.staging.path().join(BUNDLE))?, &mut out)?;
            return out.flush();
        }
        let mut writer = ArchiveWriter::new(out);
        let metadata =
            |permissions| Metadata { permissions, modified: self.modified, ..Metadata::default() };
        for directory in ["blobs", "blobs/sha256"] {
            writer.entry(directory.as_bytes(), WrittenKind::Directory, &metadata(0o755))?;
        }
        for (path, file) in &self.files {
            let file = File::open(file)?;
            let size = file.metadata()?.len();
            writer.entry(path.as_bytes(), WrittenKind::File(size), &metadata(0o644))?;
            writer.content(file, size)?;
            writer.pad(size)?;
        }
        writer.finish()?.flush()
    }
}

/// Counts and hashes what is written.
struct HashingWriter<W> {
    out: W,
    hash: Sha256,
    bytes: u64,
}

impl<W: Write> HashingWriter<W> {
    fn new(out: W) -> Self {
        Self { out, hash: Sha256::new(), bytes: 0 }
    }

    fn finish(self) -> (W, Digest, u64) {
        (self.out, Digest::from_sha256(self.hash.finalize().into()), self.bytes)
    }
}

impl<W: Write> Write for HashingWriter<W> {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        let written = self.out.write(buffer)?;
        self.hash.update(&buffer[..written]);
        self.bytes += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

/// Makes the files of an OCI layout in `directory`, with their places in it.
fn layout(
    image: &Image,
    directory: &Path,
    cancel: &CancelFlag,
) -> Result<Vec<(String, PathBuf)>, ContentsError> {
    let failed = ContentsError::Write;
    let reader = contents::open(&image.root())?;
    let layer_path = directory.join("layer");
    let file = BufWriter::new(File::create_new(&layer_path).map_err(failed)?);
    let level = flate2::Compression::new(3);
    let encoder = flate2::write::GzEncoder::new(HashingWriter::new(file), level);
    let out = HashingWriter::new(BufWriter::with_capacity(1 << 20, encoder));
    let (out, _) = contents::write_archive(&reader, b"", out, cancel)?;
    let (buffered, diff_id, _) = out.finish();
    let encoder = buffered.into_inner().map_err(|error| failed(error.into_error()))?;
    let (mut file, digest, size) = encoder.finish().map_err(failed)?.finish();
    file.flush().map_err(failed)?;

    let mut files = vec![(blob(&digest), layer_path)];
    let mut put = |name: &str, place: Option<&str>, text: &[u8]| -> Result<_, ContentsError> {
        let path = directory.join(name);
        std::fs::write(&path, text).map_err(failed)?;
        let digest = Digest::from_sha256(Sha256::digest(text).into());
        files.push((place.map_or_else(|| blob(&digest), str::to_owned), path));
        Ok((digest, text.len()))
    };
    let configuration = configuration(&image.manifest, &diff_id);
    let (config, config_size) = put("config", None, configuration.to_string().as_bytes())?;
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": {
            "mediaType": "application/vnd.oci.image.config.v1+json",
            "digest": config,
            "size": config_size,
        },
        "layers": [{
            "mediaType": "application/vnd.oci.image.layer.v1.tar+gzip",
            "digest": digest,
            "size": size,
        }],
    });
    let (manifest, manifest_size) = put("manifest", None, manifest.to_string().as_bytes())?;
    let index = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": [{
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "digest": manifest,
            "size": manifest_size,
            "platform": { "os": "linux", "architecture": "amd64" },
            "annotations": { "org.opencontainers.image.ref.name": image.manifest.name },
        }],
    });
    put("index", Some("index.json"), index.to_string().as_bytes())?;
    let version = json!({ "imageLayoutVersion": "1.0.0" });
    put("version", Some("oci-layout"), version.to_string().as_bytes())?;
    Ok(files)
}

fn configuration(manifest: &ImageManifest, diff_id: &Digest) -> serde_json::Value {
    let none = ImageConfig::default();
    json!({
        "created": manifest.created_at,
        "architecture": "amd64",
        "os": "linux",
        "config": manifest.config.as_ref().unwrap_or(&none),
        "rootfs": { "type": "layers", "diff_ids": [diff_id] },
        "history": [{ "created": manifest.created_at, "created_by": "banger image export" }],
    })
}

fn blob(digest: &Digest) -> String {
    super::kept::blob_path(digest)
}
