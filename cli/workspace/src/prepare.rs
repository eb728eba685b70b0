//! Puts a snapshot into a guest: all of it the first time, later what is different.

use std::borrow::Cow;
use std::collections::{BTreeSet, HashMap, HashSet};
use std::ffi::OsStr;
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use banger_agent_api::{GuestPath, Listed, ListedKind};

use crate::agent::{AgentGuest, as_path};
use crate::archive::{self, Archive};
use crate::base::{self, Tree, is_settled};
use crate::branch_room::{self, Room};
use crate::clearing::{self, clearing};
use crate::error::{GuestError, WorkspaceError};
use crate::fast_import::{Content, FastImport};
use crate::files::{self, Entry, open_beneath};
use crate::git;
use crate::guest_git::{self, PacksThere};
use crate::kept::Kept;
use crate::pruning;
use crate::snapshot::{BASE, NEXT, Snapshot};
use crate::work::Work;

/// How a workspace is prepared.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Where it goes in the guest.
    pub guest_path: GuestPath,
    /// What becomes of what the guest has changed.
    pub newer: Newer,
}

/// What becomes of files that both the guest and the host have changed, and of the guest's branches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Newer {
    /// Nothing is carried.
    Refuse,
    /// The host's come in their place.
    Overwrite,
    /// They stay as the guest has them, and the others are carried.
    Leave,
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
    /// Names that both have changed, and that the guest has as it had them ([`Newer::Leave`]).
    pub left: Vec<Vec<u8>>,
    /// The guest's branches that are not where they were carried to; its repository, but for the files,
    /// is as it was ([`Newer::Leave`]).
    pub left_branches: Vec<String>,
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
    let force = plan.newer == Newer::Overwrite;
    if cut_off && !force {
        return Err(WorkspaceError::CutOff);
    }
    // What is certainly there, by name and content.
    let mut there = Tree::new();
    let mut old_names = Tree::new();
    let mut is_first = true;
    let mut looked_at = None;
    let (mut left, mut left_branches) = (Vec::new(), Vec::new());
    if kept.has_base() {
        old_names = base::tree(&kept.base(), BASE)?;
        if !cut_off {
            let work = Work::collect_for(kept, guest, root, &snapshot.tree)?;
            there = work.tree()?;
            match plan.newer {
                Newer::Overwrite => {}
                Newer::Refuse => {
                    if let Some(what) = work.lost(&there, &snapshot.tree) {
                        return Err(WorkspaceError::NewerWork { what });
                    }
                }
                Newer::Leave => {
                    left = work.lost_names(&there, &snapshot.tree);
                    left_branches = work.moved_branches().to_vec();
                }
            }
            is_first = work.is_repository_gone();
            looked_at = Some(work);
        }
    } else if !force && !is_empty(guest, root)? {
        return Err(WorkspaceError::Occupied { path: root.to_string() });
    }
    let not_looked_at;
    let directories = match &looked_at {
        Some(work) => work.directories(),
        None => {
            // Where nothing was carried yet there is nothing, but for what is overwritten.
            not_looked_at =
                if force { clearing::directories(guest, root)? } else { HashSet::new() };
            &not_looked_at
        }
    };
    let held = held(&left, &old_names, &snapshot.tree);
    let next = with_held(kept, &held, &old_names, &snapshot.tree)?;
    let mut removals =
        removals(&old_names, &next, |name| directories.contains(name.as_os_str().as_bytes()));
    removals.retain(|path| !held.contains(path.as_os_str().as_bytes()));
    let left = not_carried(&left, &old_names, &snapshot.tree);
    let send: Vec<&Vec<u8>> = next
        .iter()
        .filter(|(name, entry)| there.get(*name) != Some(*entry) && !held.contains(*name))
        .map(|(name, _)| name)
        .collect();
    let cleared = clearing(guest, root, directories, &send, force)?;
    if !cleared.is_empty() {
        let again: HashSet<&PathBuf> = cleared.iter().collect();
        removals.retain(|path| !again.contains(path));
        removals.extend(cleared);
    }
    let mut room = Room::default();
    if left_branches.is_empty() && (kept.has_base() || force) {
        room = branch_room::make(snapshot, guest, plan)?;
        left_branches = room.held;
    }
    let repository = match left_branches.is_empty() {
        // Its repository is its own by now.
        false => Repository::Stays,
        true if is_first => Repository::New,
        true => {
            let there = snapshot.gits.iter().map(|git| git.packs_there(guest, root));
            Repository::Has(there.collect::<Result<_, _>>()?)
        }
    };
    kept.set_unfinished(true)?;
    let removed = removals.len() as u64;
    if left_branches.is_empty() {
        removals.extend(room.removals);
    }
    let mut prepared =
        Prepared { removed, missing: snapshot.missing, left, left_branches, ..Prepared::default() };
    let sink =
        guest.put(root).map_err(WorkspaceError::guest("copy the repository into the machine"))?;
    let mut counted = Counted { sink, sent: 0, progress };
    let mut sent = Sent::new();
    let what = (&removals[..], &send[..], repository, plan.newer == Newer::Leave);
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
    let is_carried = |name: &[u8]| next.contains_key(name) && !held.contains(name);
    let with_refs = prepared.left_branches.is_empty();
    settle(kept, snapshot, (guest, root), is_carried, is_known, with_refs)?;
    pruning::after_look(kept, &snapshot.gits)?;
    Ok(prepared)
}

/// Returns the names that stay as the guest has them: those that are left, and those that cannot be
/// beside them, a directory in the place of a file or the other way round.
fn held(left: &[Vec<u8>], old: &Tree, next: &Tree) -> BTreeSet<Vec<u8>> {
    let mut held = BTreeSet::new();
    for name in left {
        held.insert(name.clone());
        for tree in [old, next] {
            held.extend(base::beneath(tree, name).map(|(inner, _)| inner.clone()));
            let parents = as_path(name).ancestors().skip(1).map(|path| path.as_os_str().as_bytes());
            held.extend(parents.filter(|path| tree.contains_key(*path)).map(<[u8]>::to_vec));
        }
    }
    held
}

/// Returns the names that the host has changed and that are held: those that are left, or where the host
/// did not touch such a one what cannot be beside it.
fn not_carried(left: &[Vec<u8>], old: &Tree, next: &Tree) -> Vec<Vec<u8>> {
    let is_changed = |name: &Vec<u8>| next.get(name) != old.get(name);
    let mut names = BTreeSet::new();
    for name in left {
        if is_changed(name) {
            names.insert(name.clone());
        } else {
            names
                .extend(held(std::slice::from_ref(name), old, next).into_iter().filter(is_changed));
        }
    }
    names.into_iter().collect()
}

/// Returns what the guest will have been given: `next`, with those that are held as they were carried
/// before, so that the guest's work is told from that.
fn with_held<'t>(
    kept: &Kept,
    held: &BTreeSet<Vec<u8>>,
    old: &Tree,
    next: &'t Tree,
) -> Result<Cow<'t, Tree>, WorkspaceError> {
    if held.is_empty() {
        return Ok(Cow::Borrowed(next));
    }
    let base = kept.base();
    let mut import = FastImport::start(&base)?;
    let mut mixed = next.clone();
    let (_, root) = git::ids(&base, NEXT)?;
    let mut set = || {
        import.commit(NEXT, None)?;
        import.root(&root)?;
        for name in held.iter().filter(|name| next.contains_key(*name)) {
            import.delete(name)?;
            mixed.remove(name);
        }
        for (name, entry) in held.iter().filter_map(|name| old.get_key_value(name)) {
            import.set(entry.mode, &Content::Object(entry.object.clone()), name)?;
            mixed.insert(name.clone(), entry.clone());
        }
        Ok(())
    };
    match set() {
        Ok(()) => import.finish()?,
        Err(error) => return Err(import.failed(error)),
    }
    Ok(Cow::Owned(mixed))
}

/// What of a repository's own directory the guest has.
enum Repository {
    /// None of it.
    New,
    /// It, with these objects.
    Has(Vec<PacksThere>),
    /// It, and it is not touched.
    Stays,
}

/// What a file or link was sent as, by name; what the guest lists otherwise was changed there meanwhile.
pub(crate) type Sent = HashMap<Vec<u8>, SentEntry>;

#[derive(Debug)]
pub(crate) struct SentEntry {
    pub kind: ListedKind,
    pub mode: u32,
    pub size: u64,
    /// Seconds since the epoch.
    pub modified: u64,
    /// Whether the content is surely that of the snapshot.
    pub as_taken: bool,
}

impl SentEntry {
    pub(crate) fn is(&self, listed: &Listed) -> bool {
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
    (guest, root): (&mut AgentGuest, &GuestPath),
    is_carried: impl Fn(&[u8]) -> bool,
    is_known: impl Fn(&Listed) -> bool,
    with_refs: bool,
) -> Result<(), WorkspaceError> {
    let listing =
        guest.list(root, &[".git"]).map_err(WorkspaceError::guest("list the machine's files"))?;
    let settled = listing
        .entries
        .iter()
        .filter(|listed| matches!(listed.kind, ListedKind::File | ListedKind::Link))
        .filter(|listed| is_carried(&listed.name))
        .filter(|listed| is_settled(listed, listing.now_nanos) && is_known(listed));
    base::save(&kept.path("guest"), settled)?;
    let host = snapshot.host.values().filter(|listed| is_carried(&listed.name));
    base::save(&kept.path("host"), host)?;
    if with_refs {
        let places = snapshot.gits.iter().map(|git| git.place.as_os_str().as_bytes().to_vec());
        guest_git::save_refs(&kept.path("refs"), guest, root, places)?;
    }
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
pub(crate) struct Counted<'p, S> {
    pub sink: S,
    pub sent: u64,
    pub progress: &'p (dyn Fn(u64) + Sync),
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
    (removals, send, repository, as_snapshot): (&[PathBuf], &[&Vec<u8>], Repository, bool),
    sink: impl Write,
    prepared: &mut Prepared,
    sent: &mut Sent,
) -> Result<(), WorkspaceError> {
    let mut archive = Archive::new(sink);
    for path in removals {
        archive.removal(path)?;
    }
    for (number, git) in snapshot.gits.iter().enumerate() {
        match &repository {
            Repository::New => git.pack(kept, &mut archive, None)?,
            Repository::Has(there) => git.pack(kept, &mut archive, there.get(number))?,
            Repository::Stays => {}
        }
    }
    for (place, module) in snapshot.workspace.modules() {
        for absent in &module.absent_submodules {
            archive.directory(&place.join(absent))?;
        }
    }
    let now = archive::now();
    let top = files::open_top(&snapshot.workspace.top)?;
    let mut objects = snapshot.objects(kept, as_snapshot)?;
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
                let modified = match snapshot.host.get(*name) {
                    Some(taken) => u64::try_from(taken.modified_nanos / 1_000_000_000).unwrap_or(0),
                    None if snapshot.workspace.is_commit => 0,
                    None => now,
                };
                note(ListedKind::File, size, modified, true);
                Ok(archive.file(path, permissions, size, modified, content))
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
