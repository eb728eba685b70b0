//! A guest's files as a commit of a throw-away repository of ours.

use std::collections::{BTreeSet, HashSet};
use std::io;

use banger_agent_api::GuestPath;

use crate::agent::AgentGuest;
use crate::base::{self, Tree};
use crate::error::WorkspaceError;
use crate::fast_import::{Content, FastImport};
use crate::files::git_mode;
use crate::kept::Kept;
use crate::snapshot::BASE;
use crate::work::throw_away;

/// The commit.
pub(crate) const TIP: &str = "refs/banger/tip";

/// Most bytes of the files that are fetched.
const FILES_LIMIT: u64 = 8 << 30;

/// A file that was fetched: its name, git's mode of it and the mark of its content.
type Fetched = (Vec<u8>, u32, u64);

/// Makes the commit that has the guest's files: those of what was carried, with some fetched anew and
/// without those that are gone.
pub(crate) fn build_tip(
    repository: &std::path::Path,
    guest: &mut AgentGuest,
    root: &GuestPath,
    tree: &Tree,
    names: &[Vec<u8>],
    gone: &mut BTreeSet<Vec<u8>>,
) -> Result<(), WorkspaceError> {
    let (import, fetched) = fetch(FastImport::start(repository)?, guest, root, names)?;
    // Removed since they were listed.
    let missing: HashSet<&[u8]> = fetched.iter().map(|(name, ..)| &name[..]).collect();
    let late = names.iter().filter(|name| !missing.contains(&name[..]) && tree.contains_key(*name));
    gone.extend(late.cloned());
    commit(import, Some(&format!("{BASE}^0")), gone, &fetched)
}

/// Returns how the guest has some names; what is no file or link is absent.
pub(crate) fn contents(
    kept: &Kept,
    guest: &mut AgentGuest,
    root: &GuestPath,
    names: &[Vec<u8>],
) -> Result<Tree, WorkspaceError> {
    let repository = throw_away(kept)?;
    let (import, fetched) = fetch(FastImport::start(repository.path())?, guest, root, names)?;
    commit(import, None, &BTreeSet::new(), &fetched)?;
    base::tree(repository.path(), TIP)
}

fn fetch(
    mut import: FastImport,
    guest: &mut AgentGuest,
    root: &GuestPath,
    names: &[Vec<u8>],
) -> Result<(FastImport, Vec<Fetched>), WorkspaceError> {
    let mut fetched = Vec::new();
    let mut git_failed = None;
    let got = guest.get(root, names, FILES_LIMIT, &mut |name, (kind, mode), size, content| {
        match import.blob(size, content) {
            Ok(mark) => fetched.push((name.to_vec(), git_mode(kind, mode), mark)),
            Err(error) => {
                let kind = error.kind();
                git_failed = Some(error);
                return Err(kind.into());
            }
        }
        Ok(())
    });
    match (got, git_failed) {
        (Ok(()), _) => Ok((import, fetched)),
        (Err(_), Some(error)) if error.kind() == io::ErrorKind::BrokenPipe => {
            Err(import.failed(error))
        }
        (Err(error), _) => Err(WorkspaceError::guest("read the machine's files")(error)),
    }
}

fn commit(
    mut import: FastImport,
    from: Option<&str>,
    gone: &BTreeSet<Vec<u8>>,
    fetched: &[Fetched],
) -> Result<(), WorkspaceError> {
    let mut set = || {
        import.commit(TIP, from)?;
        // First, so that a directory may come where a file was.
        for name in gone {
            import.delete(name)?;
        }
        for (name, mode, mark) in fetched {
            import.set(*mode, &Content::Mark(*mark), name)?;
        }
        Ok(())
    };
    match set() {
        Ok(()) => import.finish(),
        Err(error) => Err(import.failed(error)),
    }
}
