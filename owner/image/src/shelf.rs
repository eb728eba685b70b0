//! A directory of named things, each a directory of its own with a `manifest.json`.
//!
//! What is being made stands in `.staging-<uuid>` and gets its name by one rename after everything
//! is on disk, so a thing either is there completely or not at all. The manifests are the truth: a
//! list of them is all that is needed to know what exists.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::fs::{RenameFlags, renameat_with};
use serde::Serialize;
use serde::de::DeserializeOwned;

const STAGING: &str = ".staging-";
const MANIFEST: &str = "manifest.json";
/// A manifest is a few KiB, with an image's configuration up to 512 KiB of text that JSON may write
/// in six bytes each; more is not one of ours.
const LARGEST_MANIFEST: u64 = 4 << 20;

/// Why a store could not do its work.
#[derive(Debug, thiserror::Error)]
pub enum ShelfError {
    /// A file operation failed.
    #[error("{action} {path}")]
    File {
        /// What was done.
        action: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The manifest is not one.
    #[error("read the manifest {path}")]
    Manifest {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: serde_json::Error,
    },
    /// The name is taken.
    #[error("{0} exists already")]
    Exists(String),
    /// Nothing has this name.
    #[error("{0} does not exist")]
    Missing(String),
}

/// Adds an operation and a path to an I/O error.
pub(crate) fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> ShelfError {
    let path = path.to_owned();
    move |source| ShelfError::File { action, path, source }
}

/// A directory of named things.
#[derive(Clone, Debug)]
pub(crate) struct Shelf {
    root: PathBuf,
    /// Held by what changes something that is published.
    changes: Arc<Mutex<()>>,
}

/// A thing being made; removed when dropped without [`Shelf::publish`].
#[derive(Debug)]
pub(crate) struct Staging {
    path: PathBuf,
    published: bool,
}

impl Staging {
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        if !self.published
            && let Err(error) = fs::remove_dir_all(&self.path)
        {
            tracing::warn!(path = %self.path.display(), %error, "remove a staging directory");
        }
    }
}

impl Shelf {
    pub(crate) fn open(root: PathBuf) -> Result<Self, ShelfError> {
        fs::create_dir_all(&root).map_err(failed("create", &root))?;
        Ok(Self { root, changes: Arc::default() })
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    /// Returns an error if `name` is taken and must not be replaced.
    pub(crate) fn refuse_taken(&self, name: &str, replace: bool) -> Result<(), ShelfError> {
        if !replace && self.path(name).exists() {
            return Err(ShelfError::Exists(name.to_owned()));
        }
        Ok(())
    }

    pub(crate) fn stage(&self) -> Result<Staging, ShelfError> {
        let path = self.root.join(format!("{STAGING}{}", uuid::Uuid::new_v4()));
        fs::create_dir(&path).map_err(failed("create", &path))?;
        Ok(Staging { path, published: false })
    }

    /// Writes the manifest into `staging` and gives it its name.
    pub(crate) fn publish(
        &self,
        mut staging: Staging,
        name: &str,
        manifest: &impl Serialize,
        replace: bool,
    ) -> Result<(), ShelfError> {
        let path = staging.path.join(MANIFEST);
        let text = serde_json::to_vec_pretty(manifest)
            .map_err(|source| ShelfError::Manifest { path: path.clone(), source })?;
        let mut file = File::create_new(&path).map_err(failed("create", &path))?;
        file.write_all(&text).and_then(|()| file.sync_all()).map_err(failed("write", &path))?;
        sync_directory(&staging.path)?;
        let target = self.path(name);
        let _change = self.change();
        let rename =
            |flags| renameat_with(rustix::fs::CWD, &staging.path, rustix::fs::CWD, &target, flags);
        match rename(RenameFlags::NOREPLACE) {
            Ok(()) => staging.published = true,
            Err(rustix::io::Errno::EXIST) if replace => {
                // The old one is now in the staging directory, which is removed on drop.
                rename(RenameFlags::EXCHANGE)
                    .map_err(|errno| failed("replace", &target)(errno.into()))?;
            }
            Err(rustix::io::Errno::EXIST) => return Err(ShelfError::Exists(name.to_owned())),
            Err(errno) => return Err(failed("create", &target)(errno.into())),
        }
        sync_directory(&self.root)
    }

    fn change(&self) -> MutexGuard<'_, ()> {
        self.changes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts what `change` makes of the manifest of `name` in its place, by one rename; what is
    /// published under the name meanwhile waits.
    pub(crate) fn change_manifest<T: Serialize + DeserializeOwned>(
        &self,
        name: &str,
        change: impl FnOnce(T) -> T,
    ) -> Result<(), ShelfError> {
        let _change = self.change();
        let manifest = change(self.manifest(name)?);
        let directory = self.path(name);
        let (path, staged) = (directory.join(MANIFEST), directory.join(".manifest.json.new"));
        let text = serde_json::to_vec_pretty(&manifest)
            .map_err(|source| ShelfError::Manifest { path: path.clone(), source })?;
        // What a crash left there is overwritten.
        let mut file = File::create(&staged).map_err(failed("create", &staged))?;
        file.write_all(&text).and_then(|()| file.sync_all()).map_err(failed("write", &staged))?;
        fs::rename(&staged, &path).map_err(failed("replace", &path))?;
        sync_directory(&directory)
    }

    /// Reads the manifest of `name`.
    pub(crate) fn manifest<T: DeserializeOwned>(&self, name: &str) -> Result<T, ShelfError> {
        let path = self.path(name).join(MANIFEST);
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(ShelfError::Missing(name.to_owned()));
            }
            Err(error) => return Err(failed("open", &path)(error)),
        };
        let mut text = Vec::new();
        io::Read::read_to_end(&mut io::Read::take(file, LARGEST_MANIFEST), &mut text)
            .map_err(failed("read", &path))?;
        serde_json::from_slice(&text).map_err(|source| ShelfError::Manifest { path, source })
    }

    /// Returns the names of everything published, sorted.
    pub(crate) fn names(&self) -> Result<Vec<String>, ShelfError> {
        let mut names = Vec::new();
        for entry in fs::read_dir(&self.root).map_err(failed("list", &self.root))? {
            let entry = entry.map_err(failed("list", &self.root))?;
            if let Ok(name) = entry.file_name().into_string()
                && !name.starts_with('.')
                && entry.path().join(MANIFEST).exists()
            {
                names.push(name);
            }
        }
        names.sort_unstable();
        Ok(names)
    }

    /// Removes `name`; false if it was not there.
    pub(crate) fn delete(&self, name: &str) -> Result<bool, ShelfError> {
        let path = self.path(name);
        // Out of sight first, so that nobody sees half of it.
        let hidden = self.root.join(format!("{STAGING}{}", uuid::Uuid::new_v4()));
        match fs::rename(&path, &hidden) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            Err(error) => return Err(failed("remove", &path)(error)),
        }
        fs::remove_dir_all(&hidden).map_err(failed("remove", &hidden))?;
        sync_directory(&self.root)?;
        Ok(true)
    }

    /// Removes what an earlier run left unfinished and returns how many there were.
    ///
    /// Only for the start of the daemon: it removes what is being made right now, too.
    pub(crate) fn clean_staging(&self) -> Result<usize, ShelfError> {
        let mut removed = 0;
        for entry in fs::read_dir(&self.root).map_err(failed("list", &self.root))? {
            let entry = entry.map_err(failed("list", &self.root))?;
            if entry.file_name().as_encoded_bytes().starts_with(STAGING.as_bytes()) {
                let path = entry.path();
                fs::remove_dir_all(&path).map_err(failed("remove", &path))?;
                removed += 1;
            }
        }
        Ok(removed)
    }
}

pub(crate) fn sync_directory(path: &Path) -> Result<(), ShelfError> {
    File::open(path).and_then(|directory| directory.sync_all()).map_err(failed("sync", path))
}
