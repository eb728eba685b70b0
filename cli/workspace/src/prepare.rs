//! Puts a snapshot into a guest: all of it the first time, later what is different.

use std::collections::{BTreeSet, HashMap};
use std::ffi::OsStr;
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use banger_agent_api::{GuestPath, Listed, ListedKind};

use crate::agent::AgentGuest;
use crate::archive::{self, Archive};
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
    let mut looked_at = None;
    if kept.has_base() {
        old_names = base::tree(&kept.base(), BASE)?;
        if !cut_off {
            let work = Work::collect_for(kept, guest, root, &snapshot.tree)?;
            there = work.tree()?;
            if !plan.force
                && let Some(what) = work.lost(&there, &snapshot.tree)
            {
                return Err(WorkspaceError::NewerWork { what });
            }
            is_first = work.is_repository_gone();
            looked_at = Some(work);
        }
    } else if !plan.force && !is_empty(guest, root)? {
        return Err(WorkspaceError::Occupied { path: root.to_string() });
    }
    let has_directory = |name: &Path| {
        looked_at.as_ref().is_none_or(|work| work.has_directory(name.as_os_str().as_bytes()))
    };
    let removals = removals(&old_names, &snapshot.tree, has_directory);
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
    let mut sent = Sent::new();
    let what = (&removals[..], &send[..], packs_there);
    let packed = pack(kept, snapshot, what, &mut counted, &mut prepared, &mut sent);
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
    let is_known = |listed: &Listed| match sent.get(&listed.name) {
        Some(sent) => sent.is(listed),
        // It was not sent because it was looked at and had the content already.
        None => looked_at.as_ref().is_some_and(|work| work.has_seen(listed)),
    };
    settle(kept, snapshot, guest, root, is_known)?;
    Ok(prepared)
}

/// What a file or link was sent as, by name; what the guest lists otherwise was changed there meanwhile.
type Sent = HashMap<Vec<u8>, SentEntry>;

#[derive(Debug)]
struct SentEntry {
    kind: ListedKind,
    mode: u32,
    size: u64,
    /// Seconds since the epoch.
    modified: u64,
    /// Whether the content is surely that of the snapshot.
    as_taken: bool,
}

impl SentEntry {
    fn is(&self, listed: &Listed) -> bool {
        self.as_taken
            && self.kind == listed.kind
            && self.size == listed.size
            && self.mode == files::git_mode(listed.kind, listed.mode)
            && u64::try_from(listed.modified_nanos).ok() == self.modified.checked_mul(1_000_000_000)
    }
}

/// Notes what the guest has now; of files that may have changed while the others went nothing, so that
/// their content is compared the next time.
fn settle(
    kept: &Kept,
    snapshot: &Snapshot,
    guest: &mut AgentGuest,
    root: &GuestPath,
    is_known: impl Fn(&Listed) -> bool,
) -> Result<(), WorkspaceError> {
    let listing =
        guest.list(root, &[".git"]).map_err(WorkspaceError::guest("list the machine's files"))?;
    let settled = listing
        .entries
        .iter()
        .filter(|listed| matches!(listed.kind, ListedKind::File | ListedKind::Link))
        .filter(|listed| snapshot.tree.contains_key(&listed.name))
        .filter(|listed| is_settled(listed, listing.now_nanos) && is_known(listed));
    base::save(&kept.path("guest"), settled)?;
    base::save(&kept.path("host"), snapshot.host.values())?;
    let places = snapshot.gits.iter().map(|git| git.place.as_os_str().as_bytes().to_vec());
    guest_git::save_refs(&kept.path("refs"), guest, root, places)?;
    let base = kept.base();
    git::checked(git::own(&base).args(["update-ref", BASE, NEXT]), "update-ref", &base)?;
    kept.set_wanted(&snapshot.workspace.wanted)?;
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
/// nothing else of ours. A file that the guest has in the place of such a directory stays: it is the
/// guest's own, or what was applied here and is not sent again.
fn removals(old: &Tree, new: &Tree, has_directory: impl Fn(&Path) -> bool) -> Vec<PathBuf> {
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
    let mut directories: Vec<PathBuf> =
        directories.into_iter().filter(|path| has_directory(path)).collect();
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
    (removals, send, packs_there): (&[PathBuf], &[&Vec<u8>], Option<Vec<PacksThere>>),
    sink: impl Write,
    prepared: &mut Prepared,
    sent: &mut Sent,
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
    let now = archive::now();
    let top = files::open_top(&snapshot.workspace.top)?;
    let mut objects = snapshot.objects(kept)?;
    for name in send {
        let path = Path::new(OsStr::from_bytes(name));
        let mode = snapshot.tree[*name].mode;
        let permissions = if mode & 0o100 == 0 { 0o644 } else { 0o755 };
        let mut note = |kind, size, modified, as_taken| {
            sent.insert((*name).clone(), SentEntry { kind, mode, size, modified, as_taken });
        };
        if let Some(objects) = &mut objects {
            let failed = |source| WorkspaceError::Pack { path: path.to_owned(), source };
            let object = &snapshot.tree[*name].object;
            let sent = objects.read(object, |size, content| {
                if mode == 0o120_000 {
                    let mut target = Vec::new();
                    content.read_to_end(&mut target)?;
                    note(ListedKind::Link, size, now, true);
                    return Ok(archive.link(path, now, &target));
                }
                note(ListedKind::File, size, 0, true);
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
        let mut as_taken = snapshot.host.get(*name).is_none_or(|taken| *taken == before)
            && files::git_mode(before.kind, before.mode) == mode;
        match entry {
            Entry::Link(target, _) => {
                archive.link(path, now, &target)?;
                note(ListedKind::Link, target.len() as u64, now, as_taken);
            }
            Entry::File(file, metadata) => {
                let again = file
                    .try_clone()
                    .map_err(|source| WorkspaceError::File { path: path.to_owned(), source })?;
                let modified = u64::try_from(before.modified_nanos / 1_000_000_000).unwrap_or(0);
                archive.file(path, permissions, metadata.len(), modified, file)?;
                let after = again.metadata().map(|metadata| files::listed(path, &metadata));
                as_taken &= after.ok().as_ref() == Some(&before);
                note(ListedKind::File, metadata.len(), modified, as_taken);
            }
        }
        if !as_taken {
            prepared.changed_meanwhile.push(path.to_owned());
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
        let names = |has_directory: fn(&Path) -> bool| -> Vec<String> {
            let removed = removals(&old, &new, has_directory);
            removed.iter().map(|path| path.display().to_string()).collect()
        };
        assert_eq!(names(|_| true), ["a", "d/e/f", "d/e/g", "x/y", "d/e", "x"]);
        assert_eq!(names(|path| path != Path::new("x")), ["a", "d/e/f", "d/e/g", "x/y", "d/e"]);
        assert!(removals(&new, &new, |_| true).is_empty());
    }
}
