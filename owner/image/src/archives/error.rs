//! Why an archive of container images is refused.

use std::io;

use banger_types::Digest;

use crate::layers::UnknownMediaType;
use crate::tarball::TarError;

/// Why an archive of container images was refused.
#[derive(Debug, thiserror::Error)]
pub enum ContainerError {
    /// The archive is bad or unreadable.
    #[error(transparent)]
    Archive(#[from] TarError),
    /// A file of it could not be kept for a moment.
    #[error("keep the files of the archive")]
    Keep(#[source] io::Error),
    /// A file that has no place in such an archive.
    #[error("entry {entry} has no place in an archive of container images: it is {problem}")]
    Entry {
        /// Its name, safe to show.
        entry: String,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// More of something than any image has.
    #[error("the archive has more than {limit} {what}")]
    Limit {
        /// What there is too much of.
        what: &'static str,
        /// The most allowed.
        limit: u64,
    },
    /// A file that another one names is not there.
    #[error("the archive has no {0}")]
    Missing(String),
    /// A document is not what it should be.
    #[error("the document {name} cannot be read")]
    Document {
        /// Its path.
        name: String,
        /// The cause.
        #[source]
        source: serde_json::Error,
    },
    /// A document is not the one that its digest says.
    #[error("the document {expected} has the digest {found}")]
    Digest {
        /// What it should be.
        expected: Digest,
        /// What it is.
        found: Digest,
    },
    /// A document is longer or shorter than what names it says.
    #[error("the document {name} has {found} bytes, not {expected}")]
    Size {
        /// Its path.
        name: String,
        /// What it should have.
        expected: u64,
        /// What it has.
        found: u64,
    },
    /// The layout's version is not 1.
    #[error("the layout has the version {0:?}; only 1.0.0 is known")]
    Version(String),
    /// There are several images.
    #[error("the archive has several images: {}", .0.join(", "))]
    Several(Vec<String>),
    /// None of the images is the one asked for.
    #[error("the archive has no image {wanted}; it has {}", .found.join(", "))]
    NoReference {
        /// What was asked for.
        wanted: String,
        /// What there is.
        found: Vec<String>,
    },
    /// No image is for the platform.
    #[error("the image is not for {wanted}; it is for {}", .found.join(", "))]
    NoPlatform {
        /// What was asked for.
        wanted: String,
        /// What there is.
        found: Vec<String>,
    },
    /// Indexes hold each other, or each other's.
    #[error("the image's indexes are more than {0} levels deep")]
    TooDeep(usize),
    /// A manifest is of a kind that is not known.
    #[error("{0:?} is the media type of no manifest that is known")]
    ManifestType(String),
    /// A layer is of a kind that is not known.
    #[error(transparent)]
    LayerType(#[from] UnknownMediaType),
    /// The configuration names more or fewer layers than there are.
    #[error("the image has {layers} layers, and its configuration names {named}")]
    Layers {
        /// How many there are.
        layers: usize,
        /// How many the configuration names.
        named: usize,
    },
    /// The work was cancelled.
    #[error(transparent)]
    Cancelled(#[from] crate::progress::Cancelled),
}
