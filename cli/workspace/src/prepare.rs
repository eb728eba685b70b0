//! Puts a snapshot into a guest: all of it the first time, later what is different.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use banger_agent_api::{GuestPath, ListedKind};

use crate::agent::AgentGuest;
use crate::archive::Archive;
use crate::base::{self, Tree, is_settled};
use crate::error::{GuestError, WorkspaceError};
use crate::files::{self, Entry, open_beneath};
use crate::git;
use crate::guest_git::{self, PacksThere};
use crate::kept::Kept;
use crate::snapshot::{BASE, NEXT, Snapshot};
use crate::work::Work;

/// How a workspace is prepared.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Where it goes in the guest.
    pub guest_path: GuestPath,
    /// Overwrite what the guest has changed.
    pub force: bool,
}

/// What was carried.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Prepared {
    /// Files and links that went.
    pub sent: u64,
    /// Bytes that went, history included.
    pub bytes: u64,
    /// Names that were removed in the guest.
    pub removed: u64,
    /// Tracked names that are no file or link on the host any more.
    pub missing: u64,
    /// Files that changed on the host while they were carried.
    pub changed_meanwhile: Vec<PathBuf>,
}

/// Puts a snapshot into the guest.
pub fn prepare(
    kept: &Kept,
    snapshot: &Snapshot,
    guest: &mut AgentGuest,
    plan: &Plan,
    progress: &(dyn Fn(u64) + Sync),
) -> Result<Prepared, WorkspaceError> {
    let root = &plan.guest_path;
    let cut_off = kept.is_unfinished();
    if cut_off && !plan.force {
        return Err(WorkspaceError::CutOff);
    }
    // What is certainly there, by name and content.
    let mut there = Tree::new();
    let mut old_names = Tree::new();
    let mut is_first = true;
    if kept.has_base() {
        old_names = base::tree(&kept.base(), BASE)?;
        if !cut_off {
            let work = Work::collect(kept, guest, root)?;
            there = work.tree()?;
            if !plan.force
                && let Some(what) = work.lost(&there, &snapshot.tree)
            {
                return Err(WorkspaceError::NewerWork { what });
            }
            is_first = work.is_repository_gone();
        }
    } else if !plan.force && !is_empty(guest, root)? {
        return Err(WorkspaceError::Occupied { path: root.to_string() });
    }
    let removals = removals(&old_names, &snapshot.tree);
    let send: Vec<&Vec<u8>> = snapshot
        .tree
        .iter()
        .filter(|(name, entry)| there.get(*name) != Some(*entry))
        .map(|(name, _)| name)
        .collect();
    let packs_there = (!is_first)
        .then(|| snapshot.gits.iter().map(|git| git.packs_there(guest, root)).collect())
        .transpose()?;
    kept.set_unfinished(true)?;
    let mut prepared = Prepared {
        removed: removals.len() as u64,
        missing: snapshot.missing,
        ..Prepared::default()
    };
    let sink =
        guest.put(root).map_err(WorkspaceError::guest("copy the repository into the machine"))?;
    let mut counted = Counted { sink, sent: 0, progress };
    let packed = pack(kept, snapshot, &removals, &send, packs_there, &mut counted, &mut prepared);
    prepared.bytes = counted.sent;
    let operation = "copy the repository into the machine";
    match packed {
        Ok(()) => {}
        // What the guest has against it says more than the pipe that broke.
        Err(error @ WorkspaceError::Pack { .. }) => {
            return Err(match counted.sink.refusal() {
                Some(source) => WorkspaceError::Guest { operation, source },
                None => error,
            });
        }
        Err(error) => return Err(error),
    }
    counted.sink.finish().map_err(WorkspaceError::guest(operation))?;
    settle(kept, snapshot, guest, root)?;
    Ok(prepared)
}

/// Notes what the guest has now.
fn settle(
    kept: &Kept,
    snapshot: &Snapshot,
    guest: &mut AgentGuest,
    root: &GuestPath,
) -> Result<(), WorkspaceError> {
    let listing =
        guest.list(root, &[".git"]).map_err(WorkspaceError::guest("list the machine's files"))?;
    let settled = listing
        .entries
        .iter()
        .filter(|listed| matches!(listed.kind, ListedKind::File | ListedKind::Link))
        .filter(|listed| snapshot.tree.contains_key(&listed.name))
        .filter(|listed| is_settled(listed, listing.now_nanos));
    base::save(&kept.path("guest"), settled)?;
    base::save(&kept.path("host"), snapshot.host.values())?;
    let places = snapshot.gits.iter().map(|git| git.place.as_os_str().as_bytes().to_vec());
    guest_git::save_refs(&kept.path("refs"), guest, root, places)?;
    let base = kept.base();
    git::checked(git::own(&base).args(["update-ref", BASE, NEXT]), "update-ref", &base)?;
    kept.set_unfinished(false)
}

/// Returns whether a directory of the guest has nothing in it, or is not there.
fn is_empty(guest: &mut AgentGuest, root: &GuestPath) -> Result<bool, WorkspaceError> {
    match guest.list(root, &[]) {
        Ok(listing) => Ok(listing.entries.iter().all(|listed| listed.name.is_empty())),
        Err(GuestError::NotFound(_)) => Ok(true),
        Err(error) => Err(WorkspaceError::guest("look at the machine's directory")(error)),
    }
}

/// Returns the names that are to go, files first and then, from the deepest, the directories that had
/// nothing else of ours.
fn removals(old: &Tree, new: &Tree) -> Vec<PathBuf> {
    let path = |name: &[u8]| Path::new(OsStr::from_bytes(name)).to_owned();
    let mut removed: Vec<PathBuf> =
        old.keys().filter(|name| !new.contains_key(*name)).map(|name| path(name)).collect();
    let parents = |path: &Path| -> Vec<PathBuf> {
        path.ancestors()
            .skip(1)
            .filter(|parent| !parent.as_os_str().is_empty())
            .map(Path::to_owned)
            .collect()
    };
    let mut directories: BTreeSet<PathBuf> =
        removed.iter().flat_map(|name| parents(name)).collect();
    if !directories.is_empty() {
        for name in new.keys() {
            for parent in parents(&path(name)) {
                directories.remove(&parent);
            }
        }
    }
    let mut directories: Vec<PathBuf> = directories.into_iter().collect();
    directories.sort_by_key(|path| std::cmp::Reverse(path.components().count()));
    removed.extend(directories);
    removed
}

/// Counts what is written.
struct Counted<'p, S> {
    sink: S,
    sent: u64,
    progress: &'p (dyn Fn(u64) + Sync),
}

impl<S: Write> Write for Counted<'_, S> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.sink.write(bytes)?;
        self.sent += count as u64;
        (self.progress)(self.sent);
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.sink.flush()
    }
}

fn pack(
    kept: &Kept,
    snapshot: &Snapshot,
    removals: &[PathBuf],
    send: &[&Vec<u8>],
    packs_there: Option<Vec<PacksThere>>,
    sink: impl Write,
    prepared: &mut Prepared,
) -> Result<(), WorkspaceError> {
    let mut archive = Archive::new(sink);
    for path in removals {
        archive.removal(path)?;
    }
    for (number, git) in snapshot.gits.iter().enumerate() {
        git.pack(&mut archive, packs_there.as_ref().map(|there| &there[number]))?;
    }
    for (place, module) in snapshot.workspace.modules() {
        for absent in &module.absent_submodules {
            archive.directory(&place.join(absent))?;
        }
    }
    let top = files::open_top(&snapshot.workspace.top)?;
    let mut objects = snapshot.objects(kept)?;
    for name in send {
        let path = Path::new(OsStr::from_bytes(name));
        let mode = snapshot.tree[*name].mode;
        let permissions = if mode & 0o100 == 0 { 0o644 } else { 0o755 };
        if let Some(objects) = &mut objects {
            let failed = |source| WorkspaceError::Pack { path: path.to_owned(), source };
            let object = &snapshot.tree[*name].object;
            let sent = objects.read(object, |size, content| {
                if mode == 0o120_000 {
                    let mut target = Vec::new();
                    content.read_to_end(&mut target)?;
                    return Ok(archive.link(path, &target));
                }
                Ok(archive.file(path, permissions, size, 0, content))
            });
            sent.map_err(failed)??;
            prepared.sent += 1;
            continue;
        }
        let Some(entry) = open_beneath(&top, path)? else {
            prepared.changed_meanwhile.push(path.to_owned());
            continue;
        };
        let (Entry::File(_, metadata) | Entry::Link(_, metadata)) = &entry;
        let before = files::listed(path, metadata);
        // The listing lacks what had just been changed then; for those the mode alone can tell.
        let as_taken = snapshot.host.get(*name).is_none_or(|taken| *taken == before)
            && files::git_mode(before.kind, before.mode) == mode;
        match entry {
            Entry::Link(target, _) => {
                archive.link(path, &target)?;
                if !as_taken {
                    prepared.changed_meanwhile.push(path.to_owned());
                }
            }
            Entry::File(file, metadata) => {
                let again = file
                    .try_clone()
                    .map_err(|source| WorkspaceError::File { path: path.to_owned(), source })?;
                let modified = u64::try_from(before.modified_nanos / 1_000_000_000).unwrap_or(0);
                archive.file(path, permissions, metadata.len(), modified, file)?;
                let after = again.metadata().map(|metadata| files::listed(path, &metadata));
                if !as_taken || after.ok().as_ref() != Some(&before) {
                    prepared.changed_meanwhile.push(path.to_owned());
                }
            }
        }
        prepared.sent += 1;
    }
    archive.finish().map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::TreeEntry;

    fn tree(names: &[&str]) -> Tree {
        let entry = TreeEntry { mode: 0o100_644, object: String::new() };
        names.iter().map(|name| (name.as_bytes().to_vec(), entry.clone())).collect()
    }

    #[test]
    fn what_is_gone_is_removed_with_the_directories_it_leaves_empty() {
        let old = tree(&["a", "d/e/f", "d/e/g", "d/kept", "x/y"]);
        let new = tree(&["d/kept", "x"]);
        let names: Vec<String> =
            removals(&old, &new).iter().map(|path| path.display().to_string()).collect();
        assert_eq!(names, ["a", "d/e/f", "d/e/g", "x/y", "d/e", "x"]);
        assert!(removals(&new, &new).is_empty());
    }
}
