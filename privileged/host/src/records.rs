//! What the helper itself must remember over a restart: one JSON file per thing, in a directory
//! that only root can enter, written whole or not at all.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::{During, HostError, LIST, Result, unlink};

/// A record is a few hundred bytes; a longer file is none.
const LONGEST: u64 = 64 << 10;

/// The directory of the records. `kind` and `name` are the helper's own words or proven names.
#[derive(Debug)]
pub(crate) struct Records {
    directory: OwnedFd,
    path: PathBuf,
}

impl Records {
    /// Opens the directory, made first where it is not there.
    pub(crate) fn open(own: &Path) -> Result<Self> {
        let path = own.join("records");
        match rustix::fs::mkdir(&path, Mode::RWXU) {
            Ok(()) | Err(rustix::io::Errno::EXIST) => {}
            Err(errno) => return Err(HostError::of("make", path.display())(errno)),
        }
        let directory = rustix::fs::open(&path, LIST, Mode::empty());
        let directory = directory.during("open", path.display())?;
        let stat = rustix::fs::fstat(&directory).during("open", path.display())?;
        if stat.st_uid != 0 || stat.st_mode & 0o022 != 0 {
            return Err(HostError::of("use", path.display())("it is not root's alone"));
        }
        Ok(Self { directory, path })
    }

    fn file(kind: &str, name: &str) -> String {
        format!("{kind}.{name}.json")
    }

    /// Writes a record, in place of an older one of the same name.
    pub(crate) fn put(&self, kind: &str, name: &str, record: &impl Serialize) -> Result<()> {
        let file = Self::file(kind, name);
        let write = || -> io::Result<()> {
            let staged = format!(".{file}.{:?}", std::thread::current().id());
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::CLOEXEC;
            let mode = Mode::RUSR | Mode::WUSR;
            let mut opened = File::from(rustix::fs::openat(&self.directory, &staged, flags, mode)?);
            opened.write_all(&serde_json::to_vec(record)?)?;
            opened.sync_all()?;
            rustix::fs::renameat(&self.directory, &staged, &self.directory, &file)?;
            Ok(())
        };
        write().during("write", self.path.join(&file).display())
    }

    /// Reads a record; none if there is none, or what is there is not one.
    pub(crate) fn get<T: DeserializeOwned>(&self, kind: &str, name: &str) -> Option<T> {
        self.read(&Self::file(kind, name))
    }

    fn read<T: DeserializeOwned>(&self, file: &str) -> Option<T> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let opened = rustix::fs::openat(&self.directory, file, flags, Mode::empty()).ok()?;
        // Most are shorter, and read at once.
        let mut bytes = Vec::with_capacity(1 << 10);
        File::from(opened).take(LONGEST).read_to_end(&mut bytes).ok()?;
        serde_json::from_slice(&bytes).ok()
    }

    /// Forgets a record, which need not be there.
    pub(crate) fn remove(&self, kind: &str, name: &str) -> Result<()> {
        let file = Self::file(kind, name);
        unlink(&self.directory, &file).during("remove", self.path.join(&file).display())
    }

    /// All records of a kind, with their names.
    pub(crate) fn all<T: DeserializeOwned>(&self, kind: &str) -> Vec<(String, T)> {
        let Ok(entries) = rustix::fs::Dir::read_from(&self.directory) else { return Vec::new() };
        let mut found = Vec::new();
        for entry in entries.flatten() {
            let Ok(file) = entry.file_name().to_str() else { continue };
            let name = file.strip_prefix(kind).and_then(|rest| rest.strip_prefix('.'));
            let Some(name) = name.and_then(|name| name.strip_suffix(".json")) else { continue };
            found.extend(self.read(file).map(|record| (name.to_owned(), record)));
        }
        found
    }
}
