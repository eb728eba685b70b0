//! A git working tree of the user's, and which files of it there are to carry.

use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use banger_agent_api::printable_excerpt;

use crate::GUEST_PATH;
use crate::error::WorkspaceError;
use crate::git::{self, Indexed};
use crate::kept::Wanted;
use crate::layout;

/// Submodules in submodules that are carried.
const SUBMODULE_DEPTH: usize = 8;

/// Characters of a name in a message.
const NAME_SHOWN: usize = 100;

/// What of a repository is wanted in the guest.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// Untracked files, too; ignored ones never.
    pub include_untracked: bool,
    /// A new branch in the guest.
    pub start: Option<Start>,
}

/// A branch that the guest begins with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Start {
    /// Its name, without `refs/heads/`.
    pub branch: String,
    /// The commit that it begins at; the one checked out where absent.
    pub from: Option<String>,
}

/// A working tree and the files of it to carry.
#[derive(Debug)]
pub struct Workspace {
    /// The working tree's top, canonical.
    pub top: PathBuf,
    /// The directory that the user named, relative to `top`; empty where it is the top.
    pub inside: PathBuf,
    /// The commit that the guest begins with, where there is one.
    pub head: Option<String>,
    /// The branch that the guest is on (`refs/heads/...`), where it is on one.
    pub branch: Option<String>,
    /// Whether that branch was asked for.
    pub own_branch: bool,
    /// Untracked files that are not carried.
    pub skipped_untracked: usize,
    /// What was asked for.
    pub(crate) wanted: Wanted,
    /// Whether the files are those of `head`, and not the working tree's.
    pub(crate) is_commit: bool,
    /// The repository's directory that linked working trees share.
    pub(crate) common_dir: PathBuf,
    /// The repository's own directory; it has the index.
    pub(crate) git_dir: PathBuf,
    /// `sha1` or `sha256`.
    pub(crate) object_format: String,
    /// Names to carry, relative to `top`, sorted.
    pub(crate) files: Vec<PathBuf>,
    /// Objects that the index has.
    pub(crate) index_objects: Vec<String>,
    /// Submodules that are checked out, and where they are in `top`.
    pub(crate) submodules: Vec<(PathBuf, Workspace)>,
    /// Submodules that are not: empty directories.
    pub(crate) absent_submodules: Vec<PathBuf>,
}

impl Workspace {
    /// Looks at the repository around `path`; reads no file of it yet.
    pub fn open(path: &Path, options: &Options) -> Result<Self, WorkspaceError> {
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
        let mut workspace = Self::open_top(top, options.include_untracked, 0)?;
        workspace.inside = inside;
        if let Some(start) = &options.start {
            workspace.start_at(start)?;
        }
        let inside = &workspace.inside;
        let has_inside = inside.as_os_str().is_empty()
            || workspace.files.iter().any(|file| file.starts_with(inside))
            || workspace.submodules.iter().any(|(path, _)| inside.starts_with(path));
        if !has_inside {
            return Err(WorkspaceError::NothingTracked { path: canonical });
        }
        Ok(workspace)
    }

    fn open_top(
        top: PathBuf,
        include_untracked: bool,
        depth: usize,
    ) -> Result<Self, WorkspaceError> {
        let layout = layout::check(&top)?;
        let says = git::top_level(&top)?;
        if says.canonicalize().ok().as_ref() != Some(&top) {
            return Err(WorkspaceError::Elsewhere { path: top, says });
        }
        let canonical = |path: PathBuf| path.canonicalize().unwrap_or_default();
        if canonical(git::git_dir(&top)?) != layout.git_dir
            || canonical(git::common_dir(&top)?) != layout.common_dir
        {
            return Err(WorkspaceError::ForeignGit { path: top.join(".git") });
        }
        let entries = git::indexed(&top)?;
        check_names(&top, &entries)?;
        let (modules, tracked): (Vec<Indexed>, Vec<Indexed>) =
            entries.into_iter().partition(Indexed::is_submodule);
        let mut index_objects: Vec<String> =
            tracked.iter().map(|entry| entry.object.clone()).collect();
        index_objects.sort_unstable();
        index_objects.dedup();
        let mut files: Vec<PathBuf> = tracked.into_iter().map(|entry| entry.name).collect();
        let untracked = git::untracked(&top)?;
        let mut skipped_untracked = 0;
        if include_untracked {
            // A name with a slash at its end is a repository of its own.
            files.extend(
                untracked.into_iter().filter(|path| !path.as_os_str().as_bytes().ends_with(b"/")),
            );
        } else {
            skipped_untracked = untracked.len();
        }
        // As git sorts: by bytes, and not by components.
        files.sort_unstable_by(|a, b| a.as_os_str().as_bytes().cmp(b.as_os_str().as_bytes()));
        files.dedup();
        let (mut submodules, mut absent_submodules) = (Vec::new(), Vec::new());
        for module in modules {
            let place = top.join(&module.name);
            // A link on the way would lead out of the working tree.
            let is_here = place.canonicalize().is_ok_and(|canonical| canonical == place)
                && place.join(".git").symlink_metadata().is_ok()
                && depth < SUBMODULE_DEPTH;
            if is_here {
                let inner = Self::open_top(place, include_untracked, depth + 1)?;
                skipped_untracked += inner.skipped_untracked;
                submodules.push((module.name, inner));
            } else {
                absent_submodules.push(module.name);
            }
        }
        Ok(Self {
            head: git::current_head(&top)?,
            branch: git::branch(&top)?,
            common_dir: layout.common_dir,
            git_dir: layout.git_dir,
            object_format: git::object_format(&top)?,
            own_branch: false,
            inside: PathBuf::new(),
            skipped_untracked,
            wanted: Wanted { include_untracked, from: None },
            is_commit: false,
            files,
            index_objects,
            submodules,
            absent_submodules,
            top,
        })
    }

    /// Takes a new branch, and where it begins elsewhere that commit's files.
    fn start_at(&mut self, start: &Start) -> Result<(), WorkspaceError> {
        if !git::is_branch_name(&self.top, &start.branch)? {
            return Err(WorkspaceError::BranchName { name: start.branch.clone() });
        }
        self.branch = Some(format!("refs/heads/{}", start.branch));
        self.own_branch = true;
        let Some(from) = &start.from else { return Ok(()) };
        self.wanted.from = Some(from.clone());
        let commit = git::commit(&self.top, from)?.ok_or_else(|| WorkspaceError::NoCommit {
            name: from.clone(),
            path: self.top.clone(),
        })?;
        if self.head.as_ref() == Some(&commit) {
            return Ok(());
        }
        self.head = Some(commit.clone());
        self.is_commit = true;
        self.submodules.clear();
        self.absent_submodules.clear();
        self.index_objects.clear();
        self.skipped_untracked = 0;
        let entries = git::user_tree(&self.top, &commit)?;
        check_names(&self.top, &entries)?;
        let (modules, files): (Vec<Indexed>, Vec<Indexed>) =
            entries.into_iter().partition(Indexed::is_submodule);
        self.files = files.into_iter().map(|entry| entry.name).collect();
        self.absent_submodules = modules.into_iter().map(|entry| entry.name).collect();
        Ok(())
    }

    /// Returns whether the working tree's own files stay on the host, because the guest begins with
    /// another commit.
    #[must_use]
    pub fn leaves_changes(&self) -> bool {
        self.is_commit
    }

    /// Returns how many names there are to carry.
    #[must_use]
    pub fn len(&self) -> usize {
        self.files.len() + self.submodules.iter().map(|(_, module)| module.len()).sum::<usize>()
    }

    /// Returns whether there is nothing to carry.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns all names to carry, those of submodules too, relative to the top.
    #[must_use]
    pub fn names(&self) -> Vec<PathBuf> {
        let mut names = self.files.clone();
        for (path, module) in &self.submodules {
            names.extend(module.names().into_iter().map(|name| path.join(name)));
        }
        names.sort_unstable_by(|a, b| a.as_os_str().as_bytes().cmp(b.as_os_str().as_bytes()));
        names
    }

    /// Returns whether a file is carried under this name.
    #[must_use]
    pub fn has_file(&self, name: &Path) -> bool {
        self.files.iter().any(|file| file == name)
    }

    /// Returns the repository and its submodules, each with its place below the top.
    pub(crate) fn modules(&self) -> Vec<(PathBuf, &Workspace)> {
        let mut all = vec![(PathBuf::new(), self)];
        for (path, module) in &self.submodules {
            all.extend(module.modules().into_iter().map(|(inner, m)| (path.join(inner), m)));
        }
        all
    }

    /// Returns the directory in the guest that is the user's own.
    #[must_use]
    pub fn guest_directory(&self) -> Vec<u8> {
        let mut path = PathBuf::from(GUEST_PATH);
        if !self.inside.as_os_str().is_empty() {
            path.push(&self.inside);
        }
        path.into_os_string().into_encoded_bytes()
    }
}

/// Returns an error for a name that git lets nobody make, and that only a crafted index or tree has: it
/// would be carried into the machine's own repository, or out of the working tree.
fn check_names(top: &Path, entries: &[Indexed]) -> Result<(), WorkspaceError> {
    let is_odd =
        |part: &[u8]| matches!(part, b"" | b"." | b"..") || part.eq_ignore_ascii_case(b".git");
    let name = |entry: &Indexed| entry.name.as_os_str().as_bytes().to_owned();
    match entries.iter().map(name).find(|name| name.split(|&byte| byte == b'/').any(is_odd)) {
        None => Ok(()),
        Some(name) => Err(WorkspaceError::OddName {
            name: printable_excerpt(&String::from_utf8_lossy(&name), NAME_SHOWN),
            path: top.to_owned(),
        }),
    }
}
