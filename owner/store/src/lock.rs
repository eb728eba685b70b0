//! One daemon per directory.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Seek, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// Name of the lock file in the state directory.
pub const LOCK_NAME: &str = "bangerd.lock";

/// Why the lock was not taken.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Another daemon has it.
    #[error("another bangerd uses {}{}", directory.display(), Holder(*pid))]
    Held {
        /// The directory.
        directory: PathBuf,
        /// The other's process id, where it left one.
        pid: Option<u32>,
    },
    /// A system call failed.
    #[error("{act} {}", path.display())]
    Io {
        /// The act, as a participle.
        act: &'static str,
        /// The lock file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
}

struct Holder(Option<u32>);

impl std::fmt::Display for Holder {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            Some(pid) => write!(formatter, ", with process id {pid}"),
            None => Ok(()),
        }
    }
}

/// The right to use a state directory; given back when it is dropped, also by a crash (flock(2)).
///
/// The file stays when the lock goes: removing it would let a third daemon lock a new file while a
/// second one holds the old.
#[derive(Debug)]
pub struct StateLock {
    state_dir: PathBuf,
    _file: File,
}

impl StateLock {
    /// Takes the lock of `state_dir`, which must exist, without waiting.
    pub fn acquire(state_dir: &Path) -> Result<Self, LockError> {
        let file = lock_directory(state_dir, LOCK_NAME)?;
        Ok(Self { state_dir: state_dir.to_owned(), _file: file })
    }

    /// Returns the directory it stands for.
    #[must_use]
    pub fn state_dir(&self) -> &Path {
        &self.state_dir
    }
}

/// Takes the lock of `directory`, which must exist, by its file `name`, without waiting: the lock goes
/// with what is returned (flock(2)), the file, which has this process's id, stays.
///
/// # Errors
/// Another process has it; a system call failed, as where the file is a link.
pub fn lock_directory(directory: &Path, name: &str) -> Result<File, LockError> {
    let path = directory.join(name);
    let io = |act| {
        let path = path.clone();
        move |source| LockError::Io { act, path, source }
    };
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .custom_flags(rustix::fs::OFlags::NOFOLLOW.bits().cast_signed())
        .open(&path)
        .map_err(io("opening lock"))?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let pid = read_pid(&mut file);
            return Err(LockError::Held { directory: directory.to_owned(), pid });
        }
        Err(TryLockError::Error(source)) => return Err(io("taking lock")(source)),
    }
    file.set_len(0)
        .and_then(|()| file.rewind())
        .and_then(|()| writeln!(file, "{}", std::process::id()))
        .map_err(io("writing lock"))?;
    Ok(file)
}

fn read_pid(file: &mut File) -> Option<u32> {
    let mut text = String::new();
    file.rewind().ok()?;
    file.take(32).read_to_string(&mut text).ok()?;
    text.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_daemon_is_refused_and_told_who_is_first() {
        let dir = tempfile::tempdir().unwrap();
        let first = StateLock::acquire(dir.path()).unwrap();
        match StateLock::acquire(dir.path()) {
            Err(LockError::Held { pid, .. }) => assert_eq!(pid, Some(std::process::id())),
            other => panic!("{other:?}"),
        }
        drop(first);
        StateLock::acquire(dir.path()).unwrap();
    }

    #[test]
    fn a_link_in_place_of_the_lock_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let victim = dir.path().join("victim");
        std::fs::write(&victim, "precious").unwrap();
        std::os::unix::fs::symlink(&victim, dir.path().join(LOCK_NAME)).unwrap();
        assert!(matches!(StateLock::acquire(dir.path()), Err(LockError::Io { .. })));
        assert_eq!(std::fs::read(&victim).unwrap(), b"precious");
    }

    #[test]
    fn rubbish_in_the_lock_file_does_not_matter() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join(LOCK_NAME), [0xff; 100]).unwrap();
        let held = StateLock::acquire(dir.path()).unwrap();
        assert_eq!(held.state_dir(), dir.path());
    }
}
