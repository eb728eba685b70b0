//! The files a QEMU has in its runtime directory.
//!
//! | name | made by | what |
//! |---|---|---|
//! | `qmp.sock` | us | monitor; QEMU inherits the listening socket as its descriptor 0 |
//! | `agent.sock` | QEMU | the guest's virtio-serial port |
//! | `console.sock` | QEMU | the guest's serial console |
//! | `stderr.fifo` | us | QEMU's standard error; see [`super::last_words`] |
//! | `last-words` | us | the end of what QEMU wrote there |
//!
//! The directory itself (0700, checked) is what keeps other users from these.

use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use banger_engine::seams::VmmError;

/// The most bytes a socket's path can have: `sun_path` has 108 with the closing NUL (unix(7)).
const SOCKET_PATH_LIMIT: usize = 107;

/// The paths of one QEMU's files.
#[derive(Clone, Debug)]
pub(crate) struct RuntimeFiles {
    pub(crate) monitor: PathBuf,
    pub(crate) agent: PathBuf,
    pub(crate) console: PathBuf,
    pub(crate) stderr: PathBuf,
    pub(crate) last_words: PathBuf,
}

impl RuntimeFiles {
    pub(crate) fn below(directory: &Path) -> Self {
        Self {
            monitor: directory.join("qmp.sock"),
            agent: directory.join("agent.sock"),
            console: directory.join("console.sock"),
            stderr: directory.join("stderr.fifo"),
            last_words: directory.join("last-words"),
        }
    }

    fn all(&self) -> [&Path; 5] {
        [&self.monitor, &self.agent, &self.console, &self.stderr, &self.last_words]
    }

    /// Checks that the directory exists, is private to us and short enough for sockets.
    pub(crate) fn check_directory(&self, directory: &Path) -> Result<(), VmmError> {
        let refuse = |problem: String| VmmError::Io {
            act: format!("using runtime directory {}", directory.display()),
            source: io::Error::new(io::ErrorKind::InvalidInput, problem),
        };
        let longest = self.all().map(|path| path.as_os_str().as_bytes().len());
        let longest = longest.into_iter().max().unwrap_or_default();
        if !directory.is_absolute() {
            return Err(refuse("the path is not absolute".to_owned()));
        }
        if longest > SOCKET_PATH_LIMIT {
            let over = longest - SOCKET_PATH_LIMIT;
            return Err(refuse(format!(
                "the path is {over} bytes too long: a socket's path has at most \
                 {SOCKET_PATH_LIMIT} bytes (set BANGER_RUNTIME_DIR to a shorter one)"
            )));
        }
        let metadata = std::fs::symlink_metadata(directory).map_err(|source| VmmError::Io {
            act: format!("using runtime directory {}", directory.display()),
            source,
        })?;
        if !metadata.is_dir() {
            return Err(refuse("it is not a directory".to_owned()));
        }
        if metadata.mode() & 0o077 != 0 || metadata.uid() != rustix::process::geteuid().as_raw() {
            return Err(refuse("it is not this user's alone (mode 0700)".to_owned()));
        }
        Ok(())
    }

    /// Removes what is there; returns whether there was anything. Goes on past a failure and
    /// reports the first.
    pub(crate) fn remove(&self) -> Result<bool, VmmError> {
        let mut any = false;
        let mut failure = None;
        for path in self.all() {
            match std::fs::remove_file(path) {
                Ok(()) => any = true,
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(source) => {
                    let act = format!("removing {}", path.display());
                    failure.get_or_insert(VmmError::Io { act, source });
                }
            }
        }
        failure.map_or(Ok(any), Err)
    }
}

#[cfg(test)]
mod tests {
    use std::fs::Permissions;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn refusal(directory: &Path) -> String {
        let error = RuntimeFiles::below(directory).check_directory(directory).unwrap_err();
        let source = std::error::Error::source(&error).unwrap();
        format!("{error}: {source}")
    }

    #[test]
    fn only_a_short_private_directory_will_do() {
        let temporary = tempfile::tempdir().unwrap();
        let directory = temporary.path();
        std::fs::set_permissions(directory, Permissions::from_mode(0o700)).unwrap();
        RuntimeFiles::below(directory).check_directory(directory).unwrap();

        std::fs::set_permissions(directory, Permissions::from_mode(0o750)).unwrap();
        assert!(refusal(directory).contains("this user's alone"));
        assert!(refusal(Path::new("relative")).contains("not absolute"));
        assert!(refusal(&directory.join("x".repeat(120))).contains("too long"));
        assert!(refusal(&directory.join("missing")).contains("No such file"));
        let file = directory.join("file");
        std::fs::write(&file, "").unwrap();
        assert!(refusal(&file).contains("not a directory"));
    }

    #[test]
    fn removing_twice_says_false_the_second_time() {
        let directory = tempfile::tempdir().unwrap();
        let files = RuntimeFiles::below(directory.path());
        std::fs::write(&files.last_words, "x").unwrap();
        assert!(files.remove().unwrap());
        assert!(!files.remove().unwrap());
    }
}
