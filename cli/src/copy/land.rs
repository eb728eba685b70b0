//! A tree from a guest, landing on this host.
//!
//! Every entry is a stranger's: it may come in any order, lie about itself, name anything and never
//! end. So every path is resolved by the kernel beneath the target, without following any link
//! ([`crate::beneath`]); only files, directories and links are made; nothing gets a set-user-id bit;
//! names are bounded; a file is whole before it takes its place, so nothing is written through a
//! link; and a hard link leads only to a file of the same copy.

use std::collections::HashSet;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{AtFlags, Mode, OFlags, Timespec, Timestamps};
use rustix::io::Errno;
use tar::EntryType;

use super::endpoint::Ending;
use super::{Arrival, Tally};
use crate::beneath;
use crate::error::CliError;
use crate::table;

/// Longest path, longest name, most entries of a copy and most directories that entries only imply:
/// bounds for an enemy.
const PATH_LIMIT: u64 = 4096;
const ENTRY_LIMIT: u64 = 2_000_000;
/// Records of an archive to an entry: the entry, its long name and its long link.
const RECORDS: u64 = 3;
/// Permissions that are kept; a guest's set-user-id program must not become one of this host.
const KEPT_MODE: u32 = 0o777;
/// The latest time that is kept (2106-02-07), which every file system can hold.
const LATEST: u64 = u32::MAX as u64;

/// What is at the target of a copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum There {
    /// A directory.
    Directory,
    /// Something else.
    File,
    /// Nothing.
    Nothing,
}

/// Where a copy goes: the path, and what is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// What is there.
    pub there: There,
    /// What the path's end says.
    pub ending: Ending,
}

/// The directory that a copy goes into.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Into {
    /// The target itself.
    Target,
    /// The directory that holds the target.
    Parent,
}

impl Target {
    /// Decides, as `docker cp` does, where a source called `name` arrives at the target, which is
    /// called `own_name`.
    pub fn place(
        &self,
        (is_directory, contents): (bool, bool),
        name: Option<&Path>,
        own_name: Option<&Path>,
    ) -> Result<(Into, Arrival), &'static str> {
        let own = || own_name.map(|name| Arrival::Named(name.to_owned())).ok_or("it has no name");
        match self.there {
            There::Directory if contents => Ok((Into::Target, Arrival::Contents)),
            There::Directory => {
                let arrival = name.map(|name| Arrival::Named(name.to_owned()));
                Ok((Into::Target, arrival.unwrap_or(Arrival::Contents)))
            }
            There::File if is_directory => Err("it is no directory, and the source is one"),
            There::File if self.ending.directory => Err("it is no directory"),
            There::Nothing if self.ending.directory && !is_directory => {
                Err("there is no such directory")
            }
            There::File | There::Nothing => Ok((Into::Parent, own()?)),
        }
    }
}

/// A place of this host where a copy lands.
#[derive(Debug)]
pub struct Landing {
    /// What the user named, for messages.
    pub path: PathBuf,
    /// The path with which every entry begins.
    pub root: PathBuf,
    /// What the source is called, where it has a name.
    pub name: Option<PathBuf>,
    /// Whether what a directory holds is meant, not the directory.
    pub contents: bool,
    /// Whether the machine has said that the source is no link, or was told to follow it.
    pub is_no_link: bool,
}

impl Landing {
    /// Unpacks a tar stream.
    pub fn unpack(self, source: impl Read) -> Result<Tally, CliError> {
        let failed = |error: &io::Error| {
            CliError::new(format!("cannot copy to {}", self.path.display())).because(error)
        };
        let mut archive = tar::Archive::new(source);
        // Raw, because the tar crate gathers a long name in memory however long it is.
        let entries = archive.entries().map_err(|error| failed(&error))?.raw(true);
        let mut state = Unpacking::default();
        let mut result = Ok(());
        for entry in entries {
            result = entry.and_then(|entry| self.take(entry, &mut state));
            if result.is_err() {
                break;
            }
        }
        let Some(mut unpacker) = state.unpacker else {
            let empty = io::Error::other("the machine sent nothing");
            return Err(failed(&result.err().unwrap_or(empty)));
        };
        unpacker.leave(None);
        result.map_err(|error| failed(&error))?;
        Ok(unpacker.tally)
    }

    /// Unpacks an entry, or keeps the long name that it holds for the next one.
    fn take(&self, mut entry: tar::Entry<'_, impl Read>, state: &mut Unpacking) -> io::Result<()> {
        state.records += 1;
        if state.records > RECORDS * ENTRY_LIMIT {
            return Err(too_many());
        }
        match entry.header().entry_type() {
            EntryType::GNULongName => {
                state.long_name = Some(long(&mut entry)?);
                return Ok(());
            }
            EntryType::GNULongLink => {
                state.long_link = Some(long(&mut entry)?);
                return Ok(());
            }
            _ => {}
        }
        let header = entry.header();
        let path = state.long_name.take().unwrap_or_else(|| header.path_bytes().into_owned());
        let short_link = || header.link_name_bytes().map(|link| link.into_owned());
        let link = state.long_link.take().or_else(short_link);
        let unpacker = match &mut state.unpacker {
            Some(unpacker) => unpacker,
            none => none.insert(self.begin(header.entry_type())?),
        };
        let path = PathBuf::from(OsString::from_vec(path));
        let link = PathBuf::from(OsString::from_vec(link.unwrap_or_default()));
        unpacker.entry(&path, &link, &mut entry).map_err(|error| {
            let shown = table::printable(&path.to_string_lossy());
            io::Error::new(error.kind(), format!("{shown}: {error}"))
        })
    }

    /// Decides where it goes, now that it is known whether it is a directory.
    ///
    /// A link at the target may be one that an earlier copy brought, so that none is ever followed: a
    /// file takes its place, and into a directory behind it nothing goes.
    fn begin(&self, kind: EntryType) -> io::Result<Unpacker> {
        if kind == EntryType::Symlink && self.is_no_link {
            return Err(io::Error::other("the machine sent a link for what it said is none"));
        }
        let is_directory = kind == EntryType::Directory;
        // Without the slash or dot at its end, which would follow a link.
        let path = self.path.components().collect::<PathBuf>();
        let there = match path.symlink_metadata() {
            Ok(metadata) if metadata.is_dir() => There::Directory,
            Ok(metadata) if metadata.is_symlink() && path.is_dir() => {
                return Err(io::Error::other("it is a link; name the directory that it leads to"));
            }
            Ok(_) => There::File,
            Err(error) if error.kind() == io::ErrorKind::NotFound => There::Nothing,
            Err(error) => return Err(error),
        };
        let target = Target { there, ending: Ending::of(self.path.as_os_str().as_bytes()) };
        let (into, arrival) = target
            .place(
                (is_directory, self.contents),
                self.name.as_deref(),
                path.file_name().map(Path::new),
            )
            .map_err(io::Error::other)?;
        let directory = match into {
            Into::Target => path.as_path(),
            Into::Parent => match path.parent() {
                Some(parent) if !parent.as_os_str().is_empty() => parent,
                _ => Path::new("."),
            },
        };
        let no_follow = match into {
            Into::Target => OFlags::NOFOLLOW,
            Into::Parent => OFlags::empty(),
        };
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | no_follow;
        let tree = rustix::fs::open(directory, flags, Mode::empty()).map_err(|error| {
            let error = io::Error::from(error);
            io::Error::new(error.kind(), format!("open directory {}: {error}", directory.display()))
        })?;
        Ok(Unpacker {
            tree,
            root: self.root.clone(),
            prefix: match arrival {
                Arrival::Named(name) => name,
                Arrival::Contents => PathBuf::new(),
            },
            tally: Tally::default(),
            made: HashSet::new(),
            open: Vec::new(),
            kept_mode: KEPT_MODE & !umask(),
            implied: 0,
            temporary: OsString::from(format!(".banger-{}", std::process::id())),
        })
    }
}

/// Returns this process's mask of permissions (`Umask` of proc_pid_status(5)): umask(2) can only be
/// asked by changing it. What a guest says of its files is the user's wish no more than a script's.
fn umask() -> u32 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("Umask:"));
    mask.and_then(|mask| u32::from_str_radix(mask.trim(), 8).ok()).unwrap_or(0o022)
}

fn too_many() -> io::Error {
    io::Error::other(format!("there are over {ENTRY_LIMIT} entries"))
}

/// Reads a name that did not fit its header.
fn long(entry: &mut impl Read) -> io::Result<Vec<u8>> {
    let mut name = Vec::new();
    entry.take(PATH_LIMIT + 2).read_to_end(&mut name)?;
    if name.pop() != Some(0) || name.len() as u64 > PATH_LIMIT {
        return Err(io::Error::other(format!("a name is over {PATH_LIMIT} bytes long")));
    }
    Ok(name)
}

/// What is known while a stream is read.
#[derive(Default)]
struct Unpacking {
    unpacker: Option<Unpacker>,
    long_name: Option<Vec<u8>>,
    long_link: Option<Vec<u8>>,
    records: u64,
}

struct Unpacker {
    tree: OwnedFd,
    root: PathBuf,
    prefix: PathBuf,
    tally: Tally,
    /// Files of this copy, by device and inode: what a hard link may lead to.
    made: HashSet<(u64, u64)>,
    /// Directories of this copy that entries still go into, with the mode and time each gets when
    /// it is left: until then it must be writable, and making an entry changes its time.
    open: Vec<(PathBuf, Mode, i64)>,
    /// The permissions that an entry may have.
    kept_mode: u32,
    /// Directories that were made because an entry lies in them.
    implied: u64,
    /// What a file is called until it is whole.
    temporary: OsString,
}

impl Unpacker {
    fn entry(
        &mut self,
        raw: &Path,
        link: &Path,
        entry: &mut tar::Entry<'_, impl Read>,
    ) -> io::Result<()> {
        if self.tally.entries >= ENTRY_LIMIT {
            return Err(too_many());
        }
        let path = self.within(raw)?;
        self.leave(Some(&path));
        let header = entry.header();
        let kind = header.entry_type();
        let mode = Mode::from_raw_mode(header.mode().unwrap_or(0o644) & self.kept_mode);
        let time = header.mtime().unwrap_or(0).min(LATEST);
        let time = i64::try_from(time).unwrap_or(0);
        if path.as_os_str().is_empty() {
            // The target directory itself is the user's, and stays as it is.
            return match kind {
                EntryType::Directory => Ok(()),
                _ => Err(io::Error::other("it takes the place of the target")),
            };
        }
        match kind {
            EntryType::Directory => self.directory(&path, mode, time)?,
            EntryType::Regular | EntryType::Continuous => {
                let size = header.entry_size()?;
                self.file(&path, (mode, time, size), entry)?;
            }
            EntryType::Symlink => self.symbolic_link(&path, link, time)?,
            EntryType::Link => {
                let target = self.within(link)?;
                self.hard_link(&path, &target)?;
            }
            // A fifo is nothing to copy; the guest's agent sends no other.
            EntryType::Fifo => {
                self.tally.left_out += 1;
                return Ok(());
            }
            _ => return Err(io::Error::other("it is no file, directory or link")),
        }
        self.tally.entries += 1;
        Ok(())
    }

    /// Turns an archive's path into one below the tree.
    fn within(&self, raw: &Path) -> io::Result<PathBuf> {
        if raw.as_os_str().len() as u64 > PATH_LIMIT {
            return Err(io::Error::other(format!("the path is over {PATH_LIMIT} bytes long")));
        }
        if raw.as_os_str().as_bytes().contains(&0) {
            return Err(io::Error::other("the path holds a NUL byte"));
        }
        let mut plain = PathBuf::new();
        for component in raw.components() {
            match component {
                Component::Normal(name) => plain.push(name),
                Component::CurDir => {}
                _ => return Err(io::Error::other("the path leaves the tree")),
            }
        }
        let below = plain
            .strip_prefix(&self.root)
            .map_err(|_| io::Error::other("it is not of what was asked for"))?;
        // Joining nothing would leave a slash at the end.
        Ok(if below.as_os_str().is_empty() { self.prefix.clone() } else { self.prefix.join(below) })
    }

    /// Sets the modes and times of the directories that `next` does not lie in.
    fn leave(&mut self, next: Option<&Path>) {
        while let Some((path, mode, time)) =
            self.open.pop_if(|(path, ..)| !next.is_some_and(|next| next.starts_with(&*path)))
        {
            if let Ok(directory) = self.at(&path) {
                let _ = rustix::fs::futimens(&directory, &times(time));
                let _ = rustix::fs::fchmod(&directory, mode);
            }
        }
    }

    /// Opens a directory of the tree.
    fn at(&self, path: &Path) -> io::Result<OwnedFd> {
        let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
        beneath::open(&self.tree, path, OFlags::RDONLY | OFlags::DIRECTORY).map_err(|error| {
            match error {
                Errno::LOOP | Errno::XDEV => io::Error::other("it leads through a link"),
                Errno::NOTDIR => io::Error::other("it leads through what is no directory"),
                error => error.into(),
            }
        })
    }

    /// Opens the directory that `path` lies in, made where it is missing, and its name there.
    fn parent<'p>(&mut self, path: &'p Path) -> io::Result<(OwnedFd, &'p OsStr)> {
        let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?;
        let parent = path.parent().unwrap_or(Path::new(""));
        match self.at(parent) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            other => return Ok((other?, name)),
        }
        let mut current = PathBuf::new();
        for component in parent.components() {
            let above = self.at(&current)?;
            match rustix::fs::mkdirat(&above, component.as_os_str(), Mode::from_raw_mode(0o777)) {
                Ok(()) => {
                    self.implied += 1;
                    if self.implied > ENTRY_LIMIT {
                        return Err(too_many());
                    }
                }
                Err(Errno::EXIST) => {}
                Err(error) => return Err(error.into()),
            }
            current.push(component);
        }
        Ok((self.at(parent)?, name))
    }

    fn directory(&mut self, path: &Path, mode: Mode, time: i64) -> io::Result<()> {
        let (parent, name) = self.parent(path)?;
        match rustix::fs::mkdirat(&parent, name, Mode::from_raw_mode(0o700)) {
            Ok(()) => {
                self.open.push((path.to_owned(), mode, time));
                Ok(())
            }
            // The user's own, or one that came before: it stays as it is.
            Err(Errno::EXIST) => self.at(path).map(drop),
            Err(error) => Err(error.into()),
        }
    }

    fn file(
        &mut self,
        path: &Path,
        (mode, time, size): (Mode, i64, u64),
        content: &mut impl Read,
    ) -> io::Result<()> {
        let (parent, name) = self.parent(path)?;
        let _ = rustix::fs::unlinkat(&parent, &self.temporary, AtFlags::empty());
        let flags =
            OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let private = Mode::from_raw_mode(0o600);
        let file = rustix::fs::openat(&parent, &self.temporary, flags, private)?;
        let mut file = File::from(file);
        let result = io::copy(content, &mut file).and_then(|bytes| {
            if bytes != size {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            rustix::fs::fchmod(&file, mode)?;
            rustix::fs::futimens(&file, &times(time))?;
            rustix::fs::renameat(&parent, &self.temporary, &parent, name)?;
            Ok(bytes)
        });
        match result {
            Ok(bytes) => {
                self.tally.bytes += bytes;
                let metadata = file.metadata()?;
                self.made.insert((metadata.dev(), metadata.ino()));
                Ok(())
            }
            Err(error) => {
                let _ = rustix::fs::unlinkat(&parent, &self.temporary, AtFlags::empty());
                Err(error)
            }
        }
    }

    fn symbolic_link(&mut self, path: &Path, target: &Path, time: i64) -> io::Result<()> {
        let (parent, name) = self.parent(path)?;
        let _ = rustix::fs::unlinkat(&parent, &self.temporary, AtFlags::empty());
        // Its target is text that nothing here follows.
        rustix::fs::symlinkat(target, &parent, &self.temporary)?;
        let no_follow = AtFlags::SYMLINK_NOFOLLOW;
        let _ = rustix::fs::utimensat(&parent, &self.temporary, &times(time), no_follow);
        self.take_place(&parent, name)
    }

    fn hard_link(&mut self, path: &Path, target: &Path) -> io::Result<()> {
        if path == target {
            return Ok(());
        }
        let (from, from_name) = self.parent(target)?;
        let held = File::from(beneath::open(&from, from_name, OFlags::PATH | OFlags::NOFOLLOW)?);
        let metadata = held.metadata()?;
        if !self.made.contains(&(metadata.dev(), metadata.ino())) {
            return Err(io::Error::other("it links to a file that is not of this copy"));
        }
        let (parent, name) = self.parent(path)?;
        let _ = rustix::fs::unlinkat(&parent, &self.temporary, AtFlags::empty());
        // The file that was looked at, whatever has its name now (the way of open(2) with O_PATH).
        let looked_at = format!("/proc/self/fd/{}", held.as_raw_fd());
        let (cwd, follow) = (rustix::fs::CWD, AtFlags::SYMLINK_FOLLOW);
        rustix::fs::linkat(cwd, &looked_at, &parent, &self.temporary, follow)?;
        self.take_place(&parent, name)?;
        // Renaming one name of a file to another of its names does nothing (rename(2)).
        let _ = rustix::fs::unlinkat(&parent, &self.temporary, AtFlags::empty());
        Ok(())
    }

    fn take_place(&self, parent: &OwnedFd, name: &OsStr) -> io::Result<()> {
        rustix::fs::renameat(parent, &self.temporary, parent, name).map_err(|error| {
            let _ = rustix::fs::unlinkat(parent.as_fd(), &self.temporary, AtFlags::empty());
            error.into()
        })
    }
}

fn times(seconds: i64) -> Timestamps {
    let time = Timespec { tv_sec: seconds, tv_nsec: 0 };
    Timestamps { last_access: time, last_modification: time }
}

#[cfg(test)]
mod tests;
