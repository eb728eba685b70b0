//! Directories of a guest that are where a file of the host's is to come.
//!
//! The agent makes no file where a directory is, and removes a directory only when it is empty. So it is
//! told to remove what is in such a directory, and the directory itself, before it gets the file.

use std::collections::{BTreeSet, HashSet};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use banger_agent_api::{GuestPath, ListedKind};

use crate::agent::{AgentGuest, as_path};
use crate::error::{GuestError, WorkspaceError};

/// Returns the directories that a guest has below `root`, but for those in repositories.
pub(crate) fn directories(
    guest: &mut AgentGuest,
    root: &GuestPath,
) -> Result<HashSet<Vec<u8>>, WorkspaceError> {
    let listing = match guest.list(root, &[".git"]) {
        Err(GuestError::NotFound(_)) => return Ok(HashSet::new()),
        other => other.map_err(WorkspaceError::guest("list the machine's files"))?,
    };
    let found = listing.entries.into_iter().filter(|listed| listed.kind == ListedKind::Directory);
    Ok(found.map(|listed| listed.name).collect())
}

/// Returns what the guest is to remove, in this order, before the files of `send` come: of the
/// `directories` that it has those that are in the place of one, and what is in them. Without `force`
/// that is directories only: what else is in them is carried and goes by itself, or keeps the file from
/// being sent.
pub(crate) fn clearing(
    guest: &mut AgentGuest,
    root: &GuestPath,
    directories: &HashSet<Vec<u8>>,
    send: &[&Vec<u8>],
    force: bool,
) -> Result<Vec<PathBuf>, WorkspaceError> {
    let in_place: BTreeSet<&Path> =
        send.iter().filter(|name| directories.contains(**name)).map(|name| as_path(name)).collect();
    if in_place.is_empty() {
        return Ok(Vec::new());
    }
    let mut removed = Vec::new();
    let within = directories.iter().map(|name| as_path(name));
    let within = within.filter(|path| path.ancestors().any(|place| in_place.contains(place)));
    let mut emptied: BTreeSet<PathBuf> = within.map(Path::to_owned).collect();
    if force {
        for place in in_place {
            // Also what is in repositories.
            for (path, kind) in all_in(guest, root, place)? {
                if kind == ListedKind::Directory {
                    emptied.insert(path);
                } else {
                    removed.push(path);
                }
            }
        }
    }
    let mut emptied: Vec<PathBuf> = emptied.into_iter().collect();
    emptied.sort_by_key(|path| std::cmp::Reverse(path.components().count()));
    removed.extend(emptied);
    Ok(removed)
}

/// Returns all that is in a directory of the guest, relative to `root`.
fn all_in(
    guest: &mut AgentGuest,
    root: &GuestPath,
    directory: &Path,
) -> Result<Vec<(PathBuf, ListedKind)>, WorkspaceError> {
    let failed = || WorkspaceError::guest("list what is in the way of a file in the machine");
    let path = Path::new(OsStr::from_bytes(root.as_bytes())).join(directory);
    let path = GuestPath::new(path.into_os_string().into_encoded_bytes())
        .map_err(|error| failed()(GuestError::other(error)))?;
    let listing = match guest.list(&path, &[]) {
        // It went meanwhile.
        Err(GuestError::NotFound(_)) => return Ok(Vec::new()),
        other => other.map_err(failed())?,
    };
    // The directory itself has no name there.
    let inner = listing.entries.into_iter().filter(|listed| !listed.name.is_empty());
    Ok(inner.map(|listed| (directory.join(as_path(&listed.name)), listed.kind)).collect())
}
