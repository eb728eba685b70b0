//! Goes through a directory tree, or to some names of it, without following a link.

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use banger_agent_api::AgentError;
use rustix::fs::{AtFlags, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;

use super::tree::{Tree, plain_path, tree_error};

/// Deepest directory that is gone into; each level holds a descriptor.
const DEPTH_LIMIT: usize = 200;

/// A name that was found.
pub(super) struct Found<'a> {
    /// The directory that holds it.
    pub parent: BorrowedFd<'a>,
    pub name: &'a OsStr,
    /// Where it is, relative to where the walk began.
    pub path: &'a Path,
    pub stat: Stat,
}

impl Found<'_> {
    pub fn kind(&self) -> FileType {
        FileType::from_raw_mode(self.stat.st_mode)
    }
}

/// Calls `visit` with what is in a directory, whose own path is `path`, and with what is in those
/// directories for which it returns true. What goes meanwhile is left out. `operation` names it for errors.
pub(super) fn below(
    operation: &str,
    directory: BorrowedFd<'_>,
    path: &mut PathBuf,
    visit: &mut dyn FnMut(&Found<'_>) -> Result<bool, AgentError>,
) -> Result<(), AgentError> {
    below_at(operation, directory, path, 0, visit)
}

fn below_at(
    operation: &str,
    directory: BorrowedFd<'_>,
    path: &mut PathBuf,
    depth: usize,
    visit: &mut dyn FnMut(&Found<'_>) -> Result<bool, AgentError>,
) -> Result<(), AgentError> {
    let failed = |path: &Path, error: Errno| tree_error(operation, path, &error.into());
    if depth >= DEPTH_LIMIT {
        let error = io::Error::other(format!("it is over {DEPTH_LIMIT} directories deep"));
        return Err(tree_error(operation, path, &error));
    }
    for entry in rustix::fs::Dir::read_from(directory).map_err(|error| failed(path, error))? {
        let entry = entry.map_err(|error| failed(path, error))?;
        let name = OsStr::from_bytes(entry.file_name().to_bytes());
        if name == "." || name == ".." {
            continue;
        }
        path.push(name);
        let goes_on = match rustix::fs::statat(directory, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => {
                let found = Found { parent: directory, name, path, stat };
                visit(&found)? && found.kind() == FileType::Directory
            }
            // Gone since its directory was read.
            Err(Errno::NOENT) => false,
            Err(error) => return Err(failed(path, error)),
        };
        if goes_on {
            match open(directory, name) {
                Ok(inner) => below_at(operation, inner.as_fd(), path, depth + 1, visit)?,
                // Gone, or something else by now.
                Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => {}
                Err(error) => return Err(failed(path, error)),
            }
        }
        path.pop();
    }
    Ok(())
}

/// Opens a directory that is in another one.
pub(super) fn open(parent: BorrowedFd<'_>, name: &OsStr) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(parent, name, flags, Mode::empty())
}

/// Calls `visit` with one name of a tree; one that is not there is left out.
pub(super) fn named(
    operation: &str,
    tree: &Tree,
    name: &Path,
    visit: impl FnOnce(&Found<'_>) -> Result<(), AgentError>,
) -> Result<(), AgentError> {
    let failed = |error: io::Error| tree_error(operation, name, &error);
    let plain = plain_path(name).filter(|plain| plain.file_name().is_some());
    let plain = plain.ok_or_else(|| failed(io::ErrorKind::InvalidInput.into()))?;
    let (parent, last) = match tree.parent(&plain, false) {
        Ok(found) => found,
        Err(error) if is_gone(&error) => return Ok(()),
        Err(error) => return Err(failed(error)),
    };
    match rustix::fs::statat(&parent, last, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => visit(&Found { parent: parent.as_fd(), name: last, path: &plain, stat }),
        Err(Errno::NOENT) => Ok(()),
        Err(error) => Err(failed(error.into())),
    }
}

/// Whether a directory on the way is gone, or is a file or a link now.
fn is_gone(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error().map(Errno::from_raw_os_error),
        Some(Errno::NOENT | Errno::NOTDIR | Errno::LOOP)
    )
}
