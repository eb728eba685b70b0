//! Takes what is to be carried out of the user's repository.

use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use banger_agent_api::Listed;

use crate::base::{self, Listing, Objects, Tree, TreeEntry, is_settled};
use crate::error::WorkspaceError;
use crate::fast_import::{Content, FastImport};
use crate::files::{self, Entry, git_mode, open_beneath};
use crate::git;
use crate::guest_git::GuestGit;
use crate::kept::{HISTORY, Kept};
use crate::repository::Workspace;

/// What was carried.
pub(crate) const BASE: &str = "refs/banger/base";
/// What is about to be.
pub(crate) const NEXT: &str = "refs/banger/next";

/// A repository's state, taken and ready to be carried.
#[derive(Debug)]
pub struct Snapshot {
    pub(crate) workspace: Workspace,
    pub(crate) gits: Vec<GuestGit>,
    /// Every file and link.
    pub(crate) tree: Tree,
    /// What the host's files looked like; without those that come from a commit.
    pub(crate) host: Listing,
    /// Names that are tracked and no file or link any more.
    pub(crate) missing: u64,
}

impl Snapshot {
    /// Takes it; reads every file that has changed since the last one, and none of the others.
    pub fn take(kept: &Kept, workspace: Workspace) -> Result<Self, WorkspaceError> {
        let (repository, history) = (kept.base(), kept.history());
        for ours in [&repository, &history] {
            if ours.exists() && !is_of_format(ours, &workspace.object_format) {
                // Another repository than before: nothing of the old one can be in the new.
                fs::remove_dir_all(ours).map_err(WorkspaceError::keep("remove", ours))?;
            }
        }
        let mut gits = Vec::new();
        for (number, (place, module)) in workspace.modules().into_iter().enumerate() {
            let ours = match number {
                0 => PathBuf::from(HISTORY),
                number => Path::new("modules").join(format!("{number}.git")),
            };
            if number > 0 {
                let of_module = kept.directory().join(&ours);
                let modules = kept.path("modules");
                fs::create_dir_all(&modules).map_err(WorkspaceError::keep("make", modules))?;
                if of_module.exists() && !is_of_format(&of_module, &module.object_format) {
                    fs::remove_dir_all(&of_module)
                        .map_err(WorkspaceError::keep("remove", &of_module))?;
                }
            }
            gits.push(GuestGit::make(place, module, (kept, ours))?);
        }
        if !repository.join("objects").exists() {
            base::init(&repository, &workspace.object_format)?;
        }
        // A file that is as in the history is there already.
        base::borrow(&repository, &history)?;
        let mut import = FastImport::start(&repository)?;
        let taken = if workspace.is_commit {
            Self::of_commit(&mut import, &repository, &workspace)
        } else {
            Self::of_files(&mut import, kept, &workspace)
        };
        let (host, missing) = match taken {
            Ok(taken) => {
                import.finish()?;
                taken
            }
            Err(Failure::File(error)) => return Err(error),
            Err(Failure::Git(error)) => return Err(import.failed(error)),
        };
        let tree = base::tree(&repository, NEXT)?;
        Ok(Self { workspace, gits, tree, host, missing })
    }

    fn of_commit(
        import: &mut FastImport,
        repository: &Path,
        workspace: &Workspace,
    ) -> Result<(Listing, u64), Failure> {
        let head = workspace.head.as_deref().unwrap_or_default();
        let entries = git::tree(repository, head).map_err(Failure::File)?;
        import.commit(NEXT, None)?;
        for entry in entries.into_iter().filter(|entry| !entry.is_submodule()) {
            let name = entry.name.as_os_str().as_bytes();
            import.set(entry.mode, &Content::Object(entry.object), name)?;
        }
        Ok((Listing::new(), 0))
    }

    fn of_files(
        import: &mut FastImport,
        kept: &Kept,
        workspace: &Workspace,
    ) -> Result<(Listing, u64), Failure> {
        let (before, objects) = if kept.path("host").exists() {
            let tree = base::tree(&kept.base(), BASE).unwrap_or_default();
            (base::load(&kept.path("host")), tree)
        } else {
            (Listing::new(), Tree::new())
        };
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let now = i64::try_from(now.as_nanos()).unwrap_or(i64::MAX);
        let top = files::open_top(&workspace.top).map_err(Failure::File)?;
        let mut found: Vec<(Listed, Content)> = Vec::new();
        let mut missing = 0;
        for name in workspace.names() {
            let Some(entry) = open_beneath(&top, &name).map_err(Failure::File)? else {
                missing += 1;
                continue;
            };
            let bytes = name.as_os_str().as_bytes();
            let (Entry::File(_, metadata) | Entry::Link(_, metadata)) = &entry;
            let listed = files::listed(&name, metadata);
            let known = objects.get(bytes).filter(|_| before.get(bytes) == Some(&listed));
            let content = match (known, entry) {
                (Some(TreeEntry { object, .. }), _) => Content::Object(object.clone()),
                (None, Entry::File(file, metadata)) => {
                    Content::Mark(import.blob(metadata.len(), file)?)
                }
                (None, Entry::Link(target, _)) => {
                    Content::Mark(import.blob(target.len() as u64, &target[..])?)
                }
            };
            found.push((listed, content));
        }
        import.commit(NEXT, None)?;
        let mut host = Listing::with_capacity(found.len());
        for (listed, content) in found {
            import.set(git_mode(listed.kind, listed.mode), &content, &listed.name)?;
            if is_settled(&listed, now) {
                host.insert(listed.name.clone(), listed);
            }
        }
        Ok((host, missing))
    }

    /// Returns how many files and links there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.tree.len()
    }

    /// Returns whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.tree.is_empty()
    }

    /// Returns the working tree.
    #[must_use]
    pub fn workspace(&self) -> &Workspace {
        &self.workspace
    }

    /// Opens the files as they were taken, where they are a commit's or `always`. What is read from the
    /// working tree once more may have changed since.
    pub(crate) fn objects(
        &self,
        kept: &Kept,
        always: bool,
    ) -> Result<Option<Objects>, WorkspaceError> {
        (always || self.workspace.is_commit).then(|| Objects::open(&kept.base())).transpose()
    }
}

enum Failure {
    /// The user's file.
    File(WorkspaceError),
    /// What git was told; it says itself what is wrong.
    Git(io::Error),
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Git(error)
    }
}

/// Whether a repository of ours has this hash; a damaged one has none.
fn is_of_format(repository: &Path, format: &str) -> bool {
    git::checked(
        git::own(repository).args(["rev-parse", "--show-object-format"]),
        "rev-parse",
        repository,
    )
    .is_ok_and(|answer| answer.trim_ascii_end() == format.as_bytes())
}
