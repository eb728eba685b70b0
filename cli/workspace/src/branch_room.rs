//! Room for the branch that is carried among those that a guest has.
//!
//! A branch `x` and a branch `x/y` exclude each other (git-branch(1), `-m`): the one is a file where the
//! other needs a directory. A branch of the guest's that is in the way goes where the host has its commit,
//! as after the host's own was renamed from `x/y` to `x`; another one is the guest's work.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use banger_agent_api::{GuestPath, ListedKind, printable_excerpt};

use crate::agent::AgentGuest;
use crate::error::WorkspaceError;
use crate::git;
use crate::guest_git::{self, GuestGit};
use crate::prepare::{Newer, Plan};
use crate::repository::Workspace;
use crate::snapshot::Snapshot;

/// What is to become of what is in the way.
#[derive(Debug, Default)]
pub(crate) struct Room {
    /// Names that the guest is to remove first, in this order.
    pub removals: Vec<PathBuf>,
    /// Branches that stay, so that the one that is carried cannot come.
    pub held: Vec<String>,
}

/// Looks for what is in the way of a repository's branch and those of its submodules. A branch that stays
/// is refused where the guest's work may not be left.
pub(crate) fn make(
    snapshot: &Snapshot,
    guest: &mut AgentGuest,
    plan: &Plan,
) -> Result<Room, WorkspaceError> {
    let mut all = Room::default();
    for (git, (_, workspace)) in snapshot.gits.iter().zip(snapshot.workspace.modules()) {
        let room = of_one(git, workspace, guest, &plan.guest_path)?;
        if let (Some(theirs), true) = (room.held.first(), plan.newer != Newer::Leave) {
            let branch = git.branch().unwrap_or_default();
            let branch = branch.strip_prefix("refs/heads/").unwrap_or(branch).to_owned();
            return Err(WorkspaceError::BranchInTheWay { branch, theirs: theirs.clone() });
        }
        all.removals.extend(room.removals);
        all.held.extend(room.held);
    }
    Ok(all)
}

/// Does so for one; `workspace` is that repository on the host.
fn of_one(
    git: &GuestGit,
    workspace: &Workspace,
    guest: &mut AgentGuest,
    root: &GuestPath,
) -> Result<Room, WorkspaceError> {
    let Some(branch) = git.branch() else { return Ok(Room::default()) };
    let has = guest_git::refs_of(guest, root, git.place.as_os_str().as_bytes())?;
    let branch = Path::new(branch);
    let name_of = |name: &[u8]| Path::new(OsStr::from_bytes(name)).to_owned();
    let excludes =
        |name: &Path| name != branch && (name.starts_with(branch) || branch.starts_with(name));
    // Those of no value that is a commit are no branches, and what they are is not for us to say.
    let loose = has.loose.iter().filter(|listed| listed.kind != ListedKind::Directory);
    let loose: BTreeSet<PathBuf> = loose.map(|listed| name_of(&listed.name)).collect();
    let all = has.values.keys().map(|name| name_of(name)).chain(loose.iter().cloned());
    let in_the_way: BTreeSet<PathBuf> = all.filter(|name| excludes(name)).collect();
    let mut room = Room::default();
    for name in in_the_way {
        let value = has.values.get(name.as_os_str().as_bytes());
        let value = value.and_then(|value| std::str::from_utf8(value).ok());
        let value = value.filter(|value| git::is_hash(value));
        let is_known = match value {
            Some(commit) => git::commit(&workspace.top, commit)?.is_some(),
            None => false,
        };
        // To take one out of packed-refs all of them would be written anew.
        let is_loose = loose.contains(&name) && !has.packed.contains(name.as_os_str().as_bytes());
        if is_known && is_loose {
            room.removals.extend(with_log(git, &name));
        } else {
            let shown = name.strip_prefix("refs/heads").unwrap_or(&name);
            room.held.push(printable_excerpt(&shown.to_string_lossy(), 100));
        }
    }
    let directories = has.loose.iter().filter(|listed| listed.kind == ListedKind::Directory);
    let mut directories: Vec<PathBuf> = directories
        .map(|listed| name_of(&listed.name))
        .filter(|name| name.starts_with(branch))
        .collect();
    directories.sort_by_key(|path| std::cmp::Reverse(path.components().count()));
    room.removals.extend(directories.iter().flat_map(|name| with_log(git, name)));
    Ok(room)
}

/// Where the guest has a ref, and where the record of what it was, which lies in files of the same names.
fn with_log(git: &GuestGit, name: &Path) -> [PathBuf; 2] {
    let dot_git = git.place.join(".git");
    [dot_git.join(name), dot_git.join("logs").join(name)]
}
