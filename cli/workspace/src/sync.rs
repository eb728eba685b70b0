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
//! The guest's own work stays as it is, unless it is to be overwritten. What was left alone is looked at
//! again once either side has changed it.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use banger_agent_api::{GuestPath, Listed, ListedKind};

use crate::agent::{AgentGuest, GuestListing, as_path};
use crate::archive::{self, Archive};
use crate::base::{self, Listing, Objects, Tree, TreeEntry, is_settled};
use crate::error::{GuestError, WorkspaceError};
use crate::fast_import::FastImport;
use crate::files::{self, Entry, open_beneath};
use crate::git;
use crate::kept::{Keeping, Kept};
use crate::prepare::{Newer, Plan, Prepared, Sent, SentEntry, prepare};
use crate::pruning;
use crate::repository::{Options, Workspace};
use crate::snapshot::{BASE, NEXT, Snapshot};
use crate::taking::{Different, Taken, commit, names, take};
use crate::tip;

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
pub(crate) struct Known {
    /// The commit of what was carried, and its tree: another command makes another.
    pub base: (String, String),
    pub tree: Tree,
    pub host: Listing,
    guest: Listing,
    pub workspace: Workspace,
    /// All names that are to be carried, also those that are no file now.
    pub names: BTreeSet<Vec<u8>>,
    /// What is left alone, and as what; `None` where a later change might not show.
    pub left: BTreeMap<Vec<u8>, Option<LeftAs>>,
    /// Branches that the guest has moved, as the last whole look found them.
    left_branches: Vec<String>,
}

/// How both sides had a name when it was left alone; `None` is a name that is not there.
#[derive(Debug)]
pub(crate) struct LeftAs {
    host: Option<Listed>,
    guest: Option<Listed>,
    /// What the guest's content is.
    content: Option<TreeEntry>,
}

impl Known {
    /// Begins what a round of some names did: the guest's repository is as it was.
    fn begin(&self) -> Prepared {
        let left = self.left.keys().cloned().collect();
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
            left: prepared.left.iter().map(|name| (name.clone(), None)).collect(),
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
        let Some(again) = self.left_again(&known)? else { return Ok(None) };
        let Some(names) = names(&known, changed, again, self.source.1.include_untracked)? else {
            return Ok(None);
        };
        let Some(prepared) = self.carry(&kept, &mut known, &names)? else { return Ok(None) };
        self.known = Some(known);
        pruning::after_round(&kept)?;
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

    /// Returns what was left alone and may be carried by now, because the host or the guest has changed it;
    /// `None` where only a whole look can say.
    fn left_again(&mut self, known: &Known) -> Result<Option<BTreeSet<Vec<u8>>>, WorkspaceError> {
        let mut again = BTreeSet::new();
        let mut as_before = Vec::new();
        let top = files::open_top(&known.workspace.top)?;
        for (name, left) in &known.left {
            let host = match open_beneath(&top, as_path(name))? {
                Some(Entry::File(_, metadata) | Entry::Link(_, metadata)) => {
                    Some(files::listed(as_path(name), &metadata))
                }
                None => None,
            };
            match left {
                Some(left) if left.host == host => as_before.push((name.clone(), &left.guest)),
                _ => drop(again.insert(name.clone())),
            }
        }
        if as_before.is_empty() {
            return Ok(Some(again));
        }
        let asked: Vec<Vec<u8>> = as_before.iter().map(|(name, _)| name.clone()).collect();
        let Some(listing) = self.list_names(&asked)? else { return Ok(None) };
        let there = by_name(&listing.entries);
        let is_changed = |(name, guest): &(Vec<u8>, &Option<Listed>)| {
            there.get(&name[..]).copied() != guest.as_ref()
        };
        again.extend(as_before.into_iter().filter(is_changed).map(|(name, _)| name));
        Ok(Some(again))
    }

    /// Asks how the guest has some names; `None` where its agent is too old to say, so that each round is
    /// a whole look.
    fn list_names(&mut self, names: &[Vec<u8>]) -> Result<Option<GuestListing>, WorkspaceError> {
        match self.guest.list_names(&self.plan.guest_path, names) {
            Err(GuestError::OldAgent) => Ok(None),
            other => other.map(Some).map_err(WorkspaceError::guest("look at the machine's files")),
        }
    }

    fn carry(
        &mut self,
        kept: &Kept,
        known: &mut Known,
        names: &BTreeSet<Vec<u8>>,
    ) -> Result<Option<Prepared>, WorkspaceError> {
        let Some(taken) = take(kept, known, names)? else { return Ok(None) };
        if taken.different.is_empty() {
            known.left.retain(|name, _| !names.contains(name));
            let prepared = known.begin();
            taken.note(known);
            return Ok(Some(prepared));
        }
        let Some(judged) = self.judge(kept, known, &taken)? else { return Ok(None) };
        let base = kept.base();
        let kept_back = |different: &&Different| !judged.left.contains_key(&different.name);
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
        known.guest.extend(judged.noted.into_iter().map(|listed| (listed.name.clone(), listed)));
        let goes: Vec<&Different> =
            carried.iter().copied().filter(|one| !judged.same.contains(&one.name)).collect();
        known.left.retain(|name, _| !names.contains(name));
        known.left.extend(judged.left);
        let mut prepared = known.begin();
        if !goes.is_empty() {
            kept.set_unfinished(true)?;
            self.send(kept, known, &goes, &taken, &mut prepared)?;
        }
        git::checked(git::own(&base).args(["update-ref", BASE, &next.0]), "update-ref", &base)?;
        kept.set_unfinished(false)?;
        known.base = next;
        taken.note(known);
        Ok(Some(prepared))
    }

    /// Says how the guest has the names that are different; `None` where names alone do not say it.
    fn judge(
        &mut self,
        kept: &Kept,
        known: &Known,
        taken: &Taken,
    ) -> Result<Option<Judged>, WorkspaceError> {
        let different = &taken.different[..];
        let parents = different.iter().flat_map(|one| as_path(&one.name).ancestors());
        let asked: BTreeSet<Vec<u8>> = parents
            .filter(|path| !path.as_os_str().is_empty())
            .map(|path| path.as_os_str().as_bytes().to_vec())
            .collect();
        let asked: Vec<Vec<u8>> = asked.into_iter().collect();
        let Some(listing) = self.list_names(&asked)? else { return Ok(None) };
        let there = by_name(&listing.entries);
        let left_as = |name: &[u8], content: Option<&TreeEntry>| {
            let (host, guest) = (taken.settled(name)?.cloned(), there.get(name).copied());
            let is_settled = guest.is_none_or(|guest| is_settled(guest, listing.now_nanos));
            is_settled.then(|| LeftAs { host, guest: guest.cloned(), content: content.cloned() })
        };
        let is_directory = |path: &Path| {
            let listed = there.get(path.as_os_str().as_bytes());
            listed.is_none_or(|listed| listed.kind == ListedKind::Directory)
        };
        let mut judged = Judged::default();
        let (mut unsure, mut unread, mut has) = (Vec::new(), Vec::new(), Tree::new());
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
                if self.plan.newer == Newer::Leave && known.left.contains_key(&one.name) {
                    judged.left.insert(one.name.clone(), None);
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
                    judged.left.insert(one.name.clone(), left_as(&one.name, None));
                }
                (Some(_), Some(now)) if known.guest.get(&one.name) == Some(*now) => {}
                (_, Some(now)) => {
                    unsure.push(one);
                    match known.left.get(&one.name) {
                        Some(Some(LeftAs {
                            guest: Some(guest), content: Some(content), ..
                        })) if guest == *now => {
                            has.insert(one.name.clone(), content.clone());
                        }
                        _ => unread.push(one.name.clone()),
                    }
                }
            }
        }
        if !unread.is_empty() {
            let root = &self.plan.guest_path;
            has.extend(tip::contents(kept, &mut self.guest, root, &unread)?);
        }
        for one in unsure {
            let now = has.get(&one.name);
            if now == one.entry.as_ref() {
                judged.same.insert(one.name.clone());
                let listed = there.get(&one.name[..]).copied();
                let settled = listed.filter(|listed| is_settled(listed, listing.now_nanos));
                judged.noted.extend(settled.cloned());
            } else if now != known.tree.get(&one.name) {
                judged.left.insert(one.name.clone(), left_as(&one.name, now));
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
    /// Of these what the guest has, where a later change of it would show.
    noted: Vec<Listed>,
    /// Changed by the guest.
    left: BTreeMap<Vec<u8>, Option<LeftAs>>,
}

fn by_name(entries: &[Listed]) -> BTreeMap<&[u8], &Listed> {
    entries.iter().map(|listed| (&listed.name[..], listed)).collect()
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
