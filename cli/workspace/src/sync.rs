//! Keeps a guest's files as the host has them while they change.
//!
//! ```text
//!   whole look   the repository anew, as prepare does
//!   some names   the names that changed ──► a commit on top of what was carried ──► what is different
//!                  ──► how the guest has it ──► tar ──► guest
//! ```
//! A round of some names runs git on those names only, and asks the guest for those only. It gives way
//! to a whole look where that is not enough: a file comes in the place of a directory, the rules of
//! what is ignored change, another command has worked on the workspace meanwhile, or names are many.
//! The guest's own work stays as it is, unless it is to be overwritten.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use banger_agent_api::{GuestPath, Listed, ListedKind};

use crate::agent::{AgentGuest, as_path};
use crate::archive::{self, Archive};
use crate::base::{self, Listing, Objects, Tree, TreeEntry, is_settled};
use crate::error::{GuestError, WorkspaceError};
use crate::fast_import::{Content, FastImport};
use crate::files::{self, Entry, git_mode, open_beneath};
use crate::git;
use crate::kept::{Keeping, Kept};
use crate::prepare::{Newer, Plan, Prepared, Sent, SentEntry, prepare};
use crate::repository::{Options, Workspace};
use crate::snapshot::{BASE, NEXT, Snapshot};
use crate::tip;

/// Most names of a round that is no whole look.
const NAMES_MOST: usize = 2_000;
/// Packs of ours that are made one again; each round leaves one.
const PACKS_MOST: usize = 64;

/// A repository, and the machine whose files follow it.
#[derive(Debug)]
pub struct Mirror {
    keeping: Keeping,
    vm: String,
    source: (PathBuf, Options),
    guest: AgentGuest,
    plan: Plan,
    known: Option<Known>,
    /// What was said to be left alone.
    told: BTreeSet<Vec<u8>>,
    told_branches: BTreeSet<String>,
}

/// What the last round left behind.
#[derive(Debug)]
struct Known {
    /// The commit of what was carried, and its tree: another command makes another.
    base: (String, String),
    tree: Tree,
    host: Listing,
    guest: Listing,
    workspace: Workspace,
    /// All names that are to be carried, also those that are no file now.
    names: BTreeSet<Vec<u8>>,
    left: BTreeSet<Vec<u8>>,
    /// Branches that the guest has moved, as the last whole look found them.
    left_branches: Vec<String>,
}

impl Known {
    /// Begins what a round of some names did: the guest's repository is as it was.
    fn begin(&self, left: &BTreeSet<Vec<u8>>) -> Prepared {
        let left = left.iter().cloned().collect();
        Prepared { left, left_branches: self.left_branches.clone(), ..Prepared::default() }
    }
}

/// What a round did.
#[derive(Debug, Default)]
pub struct Round {
    /// What was carried.
    pub prepared: Prepared,
    /// Names that the guest has changed, and that are left alone from now on.
    pub left_anew: Vec<Vec<u8>>,
    /// Branches that the guest has moved since; its repository is left alone.
    pub branches_anew: Vec<String>,
}

/// A name of the host's that is different from what was carried.
#[derive(Debug)]
struct Different {
    name: Vec<u8>,
    /// What it is now.
    entry: Option<TreeEntry>,
}

impl Mirror {
    /// Begins; nothing is done before the first round. `force` overwrites what the guest has changed.
    #[must_use]
    pub fn new(
        (keeping, vm): (Keeping, String),
        source: (PathBuf, Options),
        guest: AgentGuest,
        guest_path: GuestPath,
        force: bool,
    ) -> Self {
        let newer = if force { Newer::Overwrite } else { Newer::Leave };
        let (told, told_branches) = (BTreeSet::new(), BTreeSet::new());
        let plan = Plan { guest_path, newer };
        Self { keeping, vm, source, guest, plan, known: None, told, told_branches }
    }

    /// Looks at the repository as it is now, without reading a file of it.
    pub fn open(&self) -> Result<Workspace, WorkspaceError> {
        Workspace::open(&self.source.0, &self.source.1)
    }

    /// Returns the repository as it was in the last round.
    #[must_use]
    pub fn workspace(&self) -> Option<&Workspace> {
        self.known.as_ref().map(|known| &known.workspace)
    }

    /// Carries all that is different in `workspace`.
    pub fn whole(&mut self, workspace: Workspace) -> Result<Round, WorkspaceError> {
        self.known = None;
        let kept = self.keeping.open(&self.vm)?;
        let snapshot = Snapshot::take(&kept, workspace)?;
        let prepared = prepare(&kept, &snapshot, &mut self.guest, &self.plan, &|_| {})?;
        let base = kept.base();
        let workspace = snapshot.workspace;
        let names = workspace.names().into_iter();
        self.known = Some(Known {
            base: git::ids(&base, BASE)?,
            tree: base::tree(&base, BASE)?,
            host: base::load(&kept.path("host")),
            guest: base::load(&kept.path("guest")),
            names: names.map(|name| name.into_os_string().into_encoded_bytes()).collect(),
            workspace,
            left: prepared.left.iter().cloned().collect(),
            left_branches: prepared.left_branches.clone(),
        });
        Ok(self.told(prepared))
    }

    /// Carries what is different below some names, relative to the top; `None` where only a whole look
    /// can.
    pub fn some(&mut self, changed: &BTreeSet<PathBuf>) -> Result<Option<Round>, WorkspaceError> {
        // What fails leaves nothing behind that the next round would believe.
        let Some(mut known) = self.known.take() else { return Ok(None) };
        let kept = self.keeping.open(&self.vm)?;
        if kept.is_unfinished() || git::ids(&kept.base(), BASE)? != known.base {
            return Ok(None);
        }
        let Some(names) = names(&known, changed, self.source.1.include_untracked)? else {
            return Ok(None);
        };
        let Some(prepared) = self.carry(&kept, &mut known, names)? else { return Ok(None) };
        self.known = Some(known);
        keep_packs_few(&kept)?;
        Ok(Some(self.told(prepared)))
    }

    /// Writes down what spares the next command to read every file that went since the last whole look.
    pub fn finish(&mut self) -> Result<(), WorkspaceError> {
        let Some(known) = self.known.take() else { return Ok(()) };
        let kept = self.keeping.open(&self.vm)?;
        if kept.is_unfinished() || git::ids(&kept.base(), BASE)? != known.base {
            return Ok(());
        }
        base::save(&kept.path("guest"), known.guest.values())?;
        base::save(&kept.path("host"), known.host.values())
    }

    /// Picks what was not said yet; what the guest gave up is said again the next time.
    fn told(&mut self, prepared: Prepared) -> Round {
        let left: BTreeSet<Vec<u8>> = prepared.left.iter().cloned().collect();
        let branches: BTreeSet<String> = prepared.left_branches.iter().cloned().collect();
        let left_anew = left.difference(&self.told).cloned().collect();
        let branches_anew = branches.difference(&self.told_branches).cloned().collect();
        self.told = left;
        self.told_branches.extend(branches);
        Round { prepared, left_anew, branches_anew }
    }

    fn carry(
        &mut self,
        kept: &Kept,
        known: &mut Known,
        names: BTreeSet<Vec<u8>>,
    ) -> Result<Option<Prepared>, WorkspaceError> {
        let Some(taken) = take(kept, known, names)? else { return Ok(None) };
        if taken.different.is_empty() {
            let prepared = known.begin(&known.left);
            taken.note(known);
            return Ok(Some(prepared));
        }
        let Some(judged) = self.judge(kept, known, &taken.different)? else { return Ok(None) };
        let base = kept.base();
        let kept_back = |different: &&Different| !judged.left.contains(&different.name);
        if !judged.left.is_empty() {
            let rest = taken.different.iter().filter(kept_back);
            let rest: Vec<_> = rest.map(|one| (&one.name, one.entry.as_ref())).collect();
            commit(FastImport::start(&base)?, &known.base.1, &rest)?;
        }
        let next = git::ids(&base, NEXT)?;
        let carried: Vec<&Different> = taken.different.iter().filter(kept_back).collect();
        for Different { name, entry } in &carried {
            match entry {
                Some(entry) => known.tree.insert(name.clone(), entry.clone()),
                None => known.tree.remove(name),
            };
            known.guest.remove(name);
        }
        let goes: Vec<&Different> =
            carried.iter().copied().filter(|one| !judged.same.contains(&one.name)).collect();
        let mut prepared = known.begin(&judged.left);
        if !goes.is_empty() {
            kept.set_unfinished(true)?;
            self.send(kept, known, &goes, &taken, &mut prepared)?;
        }
        git::checked(git::own(&base).args(["update-ref", BASE, &next.0]), "update-ref", &base)?;
        kept.set_unfinished(false)?;
        known.base = next;
        known.left = judged.left;
        taken.note(known);
        Ok(Some(prepared))
    }

    /// Says how the guest has the names that are different; `None` where names alone do not say it.
    fn judge(
        &mut self,
        kept: &Kept,
        known: &Known,
        different: &[Different],
    ) -> Result<Option<Judged>, WorkspaceError> {
        let parents = different.iter().flat_map(|one| as_path(&one.name).ancestors());
        let asked: BTreeSet<Vec<u8>> = parents
            .filter(|path| !path.as_os_str().is_empty())
            .map(|path| path.as_os_str().as_bytes().to_vec())
            .collect();
        let asked: Vec<Vec<u8>> = asked.into_iter().collect();
        let listing = match self.guest.list_names(&self.plan.guest_path, &asked) {
            // Each round is a whole look then.
            Err(GuestError::OldAgent) => return Ok(None),
            other => other.map_err(WorkspaceError::guest("look at the machine's files"))?,
        };
        let there: BTreeMap<&[u8], &Listed> =
            listing.entries.iter().map(|listed| (&listed.name[..], listed)).collect();
        let is_directory = |path: &Path| {
            let listed = there.get(path.as_os_str().as_bytes());
            listed.is_none_or(|listed| listed.kind == ListedKind::Directory)
        };
        let mut judged = Judged::default();
        let mut unsure = Vec::new();
        for one in different {
            let path = as_path(&one.name);
            let (before, now) = (known.tree.get(&one.name), there.get(&one.name[..]));
            let odd =
                now.is_some_and(|now| !matches!(now.kind, ListedKind::File | ListedKind::Link));
            let is_below = path
                .ancestors()
                .skip(1)
                .all(|parent| parent.as_os_str().is_empty() || is_directory(parent));
            if odd || !is_below {
                // Whether it is in the way only a whole look can say; what one has left stays so.
                if self.plan.newer == Newer::Leave && known.left.contains(&one.name) {
                    judged.left.insert(one.name.clone());
                    continue;
                }
                return Ok(None);
            }
            if self.plan.newer == Newer::Overwrite {
                continue;
            }
            match (before, now) {
                (None, None) => {}
                (Some(_), None) if one.entry.is_none() => {
                    judged.same.insert(one.name.clone());
                }
                (Some(_), None) => {
                    judged.left.insert(one.name.clone());
                }
                (Some(_), Some(now)) if known.guest.get(&one.name) == Some(*now) => {}
                (_, Some(_)) => unsure.push(one.name.clone()),
            }
        }
        if unsure.is_empty() {
            return Ok(Some(judged));
        }
        let has = tip::contents(kept, &mut self.guest, &self.plan.guest_path, &unsure)?;
        for one in different.iter().filter(|one| unsure.contains(&one.name)) {
            let now = has.get(&one.name);
            if now == one.entry.as_ref() {
                judged.same.insert(one.name.clone());
            } else if now != known.tree.get(&one.name) {
                judged.left.insert(one.name.clone());
            }
        }
        Ok(Some(judged))
    }

    /// Sends files as they were taken, and has the guest remove what is gone.
    fn send(
        &mut self,
        kept: &Kept,
        known: &mut Known,
        goes: &[&Different],
        taken: &Taken,
        prepared: &mut Prepared,
    ) -> Result<(), WorkspaceError> {
        let operation = "copy what changed into the machine";
        let root = self.plan.guest_path.clone();
        let mut objects = Objects::open(&kept.base())?;
        let mut sink = self.guest.put(&root).map_err(WorkspaceError::guest(operation))?;
        let (mut sent, now) = (Sent::new(), archive::now());
        let mut pack = |sink: &mut crate::agent::TreeSink, prepared: &mut Prepared| {
            let mut archive = Archive::new(sink);
            for path in removals(known, goes) {
                archive.removal(&path)?;
                prepared.removed += 1;
            }
            for one in goes {
                let (path, Some(entry)) = (as_path(&one.name), &one.entry) else { continue };
                let mode = entry.mode;
                let modified = taken.modified(&one.name).unwrap_or(now);
                let permissions = if mode & 0o100 == 0 { 0o644 } else { 0o755 };
                let packed = objects.read(&entry.object, |size, content| {
                    prepared.bytes += size;
                    let is_link = mode == 0o120_000;
                    let kind = if is_link { ListedKind::Link } else { ListedKind::File };
                    let modified = if is_link { now } else { modified };
                    let note = SentEntry { kind, mode, size, modified, as_taken: true };
                    sent.insert(one.name.clone(), note);
                    if is_link {
                        let mut target = Vec::new();
                        content.read_to_end(&mut target)?;
                        return Ok(archive.link(path, now, &target));
                    }
                    Ok(archive.file(path, permissions, size, modified, content))
                });
                let failed = |source| WorkspaceError::Pack { path: path.to_owned(), source };
                packed.map_err(failed)??;
                prepared.sent += 1;
            }
            archive.finish().map(drop)
        };
        match pack(&mut sink, prepared) {
            Ok(()) => {}
            Err(error @ WorkspaceError::Pack { .. }) => {
                return Err(match sink.refusal() {
                    Some(source) => WorkspaceError::Guest { operation, source },
                    None => error,
                });
            }
            Err(error) => return Err(error),
        }
        sink.finish().map_err(WorkspaceError::guest(operation))?;
        let names: Vec<Vec<u8>> = sent.keys().cloned().collect();
        let listing = self
            .guest
            .list_names(&root, &names)
            .map_err(WorkspaceError::guest("look at the machine's files"))?;
        let now = listing.now_nanos;
        let noted = listing.entries.into_iter().filter(|listed| {
            is_settled(listed, now) && sent.get(&listed.name).is_some_and(|sent| sent.is(listed))
        });
        known.guest.extend(noted.map(|listed| (listed.name.clone(), listed)));
        Ok(())
    }
}

/// How the guest has what is different on the host.
#[derive(Debug, Default)]
struct Judged {
    /// As the host has it now.
    same: BTreeSet<Vec<u8>>,
    /// Changed by the guest.
    left: BTreeSet<Vec<u8>>,
}

/// Files of the host that were looked at.
#[derive(Debug)]
struct Taken {
    different: Vec<Different>,
    /// How those that are there were found.
    found: Vec<Listed>,
    gone: Vec<Vec<u8>>,
    /// The host's clock before.
    now_nanos: i64,
}

impl Taken {
    /// When a file changed, in seconds since the epoch.
    fn modified(&self, name: &[u8]) -> Option<u64> {
        let listed = self.found.iter().find(|listed| listed.name == name)?;
        u64::try_from(listed.modified_nanos / 1_000_000_000).ok()
    }

    /// Notes what need not be read again.
    fn note(self, known: &mut Known) {
        for name in &self.gone {
            known.host.remove(name);
        }
        for listed in self.found {
            if is_settled(&listed, self.now_nanos) && !known.left.contains(&listed.name) {
                known.host.insert(listed.name.clone(), listed);
            } else {
                known.host.remove(&listed.name);
            }
        }
    }
}

/// Returns the names to look at; `None` where a whole look must say them.
fn names(
    known: &Known,
    changed: &BTreeSet<PathBuf>,
    include_untracked: bool,
) -> Result<Option<BTreeSet<Vec<u8>>>, WorkspaceError> {
    let mut names = known.left.clone();
    let mut asked = Vec::new();
    for path in changed {
        let parts = || path.components().map(|part| part.as_os_str().as_bytes());
        if parts().any(|part| part == b".git" || part == b".gitignore" || part == b".gitmodules") {
            return Ok(None);
        }
        let name = path.as_os_str().as_bytes();
        let start = [name, b"/"].concat();
        let below = known.names.range(start.clone()..).take_while(|name| name.starts_with(&start));
        names.extend(below.cloned());
        names.extend(base::beneath(&known.tree, name).map(|(name, _)| name.clone()));
        let is_ours = known.names.contains(name) || known.tree.contains_key(name);
        if is_ours {
            names.insert(name.to_vec());
        }
        // A directory may have come where a file of ours was.
        let is_directory =
            || known.workspace.top.join(path).symlink_metadata().is_ok_and(|now| now.is_dir());
        if include_untracked && (!is_ours || is_directory()) {
            if known.workspace.submodules.iter().any(|(place, _)| path.starts_with(place)) {
                return Ok(None);
            }
            asked.push(path.clone());
        }
        if names.len() + asked.len() > NAMES_MOST {
            return Ok(None);
        }
    }
    if !asked.is_empty() {
        for path in git::untracked_of(&known.workspace.top, &asked)? {
            let name = path.into_os_string().into_encoded_bytes();
            // A repository of its own.
            if !name.ends_with(b"/") {
                names.insert(name);
            }
        }
    }
    Ok((names.len() <= NAMES_MOST).then_some(names))
}

/// Looks at names of the host, and makes the commit that has them; `None` where a file came in the
/// place of a directory, or the other way round.
fn take(
    kept: &Kept,
    known: &Known,
    names: BTreeSet<Vec<u8>>,
) -> Result<Option<Taken>, WorkspaceError> {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let now_nanos = i64::try_from(since.as_nanos()).unwrap_or(i64::MAX);
    let top = files::open_top(&known.workspace.top)?;
    let (mut found, mut gone) = (Vec::new(), Vec::new());
    let mut import = FastImport::start(&kept.base())?;
    let mut contents: Vec<(Listed, Content)> = Vec::new();
    for name in names {
        let path = as_path(&name);
        let Some(entry) = open_beneath(&top, path)? else {
            if known.tree.contains_key(&name) {
                gone.push(name);
            }
            continue;
        };
        let parents = path.ancestors().skip(1).map(|parent| parent.as_os_str().as_bytes());
        if base::beneath(&known.tree, &name).next().is_some()
            || parents.into_iter().any(|parent| known.tree.contains_key(parent))
        {
            return Ok(None);
        }
        let (Entry::File(_, metadata) | Entry::Link(_, metadata)) = &entry;
        let listed = files::listed(path, metadata);
        if known.tree.contains_key(&name) && known.host.get(&name) == Some(&listed) {
            continue;
        }
        let mark = match entry {
            Entry::File(file, metadata) => import.blob(metadata.len(), file),
            Entry::Link(target, _) => import.blob(target.len() as u64, &target[..]),
        };
        match mark {
            Ok(mark) => contents.push((listed, Content::Mark(mark))),
            Err(error) => return Err(import.failed(error)),
        }
    }
    if contents.is_empty() && gone.is_empty() {
        import.finish()?;
        return Ok(Some(Taken { different: Vec::new(), found, gone, now_nanos }));
    }
    let set = || {
        import.commit(NEXT, None)?;
        import.root(&known.base.1)?;
        for name in &gone {
            import.delete(name)?;
        }
        for (listed, content) in contents {
            import.set(git_mode(listed.kind, listed.mode), &content, &listed.name)?;
            found.push(listed);
        }
        Ok(())
    };
    match set() {
        Ok(()) => import.finish()?,
        Err(error) => return Err(import.failed(error)),
    }
    let different = git::changed(&kept.base(), (BASE, NEXT))?.into_iter().map(|(name, entry)| {
        Different { name, entry: entry.map(|(mode, object)| TreeEntry { mode, object }) }
    });
    Ok(Some(Taken { different: different.collect(), found, gone, now_nanos }))
}

/// Makes a commit of a tree and what is different from it.
fn commit(
    mut import: FastImport,
    root: &str,
    different: &[(&Vec<u8>, Option<&TreeEntry>)],
) -> Result<(), WorkspaceError> {
    let mut set = || {
        import.commit(NEXT, None)?;
        import.root(root)?;
        for (name, entry) in different {
            match entry {
                Some(entry) => {
                    import.set(entry.mode, &Content::Object(entry.object.clone()), name)?;
                }
                None => import.delete(name)?,
            }
        }
        Ok(())
    };
    match set() {
        Ok(()) => import.finish(),
        Err(error) => Err(import.failed(error)),
    }
}

/// Returns what the guest is to remove: files, and directories that have nothing of ours any more.
fn removals(known: &Known, goes: &[&Different]) -> Vec<PathBuf> {
    let mut removed: Vec<PathBuf> = goes
        .iter()
        .filter(|one| one.entry.is_none())
        .map(|one| as_path(&one.name).to_owned())
        .collect();
    let mut directories: BTreeSet<&Path> = removed
        .iter()
        .flat_map(|path| path.ancestors().skip(1))
        .filter(|path| !path.as_os_str().is_empty())
        .collect();
    directories
        .retain(|path| base::beneath(&known.tree, path.as_os_str().as_bytes()).next().is_none());
    let mut directories: Vec<PathBuf> = directories.into_iter().map(Path::to_owned).collect();
    directories.sort_by_key(|path| std::cmp::Reverse(path.components().count()));
    removed.extend(directories);
    removed
}

/// Makes few packs of the many that rounds leave behind.
fn keep_packs_few(kept: &Kept) -> Result<(), WorkspaceError> {
    let base = kept.base();
    let entries = std::fs::read_dir(base.join("objects/pack")).into_iter().flatten().flatten();
    let packs = entries
        .filter(|entry| entry.path().extension().is_some_and(|extension| extension == "pack"));
    if packs.count() <= PACKS_MOST {
        return Ok(());
    }
    let mut git = git::own(&base);
    git.args(["repack", "--quiet", "-d", "--geometric=2"]);
    git::checked(&mut git, "repack", &base).map(drop)
}
