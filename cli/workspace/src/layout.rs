//! Whether a repository lies where it says, with everything that git would follow from it.
//!
//! An unpacked archive may hold a `.git` that leads to another repository of the user's, as a whole
//! (gitrepository-layout(5): `gitdir`, `commondir`) or in parts: by symbolic links, or by the alternate
//! object stores of `objects/info/alternates`. The history of that one would go along into the
//! machine. So nothing of the kind is followed, and it is looked for before git sees the repository.

use std::fs;
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use crate::error::WorkspaceError;
use crate::files::{self, Entry, open_beneath};
use crate::git;

/// Names of a repository's directory that git reads for what is asked of it here; of the first kind all
/// that lies below, too.
const WALKED: [&[u8]; 4] = [b"refs", b"reftable", b"objects", b"info"];
const READ: [&[u8]; 8] = [
    b"HEAD",
    b"config",
    b"config.worktree",
    b"packed-refs",
    b"shallow",
    b"index",
    b"gitdir",
    b"commondir",
];
/// The other halves of split indexes (git-update-index(1)).
pub(crate) const SHARED_INDEX: &[u8] = b"sharedindex.";

/// Most bytes of a file that names a directory.
const LEAD_LIMIT: u64 = 8 << 10;

/// A repository's directories, canonical.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Layout {
    /// Its own; it has the index.
    pub git_dir: PathBuf,
    /// The one that linked working trees share.
    pub common_dir: PathBuf,
}

/// Returns where the repository of a working tree lies, if it is that tree's own: a directory, or what
/// the `.git` file of a linked working tree or a submodule leads to and what leads back.
pub(crate) fn check(top: &Path) -> Result<Layout, WorkspaceError> {
    let dot_git = top.join(".git");
    let failed = |source| WorkspaceError::Path { path: dot_git.clone(), source };
    let foreign = || WorkspaceError::ForeignGit { path: dot_git.clone() };
    let kind = dot_git.symlink_metadata().map_err(failed)?.file_type();
    if kind.is_dir() {
        return one(dot_git);
    }
    if !kind.is_file() {
        return Err(foreign());
    }
    let text = lead(top, ".git")?.ok_or_else(foreign)?;
    let leads_to = text.strip_prefix(b"gitdir: ").ok_or_else(foreign)?;
    let git_dir = top.join(git::path(leads_to)).canonicalize().map_err(|_| foreign())?;
    let Some(common) = lead(&git_dir, "commondir")? else {
        // A submodule: its configuration names the working tree.
        let layout = one(git_dir.clone())?;
        let configuration = git_dir.join("config");
        let configuration = configuration.to_str().ok_or_else(foreign)?;
        let tree = git::setting(top, &["--file", configuration], "core.worktree")?;
        let back = tree.and_then(|path| git_dir.join(git::path(&path)).canonicalize().ok());
        return if back.as_deref() == Some(top) { Ok(layout) } else { Err(foreign()) };
    };
    // A linked working tree: gitdir names our .git, and the repository has it among its own. Nobody
    // makes an entry there who cannot write to the repository.
    let common_dir = git_dir.join(git::path(&common)).canonicalize().map_err(|_| foreign())?;
    let back = lead(&git_dir, "gitdir")?.ok_or_else(foreign)?;
    let back = git_dir.join(git::path(&back)).canonicalize().ok();
    if git_dir.parent() != Some(&common_dir.join("worktrees"))
        || back != dot_git.canonicalize().ok()
    {
        return Err(foreign());
    }
    check_directory(&git_dir)?;
    let Layout { common_dir, .. } = one(common_dir)?;
    Ok(Layout { git_dir, common_dir })
}

/// Checks a repository that shares nothing with another.
fn one(git_dir: PathBuf) -> Result<Layout, WorkspaceError> {
    let commondir = git_dir.join("commondir");
    if commondir.symlink_metadata().is_ok() {
        return Err(WorkspaceError::ForeignGit { path: commondir });
    }
    check_directory(&git_dir)?;
    Ok(Layout { common_dir: git_dir.clone(), git_dir })
}

/// Checks that nothing in a repository's directory leads out of it.
fn check_directory(directory: &Path) -> Result<(), WorkspaceError> {
    let alternates = directory.join("objects/info/alternates");
    let mut ahead = vec![(directory.to_owned(), true)];
    while let Some((directory, is_top)) = ahead.pop() {
        let failed = |source| WorkspaceError::Path { path: directory.clone(), source };
        let entries = match fs::read_dir(&directory) {
            // A pack or ref that git has just put elsewhere.
            Err(error) if error.kind() == io::ErrorKind::NotFound && !is_top => continue,
            entries => entries.map_err(failed)?,
        };
        for entry in entries {
            let entry = entry.map_err(failed)?;
            let name = entry.file_name();
            let name = name.as_bytes();
            let is_walked = !is_top || WALKED.contains(&name);
            if !is_walked && !READ.contains(&name) && !name.starts_with(SHARED_INDEX) {
                continue;
            }
            let path = entry.path();
            let kind = entry.file_type().map_err(failed)?;
            if path == alternates {
                return Err(WorkspaceError::Alternates { path });
            }
            if kind.is_dir() && is_walked {
                ahead.push((path, false));
            } else if !kind.is_file() {
                return Err(WorkspaceError::OddGit { path });
            }
        }
    }
    Ok(())
}

/// Reads a file of one line.
fn lead(directory: &Path, name: &str) -> Result<Option<Vec<u8>>, WorkspaceError> {
    let text = read_beneath(directory, Path::new(name), LEAD_LIMIT)?;
    Ok(text.map(|text| text.trim_ascii_end().to_owned()))
}

/// Reads a file below a directory without following a link, where it is there; what is no file, and one
/// of more than `limit` bytes, is refused.
pub(crate) fn read_beneath(
    directory: &Path,
    name: &Path,
    limit: u64,
) -> Result<Option<Vec<u8>>, WorkspaceError> {
    let path = directory.join(name);
    let failed = |source| WorkspaceError::Path { path: path.clone(), source };
    match open_beneath(&files::open_top(directory)?, name)? {
        Some(Entry::File(file, _)) => read_capped(file, limit).map(Some).map_err(failed),
        None if path.symlink_metadata().is_err() => Ok(None),
        Some(Entry::Link(..)) | None => Err(WorkspaceError::OddGit { path }),
    }
}

/// Reads a file of at most `limit` bytes.
pub(crate) fn read_capped(file: impl Read, limit: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    file.take(limit + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > limit {
        return Err(io::Error::other(format!("it is over {limit} bytes")));
    }
    Ok(bytes)
}
