//! Why the store failed.

use std::path::PathBuf;

use banger_types::{VmId, VmName};

/// Why an act on the store failed.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The database was written by a later build.
    #[error("store {} has schema version {found}, this build knows {known}", path.display())]
    Newer {
        /// The database.
        path: PathBuf,
        /// Its schema version.
        found: i64,
        /// The latest this build knows.
        known: i64,
    },
    /// SQLite refused.
    #[error("{act} in the store")]
    Database {
        /// The act, as a participle.
        act: &'static str,
        /// The cause.
        #[source]
        source: rusqlite::Error,
    },
    /// A system call failed.
    #[error("{act} {}", path.display())]
    Io {
        /// The act, as a participle.
        act: &'static str,
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
    /// Another VM has this name.
    #[error("a VM named {name} exists already")]
    NameTaken {
        /// The name.
        name: VmName,
    },
    /// There is no row of this VM.
    #[error("VM {id} is not in the store")]
    NoSuchVm {
        /// The VM.
        id: VmId,
    },
    /// A document could not be turned into JSON.
    #[error("encoding the record of VM {id}")]
    Encode {
        /// The VM.
        id: VmId,
        /// The cause.
        #[source]
        source: serde_json::Error,
    },
    /// The runtime ended while the database was at work.
    #[error("{act} in the store was interrupted")]
    Interrupted {
        /// The act, as a participle.
        act: &'static str,
    },
}

impl StoreError {
    /// Returns whether the cause is a full disk.
    #[must_use]
    pub fn is_no_space(&self) -> bool {
        match self {
            Self::Database { source, .. } => {
                source.sqlite_error_code() == Some(rusqlite::ErrorCode::DiskFull)
            }
            Self::Io { source, .. } => matches!(
                source.kind(),
                std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded
            ),
            _ => false,
        }
    }
}
