//! What is kept on the host of each machine's workspace: what was carried into it.
//!
//! ```text
//!   workspaces/<id>/lock            one command at a time works on the workspace
//!                  /daemon          which bangerd has the machine
//!                  /base.git        refs/banger/base is what was carried, as a commit without parents
//!                  /history.git     what the guest's repository is made of; base.git borrows its objects
//!                  /modules/<n>.git histories of submodules
//!                  /host, /guest    listings after it was carried: what has changed since is seen
//!                  /refs            branches that the guest was given
//!                  /options         what was wanted of the repository
//!                  /bootstrapped    there where its tools were installed
//!                  /unfinished      there while files are on their way
//!                  /work-*          a throw-away repository of the command that has the lock
//! ```
//! It belongs to the user, as the repository does; the daemon has no part in it. What belongs to
//! machines that are gone is removed by the next command that works on a workspace.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use rustix::fs::FlockOperation;

use crate::error::WorkspaceError;

/// What the names of throw-away repositories begin with.
pub(crate) const WORK: &str = "work-";

/// The repository that the guest's own is made of.
pub(crate) const HISTORY: &str = "history.git";

/// Where the workspaces of one daemon's machines are kept.
#[derive(Clone, Debug)]
pub struct Keeping {
    root: PathBuf,
    daemon: String,
}

/// What is wanted of a repository, beside a branch's name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    /// Untracked files, too.
    pub include_untracked: bool,
    /// The commit that the guest's own branch begins at, as it was named.
    pub from: Option<String>,
}

const OPTIONS: &str = "options";
const BOOTSTRAPPED: &str = "bootstrapped";

/// What is kept of one workspace, locked.
#[derive(Debug)]
pub struct Kept {
    directory: PathBuf,
    root: PathBuf,
    _lock: File,
}

impl Keeping {
    /// Keeps below `root`, for the machines of the daemon that `daemon` names.
    #[must_use]
    pub fn new(root: PathBuf, daemon: String) -> Self {
        Self { root, daemon }
    }

    fn make(&self, directory: &Path) -> Result<(), WorkspaceError> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(directory)
            .map_err(WorkspaceError::keep("make the directory", directory))?;
        fs::write(directory.join("daemon"), &self.daemon)
            .map_err(WorkspaceError::keep("write", directory.join("daemon")))
    }

    /// Opens what is kept of a machine's workspace, or makes an empty place for it; waits while
    /// another command works on it.
    pub fn open(&self, vm: &str) -> Result<Kept, WorkspaceError> {
        let directory = self.root.join(vm);
        loop {
            self.make(&directory)?;
            let lock = lock(&directory, FlockOperation::LockExclusive)?;
            // It may have been removed while we waited.
            if is_of(&lock, &directory) {
                remove_left_work(&directory);
                return Ok(Kept { directory, root: self.root.clone(), _lock: lock });
            }
        }
    }

    /// Makes a place for a machine that is not there yet.
    pub fn begin(&self) -> Result<Kept, WorkspaceError> {
        let directory = self.root.join(format!(".new-{}", std::process::id()));
        let _ = fs::remove_dir_all(&directory);
        self.make(&directory)?;
        let lock = lock(&directory, FlockOperation::LockExclusive)?;
        Ok(Kept { directory, root: self.root.clone(), _lock: lock })
    }

    /// Returns the machines of this daemon that something is kept of. Ask for them before the daemon is
    /// asked which machines there are.
    #[must_use]
    pub fn known(&self) -> Vec<String> {
        let entries = fs::read_dir(&self.root).into_iter().flatten().flatten();
        entries
            .filter(|entry| {
                fs::read_to_string(entry.path().join("daemon"))
                    .is_ok_and(|daemon| daemon == self.daemon)
            })
            .filter_map(|entry| entry.file_name().into_string().ok())
            .collect()
    }

    /// Returns what was wanted of the repository when it was carried into a machine, but for its branch;
    /// nothing else than what is tracked where that is not known.
    #[must_use]
    pub fn wanted(&self, vm: &str) -> Wanted {
        let bytes = fs::read(self.root.join(vm).join(OPTIONS)).unwrap_or_default();
        let json: serde_json::Value = serde_json::from_slice(&bytes).unwrap_or_default();
        Wanted {
            include_untracked: json["include_untracked"].as_bool().unwrap_or_default(),
            from: json["from"].as_str().map(str::to_owned),
        }
    }

    /// Notes that tools were installed for the repository in a machine.
    pub fn set_bootstrapped(&self, vm: &str) -> Result<(), WorkspaceError> {
        let path = self.root.join(vm).join(BOOTSTRAPPED);
        fs::write(&path, "").map_err(WorkspaceError::keep("write", path))
    }

    /// Returns whether they were.
    #[must_use]
    pub fn is_bootstrapped(&self, vm: &str) -> bool {
        self.root.join(vm).join(BOOTSTRAPPED).exists()
    }

    /// Removes what is kept of a machine that is gone, or was never made. What another command works on
    /// stays.
    pub fn remove(&self, vm: &str) -> Result<(), WorkspaceError> {
        let directory = self.root.join(vm);
        if !directory.exists() {
            return Ok(());
        }
        match lock(&directory, FlockOperation::NonBlockingLockExclusive) {
            Ok(_lock) => remove(&directory),
            Err(_) => Ok(()),
        }
    }
}

/// Removes what commands left that were interrupted: nobody works there while the lock is held.
fn remove_left_work(directory: &Path) {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let is_left = |entry: &fs::DirEntry| entry.file_name().as_bytes().starts_with(WORK.as_bytes());
    for entry in entries.filter(is_left) {
        // It takes room and nothing else; the next command tries again.
        let _ = fs::remove_dir_all(entry.path());
    }
}

fn lock(directory: &Path, how: FlockOperation) -> Result<File, WorkspaceError> {
    let path = directory.join("lock");
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path)
        .map_err(WorkspaceError::keep("open", &path))?;
    loop {
        match rustix::fs::flock(&file, how) {
            Ok(()) => return Ok(file),
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(WorkspaceError::keep("lock", path)(error.into())),
        }
    }
}

fn is_of(lock: &File, directory: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    let now = fs::metadata(directory.join("lock"));
    match (lock.metadata(), now) {
        (Ok(held), Ok(now)) => (held.dev(), held.ino()) == (now.dev(), now.ino()),
        _ => false,
    }
}

fn remove(directory: &Path) -> Result<(), WorkspaceError> {
    match fs::remove_dir_all(directory) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(WorkspaceError::keep("remove", directory)(error))
        }
        _ => Ok(()),
    }
}

impl Kept {
    /// Gives a place from [`Keeping::begin`] to the machine that was made meanwhile.
    pub fn assign(mut self, vm: &str) -> Result<Self, WorkspaceError> {
        let to = self.root.join(vm);
        fs::rename(&self.directory, &to).map_err(WorkspaceError::keep("make", &to))?;
        self.directory = to;
        Ok(self)
    }

    /// Removes it.
    pub fn discard(self) -> Result<(), WorkspaceError> {
        remove(&self.directory)
    }

    /// Returns whether something was carried into the machine, and it is known what.
    #[must_use]
    pub fn has_base(&self) -> bool {
        self.path("host").exists() && self.path("guest").exists()
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    pub(crate) fn directory(&self) -> &Path {
        &self.directory
    }

    pub(crate) fn base(&self) -> PathBuf {
        self.path("base.git")
    }

    pub(crate) fn history(&self) -> PathBuf {
        self.path(HISTORY)
    }

    /// Notes what was wanted, so that it is what is carried the next time.
    pub(crate) fn set_wanted(&self, wanted: &Wanted) -> Result<(), WorkspaceError> {
        let json = serde_json::json!({
            "include_untracked": wanted.include_untracked,
            "from": wanted.from,
        });
        let path = self.path(OPTIONS);
        fs::write(&path, json.to_string()).map_err(WorkspaceError::keep("write", path))
    }

    pub(crate) fn is_unfinished(&self) -> bool {
        self.path("unfinished").exists()
    }

    pub(crate) fn set_unfinished(&self, is: bool) -> Result<(), WorkspaceError> {
        let path = self.path("unfinished");
        if is {
            return fs::write(&path, "").map_err(WorkspaceError::keep("write", &path));
        }
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(WorkspaceError::keep("remove", path)(error))
            }
            _ => Ok(()),
        }
    }
}
