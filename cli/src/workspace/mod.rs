//! The user's repository on its way into a machine: the tracked files of a git repository as they
//! are in the working tree, streamed as a tar.
//!
//! A repository may be hostile. Git is asked only for names, with everything off that would run a
//! program or reach the network on the repository's behalf, and files are opened beneath the
//! working tree without following any symbolic link, so nothing outside can be carried along.
//! The `.git` directory itself stays on the host.

mod git;
mod upload;

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use rustix::fs::{Mode, OFlags, ResolveFlags};

pub use upload::upload;

use crate::error::CliError;

/// Where a repository is put in the guest.
pub const GUEST_PATH: &str = "/root/repo";

/// Why a directory cannot be a workspace.
#[derive(Debug, thiserror::Error)]
pub enum WorkspaceError {
    /// The path does not lead to a directory.
    #[error("cannot use {} as a workspace", path.display())]
    Path {
        /// The path.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// No repository.
    #[error("{} is not in the working tree of a git repository", path.display())]
    NotARepository {
        /// The path.
        path: PathBuf,
    },
    /// Nothing there would be in the guest.
    #[error("no file of the repository lies in {}", path.display())]
    NothingTracked {
        /// The path.
        path: PathBuf,
    },
    /// A configuration that points elsewhere.
    #[error("the repository at {} says that its working tree is {}", path.display(), says.display())]
    Elsewhere {
        /// The directory with `.git` in it.
        path: PathBuf,
        /// What git says.
        says: PathBuf,
    },
    /// Git is not installed.
    #[error("cannot run git")]
    NoGit(#[source] io::Error),
    /// Git failed.
    #[error("git {command} failed in {}: {message}", path.display())]
    Git {
        /// The subcommand.
        command: &'static str,
        /// The directory.
        path: PathBuf,
        /// What it said.
        message: String,
    },
    /// Submodules.
    #[error("{} has submodules, such as {}", path.display(), example.display())]
    Submodules {
        /// The repository.
        path: PathBuf,
        /// One of them.
        example: PathBuf,
    },
    /// A file that cannot be read.
    #[error("cannot read {}", path.display())]
    File {
        /// The file, relative to the working tree.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The archive cannot be written on.
    #[error("cannot pack {}", path.display())]
    Pack {
        /// The file, relative to the working tree.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
}

impl From<WorkspaceError> for CliError {
    fn from(error: WorkspaceError) -> Self {
        let mut made = CliError::new(error.to_string());
        if let Some(source) = std::error::Error::source(&error) {
            made = made.because(source);
        }
        match &error {
            WorkspaceError::Path { .. } => {
                made.hint("a command goes after --: banger vm run [PATH] -- COMMAND")
            }
            WorkspaceError::NotARepository { path } => made.hint(format!(
                "git -C {} init, and git add what the machine needs",
                path.display()
            )),
            WorkspaceError::NothingTracked { .. } => {
                made.hint("git add what the machine needs, or --include-untracked")
            }
            WorkspaceError::NoGit(_) => made.hint("apt-get install git"),
            WorkspaceError::Submodules { .. } => made.hint(
                "submodules cannot be carried yet; run banger in the submodule's own directory",
            ),
            WorkspaceError::Elsewhere { .. } => made
                .hint("unset core.worktree; banger reads only below the directory that holds .git"),
            _ => made,
        }
    }
}

/// A working tree and the files of it to carry.
#[derive(Debug)]
pub struct Workspace {
    /// The working tree's top, canonical.
    pub top: PathBuf,
    /// The directory that the user named, relative to `top`; empty where it is the top.
    pub inside: PathBuf,
    /// The commit that is checked out, where there is one.
    pub head: Option<String>,
    /// Untracked files that are not carried.
    pub skipped_untracked: usize,
    files: Vec<PathBuf>,
}

/// What was packed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Packed {
    /// Files and links.
    pub entries: u64,
    /// Bytes of file content.
    pub bytes: u64,
    /// Tracked names that are no file or link any more.
    pub missing: u64,
}

impl Workspace {
    /// Looks at the repository around `path`; reads no file of it yet.
    pub fn open(path: &Path, include_untracked: bool) -> Result<Self, WorkspaceError> {
        let failed = |source| WorkspaceError::Path { path: path.to_owned(), source };
        let canonical = path.canonicalize().map_err(failed)?;
        if !canonical.is_dir() {
            return Err(failed(io::Error::from(io::ErrorKind::NotADirectory)));
        }
        let top = canonical
            .ancestors()
            .find(|directory| directory.join(".git").symlink_metadata().is_ok())
            .ok_or_else(|| WorkspaceError::NotARepository { path: canonical.clone() })?
            .to_owned();
        let inside = canonical.strip_prefix(&top).map(Path::to_owned).unwrap_or_default();
        let says = git::top_level(&top)?;
        if says.canonicalize().ok().as_ref() != Some(&top) {
            return Err(WorkspaceError::Elsewhere { path: top, says });
        }
        let mut files = git::tracked(&top)?;
        let untracked = git::untracked(&top)?;
        let mut skipped_untracked = 0;
        if include_untracked {
            // A name with a slash at its end is a repository of its own.
            files.extend(
                untracked.into_iter().filter(|path| !path.as_os_str().as_bytes().ends_with(b"/")),
            );
            files.sort();
        } else {
            skipped_untracked = untracked.len();
        }
        files.dedup();
        if !inside.as_os_str().is_empty() && !files.iter().any(|file| file.starts_with(&inside)) {
            return Err(WorkspaceError::NothingTracked { path: canonical });
        }
        let head = git::head(&top)?;
        Ok(Self { top, inside, head, skipped_untracked, files })
    }

    /// Returns how many names there are to carry.
    pub fn len(&self) -> usize {
        self.files.len()
    }

    /// Returns the directory in the guest that is the user's own.
    pub fn guest_directory(&self) -> Vec<u8> {
        let mut path = PathBuf::from(GUEST_PATH);
        if !self.inside.as_os_str().is_empty() {
            path.push(&self.inside);
        }
        path.into_os_string().into_encoded_bytes()
    }

    /// Writes everything as one tar.
    pub fn write_tar(&self, writer: impl Write) -> Result<Packed, WorkspaceError> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let top = rustix::fs::open(&self.top, flags, Mode::empty()).map_err(|error| {
            WorkspaceError::Path { path: self.top.clone(), source: error.into() }
        })?;
        let mut archive = tar::Builder::new(writer);
        archive.mode(tar::HeaderMode::Complete);
        let mut packed = Packed::default();
        let mut last_parent = PathBuf::new();
        for path in &self.files {
            let Some(entry) = open_beneath(&top, path)? else {
                packed.missing += 1;
                continue;
            };
            let parent = path.parent().unwrap_or(Path::new(""));
            if parent != last_parent {
                append_parents(&mut archive, &last_parent, parent)?;
                last_parent = parent.to_owned();
            }
            packed.bytes += append(&mut archive, path, entry)?;
            packed.entries += 1;
        }
        let top = || self.top.clone();
        let mut writer =
            archive.into_inner().map_err(|source| WorkspaceError::Pack { path: top(), source })?;
        writer.flush().map_err(|source| WorkspaceError::Pack { path: top(), source })?;
        Ok(packed)
    }
}

/// One name of the working tree, held open.
enum Entry {
    File(File, std::fs::Metadata),
    Link(Vec<u8>),
}

/// Opens a name without following a link anywhere in it; `None` where no file or link is there.
fn open_beneath(
    top: &impl std::os::fd::AsFd,
    path: &Path,
) -> Result<Option<Entry>, WorkspaceError> {
    use rustix::io::Errno;
    let failed = |source: io::Error| WorkspaceError::File { path: path.to_owned(), source };
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    // O_PATH first: opening a fifo or a device for reading has effects.
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let held = match rustix::fs::openat2(top, path, flags, Mode::empty(), resolve) {
        Ok(held) => held,
        // Deleted, or below what is a link or a file now: git calls it deleted too.
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::XDEV) => return Ok(None),
        Err(error) => return Err(failed(error.into())),
    };
    let metadata = File::from(held.try_clone().map_err(failed)?).metadata().map_err(failed)?;
    let kind = metadata.file_type();
    if kind.is_symlink() {
        let target =
            rustix::fs::readlinkat(&held, c"", Vec::new()).map_err(|error| failed(error.into()))?;
        return Ok(Some(Entry::Link(target.into_bytes())));
    }
    if !kind.is_file() {
        debug_assert!(
            kind.is_dir()
                || kind.is_fifo()
                || kind.is_socket()
                || kind.is_block_device()
                || kind.is_char_device()
        );
        return Ok(None);
    }
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = rustix::fs::openat2(top, path, flags, Mode::empty(), resolve)
        .map_err(|error| failed(error.into()))?;
    let file = File::from(file);
    let metadata = file.metadata().map_err(failed)?;
    if !metadata.is_file() {
        return Ok(None);
    }
    Ok(Some(Entry::File(file, metadata)))
}

/// Appends the directories of `parent` that `earlier` does not share.
fn append_parents<W: Write>(
    archive: &mut tar::Builder<W>,
    earlier: &Path,
    parent: &Path,
) -> Result<(), WorkspaceError> {
    let mut ancestors: Vec<&Path> =
        parent.ancestors().filter(|path| !path.as_os_str().is_empty()).collect();
    ancestors.reverse();
    for directory in ancestors {
        if earlier.starts_with(directory) {
            continue;
        }
        let mut header = header(tar::EntryType::Directory, 0o755, 0, now());
        archive
            .append_data(&mut header, directory, io::empty())
            .map_err(|source| WorkspaceError::Pack { path: directory.to_owned(), source })?;
    }
    Ok(())
}

fn append<W: Write>(
    archive: &mut tar::Builder<W>,
    path: &Path,
    entry: Entry,
) -> Result<u64, WorkspaceError> {
    let packing = |source| WorkspaceError::Pack { path: path.to_owned(), source };
    match entry {
        Entry::Link(target) => {
            let mut header = header(tar::EntryType::Symlink, 0o777, 0, now());
            // Byte for byte where it fits the header; append_link would tidy the target up.
            if header.set_link_name_literal(&target).is_ok() {
                archive.append_data(&mut header, path, io::empty()).map_err(packing)?;
            } else {
                archive
                    .append_link(&mut header, path, Path::new(OsStr::from_bytes(&target)))
                    .map_err(packing)?;
            }
            Ok(0)
        }
        Entry::File(file, metadata) => {
            let mode = if metadata.mode() & 0o100 == 0 { 0o644 } else { 0o755 };
            let size = metadata.len();
            let modified = u64::try_from(metadata.mtime()).unwrap_or(0);
            let mut header = header(tar::EntryType::Regular, mode, size, modified);
            // The header promises `size` bytes, whatever happens to the file meanwhile.
            let exact = file.take(size).chain(io::repeat(0)).take(size);
            archive.append_data(&mut header, path, exact).map_err(packing)?;
            Ok(size)
        }
    }
}

/// The time of directories and links, which git does not keep and a checkout makes anew.
fn now() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    since.map_or(0, |since| since.as_secs())
}

fn header(kind: tar::EntryType, mode: u32, size: u64, modified: u64) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(size);
    header.set_mtime(modified);
    header.set_uid(0);
    header.set_gid(0);
    header
}

#[cfg(test)]
mod tests;
