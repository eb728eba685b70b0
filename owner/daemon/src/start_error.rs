//! Why the daemon could not start, for the one line that the command line shows.

use std::path::PathBuf;

use banger_daemon_api::error::{ApiError, ErrorCode};
use banger_store::LockError;

/// Why the daemon could not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Somebody started it as root.
    #[error("bangerd never runs as root")]
    Root,
    /// Somebody passed a socket to it.
    #[error("bangerd takes no socket from others (LISTEN_FDS)")]
    PassedSocket,
    /// A directory is not what it must be.
    #[error("{} {problem}", path.display())]
    Directory {
        /// The directory.
        path: PathBuf,
        /// What is wrong with it: `is not a directory`.
        problem: String,
        /// What to do about it.
        hint: String,
    },
    /// Another daemon has it.
    #[error("another bangerd{} uses {}", holder.map(|pid| format!(" (pid {pid})")).unwrap_or_default(), path.display())]
    Locked {
        /// The directory.
        path: PathBuf,
        /// The other daemon's pid, where it wrote one.
        holder: Option<u32>,
    },
    /// The socket's path does not fit into a socket address.
    #[error("the socket path {} has {length} bytes, the most is {most}", path.display())]
    SocketPath {
        /// The path.
        path: PathBuf,
        /// Its length in bytes.
        length: usize,
        /// The most bytes, from unix(7).
        most: usize,
    },
    /// A system call failed.
    #[error("{act}")]
    Io {
        /// The act and its object, as a participle.
        act: String,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
    /// A part of the daemon could not start.
    #[error("{0}")]
    Part(ApiError),
}

impl From<LockError> for StartError {
    fn from(error: LockError) -> Self {
        match error {
            LockError::Held { directory, pid } => Self::Locked { path: directory, holder: pid },
            LockError::Io { act, path, source } => {
                Self::Io { act: format!("{act} {}", path.display()), source }
            }
        }
    }
}

impl StartError {
    /// Returns the error as the command line shows it.
    pub fn to_api_error(&self) -> ApiError {
        let (code, hint) = match self {
            Self::Part(error) => return error.clone(),
            Self::Root => (
                ErrorCode::Unauthorized,
                Some(
                    "run any `banger` command: it starts bangerd as an unprivileged user"
                        .to_owned(),
                ),
            ),
            Self::PassedSocket => (
                ErrorCode::OperationFailed,
                Some("start it without a systemd socket unit: it makes its own socket".to_owned()),
            ),
            Self::Directory { hint, .. } => (ErrorCode::OperationFailed, Some(hint.clone())),
            Self::Locked { .. } => (
                ErrorCode::InUse,
                Some("`banger daemon stop` ends it; its VMs keep running".to_owned()),
            ),
            Self::SocketPath { .. } => (
                ErrorCode::BadParams,
                Some("set BANGER_RUNTIME_DIR to a shorter directory".to_owned()),
            ),
            Self::Io { source, .. } => match source.kind() {
                std::io::ErrorKind::StorageFull => {
                    (ErrorCode::NoSpace, Some("free some space and try again".to_owned()))
                }
                _ => (ErrorCode::OperationFailed, None),
            },
        };
        let mut error = ApiError::new(code, self.to_string()).caused_by(self);
        error.hint = hint;
        error
    }
}
