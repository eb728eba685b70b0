//! What can go wrong with a registry.

use std::sync::Arc;
use std::time::Duration;

use banger_types::Digest;

use crate::manifest::ManifestError;

/// A cause that several readers may see.
pub(crate) type Cause = Arc<dyn std::error::Error + Send + Sync>;

/// Why an image could not be had. Texts of the server are shortened and made printable.
#[derive(Clone, Debug, thiserror::Error)]
pub enum RegistryError {
    /// There is no connection, or no answer on it.
    #[error("reach {place}")]
    Transport {
        /// Who.
        place: String,
        /// The cause.
        #[source]
        source: Cause,
    },
    /// An answer began and broke off, also after the repetitions.
    #[error("read from {place}")]
    CutOff {
        /// Whose.
        place: String,
        /// The cause.
        #[source]
        source: Cause,
    },
    /// Who cannot be spoken to as the settings say, now or later: a proxy that opens no tunnel, a
    /// server without TLS.
    #[error("{place} {problem}")]
    Unusable {
        /// Who.
        place: String,
        /// What is wrong.
        problem: String,
    },
    /// A deadline passed.
    #[error("{place} {what} in {} s", .after.as_secs_f32())]
    Slow {
        /// Who is slow.
        place: String,
        /// What did not happen.
        what: &'static str,
        /// The deadline.
        after: Duration,
    },
    /// The registry wants credentials, or others.
    #[error("{registry} refuses {what}{}", detail(.message))]
    Unauthorized {
        /// Which registry.
        registry: String,
        /// What was asked for.
        what: String,
        /// Its words.
        message: Option<String>,
        /// Whether credentials were sent.
        with_credentials: bool,
    },
    /// There is no such image, manifest or blob.
    #[error("{registry} has no {what}{}", detail(.message))]
    NotFound {
        /// Which registry.
        registry: String,
        /// What was asked for.
        what: String,
        /// Its words.
        message: Option<String>,
    },
    /// The registry asks for more patience than we have.
    #[error("{registry} wants no requests for the next {} s", .after.as_secs())]
    Throttled {
        /// Which registry.
        registry: String,
        /// How long.
        after: Duration,
    },
    /// Another answer than success, also after the repetitions.
    #[error("{registry} answered {what} with status {status}{}", detail(.message))]
    Status {
        /// Which registry.
        registry: String,
        /// What was asked for.
        what: String,
        /// The HTTP status.
        status: u16,
        /// Its words.
        message: Option<String>,
    },
    /// The answer breaks the protocol.
    #[error("{registry} answered {what} with {problem}")]
    Protocol {
        /// Which registry.
        registry: String,
        /// What was asked for.
        what: String,
        /// What is wrong.
        problem: String,
    },
    /// A redirect that is not followed.
    #[error("{from} redirects to {to}, which is not followed: {why}")]
    Redirect {
        /// Who redirects.
        from: String,
        /// Where to.
        to: String,
        /// Why not.
        why: &'static str,
    },
    /// Another content than its digest says.
    #[error("{what} is damaged: its digest is {found}, not {expected}")]
    Digest {
        /// What was fetched.
        what: String,
        /// What it should be.
        expected: Digest,
        /// What it is.
        found: Digest,
    },
    /// A manifest or configuration that is none.
    #[error("{what}")]
    Manifest {
        /// Which: `the manifest of docker.io/library/alpine:3.20`.
        what: String,
        /// What is wrong.
        #[source]
        source: ManifestError,
    },
    /// The blob store.
    #[error("{act} {path}")]
    Store {
        /// What was done.
        act: &'static str,
        /// The file or directory.
        path: std::path::PathBuf,
        /// The cause.
        #[source]
        source: Arc<std::io::Error>,
    },
    /// The disk has no room for what would be fetched.
    #[error(
        "the layers of {what} that are not here yet have {needed} bytes, and the disk of {} has {free} \
         free",
        path.display()
    )]
    NoRoom {
        /// The image.
        what: String,
        /// Bytes to fetch.
        needed: u64,
        /// The blob store.
        path: std::path::PathBuf,
        /// Bytes that are free there.
        free: u64,
    },
    /// The host has no certificates to know registries by, or what was given is none.
    #[error("{0}")]
    Certificates(String),
    /// The pull ended while a layer was read.
    #[error("the pull was called off")]
    Cancelled,
}

fn detail(message: &Option<String>) -> String {
    message.as_ref().map_or_else(String::new, |message| format!(": {message}"))
}

impl RegistryError {
    /// Returns whether the disk has no room.
    #[must_use]
    pub fn is_full(&self) -> bool {
        use std::io::ErrorKind::{QuotaExceeded, StorageFull};
        match self {
            Self::NoRoom { .. } => true,
            Self::Store { source, .. } => matches!(source.kind(), StorageFull | QuotaExceeded),
            _ => false,
        }
    }

    /// Returns whether nobody is there: the name or the port is nobody's.
    pub(crate) fn is_nobody(&self) -> bool {
        use std::io::ErrorKind::{ConnectionRefused, NotFound};
        let Self::Transport { source, .. } = self else { return false };
        let source = source.downcast_ref::<std::io::Error>();
        source.is_some_and(|error| matches!(error.kind(), ConnectionRefused | NotFound))
    }

    /// Returns whether the same request may succeed a moment later.
    pub(crate) const fn may_pass(&self) -> bool {
        match self {
            Self::Transport { .. } | Self::CutOff { .. } | Self::Slow { .. } => true,
            Self::Status { status, .. } => matches!(status, 408 | 429 | 500 | 502 | 503 | 504),
            _ => false,
        }
    }
}

pub(crate) fn stored(
    act: &'static str,
    path: &std::path::Path,
) -> impl FnOnce(std::io::Error) -> RegistryError {
    let path = path.to_owned();
    move |source| RegistryError::Store { act, path, source: Arc::new(source) }
}

/// The most characters of a server's text that are shown.
const EXCERPT: usize = 200;

/// Makes a server's text safe to show.
pub(crate) fn printable(text: &str) -> String {
    let shown = |c: char| if c.is_ascii_graphic() || c == ' ' { c } else { '?' };
    text.trim().chars().take(EXCERPT).map(shown).collect()
}
