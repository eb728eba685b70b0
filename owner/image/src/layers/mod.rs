//! Layers of a container image, and the file system that they make together.
//!
//! A layer is an archive of what changed (OCI image specification, layer.md). What two layers say
//! of one path is decided as a runtime that unpacks them one over the other would: an entry takes
//! the place of what is there, directories are merged, whiteouts remove what older layers brought.

mod compose;
mod decode;
mod extract;
mod hidden;
mod merge;
mod record;
mod whiteout;

use std::io::{self, Read};

use banger_types::{Digest, ImageConfig};

pub use compose::build_layers;
pub(crate) use compose::read_back;

/// Where a layer's bytes come from.
pub trait LayerSource: Send {
    /// Opens the layer at its first byte, compressed as its media type says. The reader may follow
    /// a blob that is still being downloaded.
    ///
    /// The build opens the layers last first, each when the one before was read to its end, and
    /// rarely a layer again after that.
    ///
    /// # Errors
    /// Bytes that cannot be had.
    fn open(&self) -> io::Result<Box<dyn Read + Send>>;
}

/// One layer of an image.
pub struct Layer {
    /// What its manifest says that it is.
    pub media_type: LayerMediaType,
    /// Of the bytes as they come; `None` where nothing says it (archives of `docker save`).
    pub digest: Option<Digest>,
    /// Bytes as they come, where something says it.
    pub size: Option<u64>,
    /// Of the uncompressed archive, from the image's configuration.
    pub diff_id: Digest,
    /// Where its bytes come from.
    pub source: Box<dyn LayerSource>,
}

impl std::fmt::Debug for Layer {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("Layer")
            .field("media_type", &self.media_type)
            .field("digest", &self.digest)
            .field("size", &self.size)
            .field("diff_id", &self.diff_id)
            .finish_non_exhaustive()
    }
}

/// The media types of layers that can be unpacked.
///
/// They are told apart to refuse what is no layer (encrypted ones, charts, signatures). How the
/// bytes are compressed is seen in the bytes, because registries hold layers that say one thing and
/// are another, which every runtime takes; the diff id holds either way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LayerMediaType {
    /// An archive without compression.
    Tar,
    /// Compressed with gzip.
    Gzip,
    /// Compressed with Zstandard.
    Zstd,
}

/// A media type that is none of a layer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the media type {0:?} is none of a layer that can be unpacked")]
pub struct UnknownMediaType(pub String);

impl std::str::FromStr for LayerMediaType {
    type Err = UnknownMediaType;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "application/vnd.oci.image.layer.v1.tar"
            | "application/vnd.oci.image.layer.nondistributable.v1.tar"
            | "application/vnd.docker.image.rootfs.diff.tar"
            | "application/vnd.docker.image.rootfs.foreign.diff.tar" => Ok(Self::Tar),
            "application/vnd.oci.image.layer.v1.tar+gzip"
            | "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip"
            | "application/vnd.docker.image.rootfs.diff.tar.gzip"
            | "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip" => Ok(Self::Gzip),
            "application/vnd.oci.image.layer.v1.tar+zstd"
            | "application/vnd.oci.image.layer.nondistributable.v1.tar+zstd"
            | "application/vnd.docker.image.rootfs.diff.tar.zstd" => Ok(Self::Zstd),
            _ => Err(UnknownMediaType(text.chars().take(200).collect())),
        }
    }
}

/// A container image, ready to be built.
#[derive(Debug)]
pub struct LayeredImage {
    /// The layers, oldest first, as manifests list them.
    pub layers: Vec<Layer>,
    /// How it wants to be run.
    pub config: ImageConfig,
    /// The digest of its manifest, where it has one.
    pub manifest_digest: Option<Digest>,
}

/// A layer as the manifest of a built image records it.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct LayerRecord {
    /// Of the bytes as they came.
    pub digest: Digest,
    /// Of the uncompressed archive.
    pub diff_id: Digest,
    /// Bytes as they came.
    pub size: u64,
}

/// Returns what identifies the content of `layers` together (config.md, "Layer ChainID"); for one
/// layer its diff id.
pub(crate) fn chain_id(layers: &[LayerRecord]) -> Option<Digest> {
    use sha2::{Digest as _, Sha256};
    let mut chain: Option<Digest> = None;
    for layer in layers {
        chain = Some(match chain {
            None => layer.diff_id.clone(),
            Some(below) => {
                let text = format!("{below} {}", layer.diff_id);
                Digest::from_sha256(Sha256::digest(text.as_bytes()).into())
            }
        });
    }
    chain
}
