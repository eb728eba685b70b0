//! The daemon's three directories, and the lock that makes it the only one in each.
//!
//! ```text
//! state    bangerd.log, banger.db, vms/, images/, kernels/, jails/   what must not be lost
//! cache    initrd/                                           what can be made again
//! runtime  bangerd.sock, bangerd.sock.lock, vms/                  what ends with the host's uptime
//! ```
//! Each is a real directory, owned by the daemon's uid, with mode 0700.

use std::fs::{DirBuilder, File, OpenOptions};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use banger_daemon_api::routes::SOCKET_NAME;
use banger_store::lock_directory;

use crate::arguments::Arguments;
use crate::start_error::StartError;

/// The most bytes of a socket's path: `sun_path` has 108 with the terminating zero (unix(7)).
const SOCKET_PATH_MOST: usize = 107;

/// Name of the lock file in the runtime directory.
const LOCK_NAME: &str = "bangerd.sock.lock";

/// The daemon's directories, checked.
#[derive(Clone, Debug)]
pub struct Directories {
    /// What must not be lost.
    pub state: PathBuf,
    /// What can be made again.
    pub cache: PathBuf,
    /// Sockets.
    pub runtime: PathBuf,
}

/// Held as long as the daemon runs.
#[derive(Debug)]
pub struct Locks {
    _runtime: File,
}

impl Directories {
    /// Makes the directories where they are missing and checks that they belong to `uid` alone.
    pub fn prepare(arguments: &Arguments, uid: u32) -> Result<Self, StartError> {
        let given = |dir: &Option<PathBuf>| dir.clone().unwrap_or_default();
        let directories = Self {
            state: prepare(&arguments.state_dir, uid)?,
            cache: prepare(&given(&arguments.cache_dir), uid)?,
            runtime: prepare(&given(&arguments.runtime_dir), uid)?,
        };
        // The longest of those below it, of a VM's serial console.
        let socket = directories.runtime.join("vms/0123456789ab/console.sock");
        let length = socket.as_os_str().len();
        if length > SOCKET_PATH_MOST {
            return Err(StartError::SocketPath { path: socket, length, most: SOCKET_PATH_MOST });
        }
        Ok(directories)
    }

    /// Returns where the daemon's socket is.
    pub fn socket(&self) -> PathBuf {
        self.runtime.join(SOCKET_NAME)
    }

    /// Returns where the log goes.
    pub fn log_file(&self, arguments: &Arguments) -> PathBuf {
        arguments.log_file.clone().unwrap_or_else(|| self.state.join("bangerd.log"))
    }

    /// Takes the runtime directory's lock, which guards the socket. The state directory's lock is
    /// the store's.
    pub fn lock(&self) -> Result<Locks, StartError> {
        Ok(Locks { _runtime: lock_directory(&self.runtime, LOCK_NAME)? })
    }
}

fn prepare(path: &Path, uid: u32) -> Result<PathBuf, StartError> {
    let bad = |problem: &str, hint: &str| StartError::Directory {
        path: path.to_owned(),
        problem: problem.to_owned(),
        hint: hint.to_owned(),
    };
    if !path.is_absolute() {
        return Err(bad("is not an absolute path", "give the directory from the root on"));
    }
    let io = |act: &str| {
        let act = format!("{act} directory {}", path.display());
        move |source| StartError::Io { act, source }
    };
    DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(io("creating"))?;
    let directory = OpenOptions::new()
        .read(true)
        .custom_flags(
            (rustix::fs::OFlags::DIRECTORY | rustix::fs::OFlags::NOFOLLOW).bits().cast_signed(),
        )
        .open(path)
        .map_err(|source| {
            match source.raw_os_error().map(rustix::io::Errno::from_raw_os_error) {
                Some(rustix::io::Errno::LOOP | rustix::io::Errno::NOTDIR) => {
                    bad("is not a real directory", "remove it, or choose another directory")
                }
                _ => io("opening")(source),
            }
        })?;
    let metadata = directory.metadata().map_err(io("examining"))?;
    if metadata.uid() != uid {
        return Err(bad(
            &format!("belongs to uid {}, not to uid {uid}", metadata.uid()),
            "remove it, or choose another directory",
        ));
    }
    if metadata.mode() & 0o7777 != 0o700 {
        directory
            .set_permissions(std::fs::Permissions::from_mode(0o700))
            .map_err(io("setting the mode of"))?;
    }
    Ok(path.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn own_uid() -> u32 {
        rustix::process::geteuid().as_raw()
    }

    #[test]
    fn missing_directories_are_made_private() {
        let base = tempfile::tempdir().unwrap();
        let path = base.path().join("a/b");
        prepare(&path, own_uid()).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o7777, 0o700);
    }

    #[test]
    fn open_directories_are_closed() {
        let base = tempfile::tempdir().unwrap();
        std::fs::set_permissions(base.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        prepare(base.path(), own_uid()).unwrap();
        assert_eq!(std::fs::metadata(base.path()).unwrap().mode() & 0o7777, 0o700);
    }

    #[test]
    fn links_files_relative_paths_and_strangers_are_refused() {
        let base = tempfile::tempdir().unwrap();
        let real = base.path().join("real");
        std::fs::create_dir(&real).unwrap();
        let link = base.path().join("link");
        std::os::unix::fs::symlink(&real, &link).unwrap();
        let file = base.path().join("file");
        std::fs::write(&file, "").unwrap();
        assert!(matches!(prepare(&link, own_uid()), Err(StartError::Directory { .. })));
        assert!(prepare(&file, own_uid()).is_err());
        assert!(matches!(prepare(Path::new("x"), own_uid()), Err(StartError::Directory { .. })));
        assert!(matches!(prepare(&real, own_uid() + 1), Err(StartError::Directory { .. })));
    }

    #[test]
    fn a_directory_has_one_daemon_and_the_second_learns_the_pid() {
        let base = tempfile::tempdir().unwrap();
        let path = base.path().to_owned();
        let same = Directories { state: path.clone(), cache: path.clone(), runtime: path };
        let first = same.lock().unwrap();
        match same.lock() {
            Err(StartError::Locked { holder, .. }) => {
                assert_eq!(holder, Some(std::process::id()));
            }
            other => panic!("{other:?}"),
        }
        drop(first);
        same.lock().unwrap();
    }
}
