//! What a guest has done to the files that were carried into it.
//!
//! The guest's listing says which files may be different; those are fetched into a throw-away
//! repository, with what was carried as alternate objects, and git compares trees. Nothing of the
//! guest's own repository is read, and no file is written under a name that the guest chose, but for
//! its `.gitignore` files, which lie in an empty directory of ours while git reads them.

use std::collections::{BTreeSet, HashSet};
use std::ffi::OsStr;
use std::fs;
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::process::Stdio;

use banger_agent_api::{GuestPath, Listed, ListedKind, printable_excerpt};

use crate::agent::{AgentGuest, as_path};
use crate::base::{self, Listing, Tree, is_settled};
use crate::error::{GuestError, WorkspaceError};
use crate::fast_import::{Content, FastImport};
use crate::git;
use crate::guest_git;
use crate::kept::{Kept, WORK};
use crate::repository::Workspace;
use crate::snapshot::BASE;
use crate::tip::{TIP, build_tip};

const COMPARED: &str = "refs/banger/compared";

/// Most bytes of `.gitignore` files.
const IGNORE_LIMIT: u64 = 16 << 20;

/// Most bytes of one new file: a core dump is no work.
const NEW_FILE_LIMIT: u64 = 256 << 20;
/// Most `.gitignore` files, and directories in directories down to which they count.
const IGNORE_MOST: usize = 100_000;
const IGNORE_DEPTH: usize = 128;

/// Names that a message shows.
const SHOWN: usize = 5;

/// What became of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChangeKind {
    /// It is new.
    Added,
    /// Its content or mode is different.
    Modified,
    /// It is gone.
    Deleted,
    /// It has another name.
    Renamed,
    /// It is a link now, or was one.
    Retyped,
}

/// One change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// What became of it.
    pub kind: ChangeKind,
    /// Its name, relative to the repository's top.
    pub name: Vec<u8>,
    /// The name that it had, of a renamed one.
    pub from: Option<Vec<u8>>,
}

/// The guest's work, compared with what was carried.
#[derive(Debug)]
pub struct Work {
    repository: tempfile::TempDir,
    /// What the tip is compared with.
    against: &'static str,
    changes: Vec<Change>,
    moved_branches: Vec<String>,
    repositories: Vec<Vec<u8>>,
    too_large: Vec<Vec<u8>>,
    /// What is no file to be compared, in the place of what is to come.
    obstacles: Vec<Vec<u8>>,
    repository_gone: bool,
    cut_off: bool,
    /// What was listed and looked at, as far as a later change of it would show.
    seen: Listing,
    directories: HashSet<Vec<u8>>,
}

impl Work {
    /// Looks at the guest. What was carried must be kept.
    pub fn collect(
        kept: &Kept,
        guest: &mut AgentGuest,
        root: &GuestPath,
    ) -> Result<Self, WorkspaceError> {
        Self::collect_for(kept, guest, root, &Tree::new())
    }

    /// Looks at the guest, also at those of its files that are ignored or in a repository of its own and
    /// that `next` would replace.
    pub(crate) fn collect_for(
        kept: &Kept,
        guest: &mut AgentGuest,
        root: &GuestPath,
        next: &Tree,
    ) -> Result<Self, WorkspaceError> {
        if !kept.has_base() {
            return Err(WorkspaceError::NotKept { path: kept.directory().to_owned() });
        }
        let tree = base::tree(&kept.base(), BASE)?;
        let known = base::load(&kept.path("guest"));
        let listing = guest
            .list(root, &[".git"])
            .map_err(WorkspaceError::guest("list the machine's files"))?;
        let repository = throw_away(kept)?;
        let found = Found::sort(&listing.entries, &tree, &known);
        let new = not_ignored(repository.path(), guest, root, &listing.entries, found.new)?;
        let mut new: BTreeSet<Vec<u8>> = new.into_iter().collect();
        new.extend(in_the_way(&listing.entries, &tree, next));
        let large = listing.entries.iter().filter(|listed| listed.size > NEW_FILE_LIMIT);
        let too_large: Vec<Vec<u8>> = large.filter_map(|listed| new.take(&listed.name)).collect();
        let obstacles = obstacles(&listing.entries, &tree, next);
        let mut fetched = found.changed;
        fetched.extend(new);
        let mut gone = found.gone;
        build_tip(repository.path(), guest, root, &tree, &fetched, &mut gone)?;
        let changes = changes(repository.path(), BASE)?;
        let places: Vec<Vec<u8>> = places(kept)?;
        let moved_branches = guest_git::moved_refs(&kept.path("refs"), guest, root, &places)?;
        let repository_gone = !listing.entries.iter().any(|listed| listed.name == b".git");
        let now = listing.now_nanos;
        let directories =
            listing.entries.iter().filter(|listed| listed.kind == ListedKind::Directory);
        let directories = directories.map(|listed| listed.name.clone()).collect();
        let settled = listing.entries.into_iter().filter(|listed| is_settled(listed, now));
        Ok(Self {
            repository,
            against: BASE,
            changes,
            moved_branches,
            repositories: found.repositories,
            too_large,
            obstacles,
            repository_gone,
            cut_off: kept.is_unfinished(),
            seen: settled.map(|listed| (listed.name.clone(), listed)).collect(),
            directories,
        })
    }

    /// Compares with a commit of the user's repository instead of what was carried.
    pub fn compare_with(
        &mut self,
        workspace: &Workspace,
        commit: &str,
    ) -> Result<(), WorkspaceError> {
        let commit = git::commit(&workspace.top, commit)?.ok_or_else(|| {
            WorkspaceError::NoCommit { name: commit.to_owned(), path: workspace.top.clone() }
        })?;
        let repository = self.repository.path();
        git::fetch(repository, &workspace.common_dir, &commit, 1, COMPARED)?;
        // Files of submodules are no part of the commit: there it has the submodule's own.
        let modules: Vec<_> = git::tree(repository, COMPARED)?
            .into_iter()
            .filter(git::Indexed::is_submodule)
            .collect();
        if !modules.is_empty() {
            let mut import = FastImport::start(repository)?;
            let mut set = || {
                import.commit(TIP, Some(&format!("{TIP}^0")))?;
                for module in &modules {
                    let name = module.name.as_os_str().as_bytes();
                    import.delete(name)?;
                    import.set(module.mode, &Content::Object(module.object.clone()), name)?;
                }
                Ok(())
            };
            match set() {
                Ok(()) => import.finish()?,
                Err(error) => return Err(import.failed(error)),
            }
        }
        self.against = COMPARED;
        self.changes = changes(repository, COMPARED)?;
        Ok(())
    }

    /// Returns what is different, by name.
    #[must_use]
    pub fn changes(&self) -> &[Change] {
        &self.changes
    }

    /// Returns the guest's branches that are not where they were carried to.
    #[must_use]
    pub fn moved_branches(&self) -> &[String] {
        &self.moved_branches
    }

    /// Returns directories of the guest that are repositories of their own, whose files are not looked
    /// at.
    #[must_use]
    pub fn repositories(&self) -> &[Vec<u8>] {
        &self.repositories
    }

    /// Returns new files of the guest that are too large to be fetched.
    #[must_use]
    pub fn too_large(&self) -> &[Vec<u8>] {
        &self.too_large
    }

    /// Returns whether a prepare was cut off since: then the guest may have files of the host that were
    /// not noted as carried, and they look like its work.
    #[must_use]
    pub fn is_cut_off(&self) -> bool {
        self.cut_off
    }

    /// Returns what the guest has of files and links, but for what is ignored.
    pub(crate) fn tree(&self) -> Result<Tree, WorkspaceError> {
        base::tree(self.repository.path(), TIP)
    }

    /// Says in short what would be lost if `next` came in the place of `there`, which the guest has;
    /// `None` for nothing. A new file of the guest's that `next` does not have stays.
    pub(crate) fn lost(&self, there: &Tree, next: &Tree) -> Option<String> {
        let lost = self.lost_names(there, next);
        let mut parts: Vec<String> = lost
            .iter()
            .take(SHOWN)
            .map(|name| printable_excerpt(&String::from_utf8_lossy(name), 100))
            .collect();
        if lost.len() > SHOWN {
            parts.push(format!("{} more", lost.len() - SHOWN));
        }
        let branches = self.moved_branches.iter().take(SHOWN);
        parts.extend(branches.map(|name| format!("branch {}", printable_excerpt(name, 100))));
        (!parts.is_empty()).then(|| parts.join(", "))
    }

    /// Returns the files of the guest that would be lost if `next` came in the place of `there`.
    pub(crate) fn lost_names(&self, there: &Tree, next: &Tree) -> Vec<Vec<u8>> {
        let names = self.changes.iter().flat_map(|change| {
            let new = (change.kind, &change.name);
            [new].into_iter().chain(change.from.as_ref().map(|from| (ChangeKind::Deleted, from)))
        });
        let directories = directories(next);
        names
            .filter(|(kind, name)| {
                let stays = matches!(kind, ChangeKind::Added | ChangeKind::Renamed)
                    && !meets(name, next, &directories);
                there.get(*name) != next.get(*name) && !stays
            })
            .map(|(_, name)| name)
            .chain(self.too_large.iter().filter(|name| meets(name, next, &directories)))
            .chain(&self.obstacles)
            .cloned()
            .collect()
    }

    /// Returns whether a file of the guest is the one that was looked at.
    pub(crate) fn has_seen(&self, listed: &Listed) -> bool {
        self.seen.get(&listed.name) == Some(listed)
    }

    /// Returns the directories that the guest has, but for those in repositories.
    pub(crate) fn directories(&self) -> &HashSet<Vec<u8>> {
        &self.directories
    }

    pub(crate) fn is_repository_gone(&self) -> bool {
        self.repository_gone
    }

    /// Writes a patch that leads from what it is compared with to what the guest has.
    pub fn write_patch(&self, out: &mut dyn Write) -> Result<(), WorkspaceError> {
        let repository = self.repository.path();
        let mut child = diff_tree(repository)
            .args(["-p", "--binary", "--full-index", "--src-prefix=a/", "--dst-prefix=b/"])
            .args([self.against, TIP])
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .map_err(WorkspaceError::NoGit)?;
        let copied = match child.stdout.take() {
            Some(mut patch) => io::copy(&mut patch, out).and_then(|_| out.flush()),
            None => Err(io::ErrorKind::BrokenPipe.into()),
        };
        let status = child.wait().map_err(WorkspaceError::NoGit)?;
        copied.map_err(WorkspaceError::Output)?;
        if status.success() {
            return Ok(());
        }
        Err(WorkspaceError::Git {
            command: "diff-tree",
            path: repository.to_owned(),
            message: status.to_string(),
        })
    }
}

fn diff_tree(repository: &Path) -> std::process::Command {
    let mut git = git::own(repository);
    git.args(["-c", "diff.renameLimit=2000", "diff-tree", "-r", "-M", "--no-ext-diff"]);
    git.args(["--no-textconv", "--no-color"]);
    git
}

/// The directories that a tree has.
fn directories(tree: &Tree) -> HashSet<&Path> {
    tree.keys().flat_map(|name| as_path(name).ancestors().skip(1)).collect()
}

/// Returns whether a file of the guest is one of `next`, or where `next` has a directory, or in a
/// directory where `next` has a file.
fn meets(name: &[u8], next: &Tree, directories: &HashSet<&Path>) -> bool {
    let path = as_path(name);
    directories.contains(path)
        || path.ancestors().any(|place| next.contains_key(place.as_os_str().as_bytes()))
}

/// Returns the files of the guest that were not carried, and that `next` would replace.
fn in_the_way(entries: &[Listed], tree: &Tree, next: &Tree) -> Vec<Vec<u8>> {
    let directories = directories(next);
    entries
        .iter()
        .filter(|listed| matches!(listed.kind, ListedKind::File | ListedKind::Link))
        .filter(|listed| !tree.contains_key(&listed.name) && !is_gits(as_path(&listed.name)))
        .filter(|listed| meets(&listed.name, next, &directories))
        .map(|listed| listed.name.clone())
        .collect()
}

/// Returns what else of the guest would be lost if `next` came: repositories in directories where it has
/// a file, and sockets, pipes and devices. A directory alone holds nothing.
fn obstacles(entries: &[Listed], tree: &Tree, next: &Tree) -> Vec<Vec<u8>> {
    let directories = directories(next);
    entries
        .iter()
        .filter(|listed| listed.kind == ListedKind::Other || is_gits(as_path(&listed.name)))
        // One in the place of a file that was carried is seen by that file's absence.
        .filter(|listed| !tree.contains_key(&listed.name))
        .filter(|listed| meets(&listed.name, next, &directories))
        .map(|listed| listed.name.clone())
        .collect()
}

/// Returns whether git takes no such name, in any case of its letters.
fn is_gits(path: &Path) -> bool {
    path.components().any(|part| part.as_os_str().as_bytes().eq_ignore_ascii_case(b".git"))
}

/// Makes a repository that has the objects of what was carried, and goes with its value.
pub(crate) fn throw_away(kept: &Kept) -> Result<tempfile::TempDir, WorkspaceError> {
    let base = kept.base();
    let directory = tempfile::Builder::new()
        .prefix(WORK)
        .tempdir_in(kept.directory())
        .map_err(WorkspaceError::keep("make a directory in", kept.directory()))?;
    let repository = directory.path();
    let format = git::checked(
        git::own(&base).args(["rev-parse", "--show-object-format"]),
        "rev-parse",
        &base,
    )?;
    base::init(repository, String::from_utf8_lossy(&format).trim())?;
    let exclude = fs::read(kept.history().join("info/exclude")).unwrap_or_default();
    let mut alternates = base.join("objects").into_os_string().into_encoded_bytes();
    alternates.push(b'\n');
    fs::write(repository.join("objects/info/alternates"), alternates)
        .and_then(|()| fs::create_dir_all(repository.join("info")))
        .and_then(|()| fs::write(repository.join("info/exclude"), exclude))
        .map_err(WorkspaceError::keep("write", repository))?;
    let commit = git::checked(git::own(&base).args(["rev-parse", BASE]), "rev-parse", &base)?;
    let commit = String::from_utf8_lossy(&commit).trim().to_owned();
    git::checked(
        git::own(repository).args(["update-ref", BASE, &commit]),
        "update-ref",
        repository,
    )?;
    Ok(directory)
}

/// Returns where the repository and its submodules are, as their branches were saved.
fn places(kept: &Kept) -> Result<Vec<Vec<u8>>, WorkspaceError> {
    let path = kept.path("refs");
    let text = fs::read(&path).map_err(WorkspaceError::keep("read", path))?;
    let mut places: Vec<Vec<u8>> = text
        .split(|&byte| byte == b'\n')
        .filter_map(|line| Some(line[..line.iter().position(|&byte| byte == 0)?].to_vec()))
        .collect();
    places.push(Vec::new());
    places.sort();
    places.dedup();
    Ok(places)
}

/// What a guest's listing says.
struct Found {
    /// Carried, and perhaps different.
    changed: Vec<Vec<u8>>,
    /// Not carried.
    new: Vec<Vec<u8>>,
    /// Carried, and not there.
    gone: BTreeSet<Vec<u8>>,
    /// Repositories that are not ours.
    repositories: Vec<Vec<u8>>,
}

impl Found {
    fn sort(entries: &[Listed], tree: &Tree, known: &Listing) -> Self {
        let mut found = Self {
            changed: Vec::new(),
            new: Vec::new(),
            gone: tree.keys().cloned().collect(),
            repositories: Vec::new(),
        };
        // A directory with a .git in it is its own repository, but for our submodules.
        let ours: HashSet<&Path> = tree
            .keys()
            .flat_map(|name| as_path(name).ancestors().skip(1))
            .filter(|parent| !parent.as_os_str().is_empty())
            .collect();
        let foreign: HashSet<&Path> = entries
            .iter()
            .filter_map(|listed| as_path(&listed.name).parent().zip(Some(listed)))
            .filter(|(parent, listed)| {
                as_path(&listed.name).file_name() == Some(OsStr::new(".git"))
                    && !parent.as_os_str().is_empty()
                    && !ours.contains(parent)
            })
            .map(|(parent, _)| parent)
            .collect();
        found.repositories =
            foreign.iter().map(|path| path.as_os_str().as_bytes().to_vec()).collect();
        found.repositories.sort();
        for listed in entries {
            if !matches!(listed.kind, ListedKind::File | ListedKind::Link) {
                continue;
            }
            let path = as_path(&listed.name);
            if is_gits(path) {
                continue;
            }
            if tree.contains_key(&listed.name) {
                found.gone.remove(&listed.name);
                if known.get(&listed.name) != Some(listed) {
                    found.changed.push(listed.name.clone());
                }
            } else if foreign.is_empty() || !path.ancestors().any(|parent| foreign.contains(parent))
            {
                found.new.push(listed.name.clone());
            }
        }
        found
    }
}

/// Returns those of the new names that no rule ignores: the rules are the guest's, as they are now,
/// and the user's own.
fn not_ignored(
    repository: &Path,
    guest: &mut AgentGuest,
    root: &GuestPath,
    entries: &[Listed],
    new: Vec<Vec<u8>>,
) -> Result<Vec<Vec<u8>>, WorkspaceError> {
    if new.is_empty() {
        return Ok(new);
    }
    let rules = repository.join("rules");
    fs::create_dir(&rules).map_err(WorkspaceError::keep("make", &rules))?;
    let names: Vec<Vec<u8>> = entries
        .iter()
        .filter(|listed| {
            let path = as_path(&listed.name);
            listed.kind == ListedKind::File
                && path.file_name() == Some(OsStr::new(".gitignore"))
                && !is_gits(path)
                && path.components().count() <= IGNORE_DEPTH
        })
        .map(|listed| listed.name.clone())
        .collect();
    let failed = || WorkspaceError::guest("read the machine's .gitignore files");
    if names.len() > IGNORE_MOST {
        return Err(failed()(GuestError::Bad(format!("there are more than {IGNORE_MOST}"))));
    }
    guest
        .get(root, &names, IGNORE_LIMIT, &mut |name, _, _, content| {
            // The name was asked for, so it climbs nowhere; the directory has no links in it.
            let path = rules.join(as_path(name));
            let mut text = Vec::new();
            content.read_to_end(&mut text)?;
            fs::create_dir_all(path.parent().unwrap_or(&rules))?;
            fs::write(path, text)
        })
        .map_err(failed())?;
    let mut git = git::own(repository);
    git.env("GIT_WORK_TREE", &rules).current_dir(&rules);
    git.args(["check-ignore", "-z", "--stdin", "--no-index"]);
    // As they stand, also where they begin with a colon (gitglossary(7), pathspec).
    let asked = new.iter().flat_map(|name| [&b"./"[..], name, b"\0"].concat()).collect();
    let answer = git::fed(&mut git, "check-ignore", repository, asked)?;
    let ignored: HashSet<&[u8]> =
        git::records(&answer.stdout).map(|name| name.strip_prefix(b"./").unwrap_or(name)).collect();
    Ok(new.into_iter().filter(|name| !ignored.contains(&name[..])).collect())
}

fn changes(repository: &Path, against: &str) -> Result<Vec<Change>, WorkspaceError> {
    let mut git = diff_tree(repository);
    git.args(["-z", "--name-status", against, TIP]);
    let listing = git::checked(&mut git, "diff-tree", repository)?;
    let mut records = git::records(&listing);
    let mut changes = Vec::new();
    while let (Some(status), Some(name)) = (records.next(), records.next()) {
        let kind = match status.first() {
            Some(b'A') => ChangeKind::Added,
            Some(b'D') => ChangeKind::Deleted,
            Some(b'T') => ChangeKind::Retyped,
            Some(b'R') => ChangeKind::Renamed,
            _ => ChangeKind::Modified,
        };
        let (name, from) = match kind {
            ChangeKind::Renamed => (records.next().unwrap_or_default(), Some(name.to_vec())),
            _ => (name, None),
        };
        changes.push(Change { kind, name: name.to_vec(), from });
    }
    Ok(changes)
}
