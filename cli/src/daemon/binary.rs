//! Which `bangerd` belongs to this `banger`.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::environment;
use crate::error::CliError;

const NAME: &str = "bangerd";
/// Where an installation puts it.
const INSTALLED: &str = "/usr/local/bin/bangerd";

/// The daemon's executable, and which build it is.
#[derive(Clone, Debug)]
pub struct DaemonBinary {
    path: PathBuf,
    build_id: String,
}

impl DaemonBinary {
    /// Finds it: `BANGER_BANGERD`, else beside `banger`, else in `/usr/local/bin`.
    pub fn find() -> Result<Self, CliError> {
        if let Some(path) = std::env::var_os(environment::BANGERD) {
            return Self::open(Path::new(&path)).map_err(|error| {
                CliError::new(format!("cannot use {}", Path::new(&path).display()))
                    .because(&error)
                    .hint(format!("{} must name the bangerd executable", environment::BANGERD))
            });
        }
        let beside = std::env::current_exe()
            .ok()
            .and_then(|path| path.parent().map(|directory| directory.join(NAME)));
        let places: Vec<PathBuf> = beside.into_iter().chain([PathBuf::from(INSTALLED)]).collect();
        places.iter().find_map(|path| Self::open(path).ok()).ok_or_else(|| {
            let looked: Vec<String> =
                places.iter().map(|path| path.display().to_string()).collect();
            CliError::new(format!("there is no bangerd at {}", looked.join(" or ")))
                .hint("build it: cargo build --release -p banger-daemon")
        })
    }

    fn open(path: &Path) -> std::io::Result<Self> {
        let metadata = fs::metadata(path)?;
        if !metadata.is_file() || metadata.mode() & 0o111 == 0 {
            return Err(std::io::Error::other("not an executable file"));
        }
        Ok(Self { path: path.to_owned(), build_id: build_id(&metadata) })
    }

    /// Returns its path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns whether a daemon that reports `build_id` is this build.
    pub fn is_build(&self, build_id: &str) -> bool {
        self.build_id == build_id
    }
}

/// Identifies a build by size, modification time and inode: cheap, and new with every build.
pub fn build_id(metadata: &fs::Metadata) -> String {
    let nanoseconds =
        i128::from(metadata.mtime()) * 1_000_000_000 + i128::from(metadata.mtime_nsec());
    format!("{}-{nanoseconds}-{}", metadata.len(), metadata.ino())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rebuilt_file_is_another_build() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("bangerd");
        fs::write(&path, "one").unwrap();
        let first = build_id(&fs::metadata(&path).unwrap());
        assert_eq!(build_id(&fs::metadata(&path).unwrap()), first);
        fs::write(&path, "longer").unwrap();
        assert_ne!(build_id(&fs::metadata(&path).unwrap()), first);
    }

    #[test]
    fn what_cannot_be_executed_is_no_daemon() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("bangerd");
        assert!(DaemonBinary::open(&path).is_err());
        fs::write(&path, "").unwrap();
        assert!(DaemonBinary::open(&path).is_err());
        assert!(DaemonBinary::open(directory.path()).is_err());
    }
}
