//! Keeps what is kept of a machine from growing with every version of a file that was carried.
//!
//! ```text
//!   history.git   what the guest's repository gets   the recent commits, and what is in the index
//!   base.git      what was carried                   of that what history.git lacks
//! ```
//! Every look leaves a pack with what was new to it, and what nobody asks for any more lies in the packs of
//! earlier ones. They are made one pack again when they have become twice as large as that was, so that
//! they stay within a constant of what is needed, and what is written for it within a constant of what
//! came. A round that finds them many makes the small ones one, and leaves the largest as it is.
//!
//! New packs are there before old ones go, so that what is cut off has only taken room.

use std::collections::HashSet;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use crate::error::WorkspaceError;
use crate::git;
use crate::guest_git::{GuestGit, HEAD};
use crate::kept::Kept;
use crate::snapshot::{BASE, NEXT};

/// Packs that may be there; each round leaves one.
const PACKS_MOST: usize = 64;
/// Bytes that nobody asks for any more and that are no reason to pack anew.
const UNUSED_LEAST: u64 = 4 << 20;
/// The file of a repository of ours with the bytes that its packs had when they were made one.
const NEEDED: &str = "needed";

/// Objects of git, by the hexadecimal names that it prints.
type Objects = HashSet<Vec<u8>>;

/// Drops what is not needed from what was carried, after a round of some names.
pub(crate) fn after_round(kept: &Kept) -> Result<(), WorkspaceError> {
    let base = kept.base();
    let packs = packs(&base)?;
    if is_due(&base, &packs)? {
        let made = pack(&base, &objects(&base, &[BASE, NEXT])?, &["--local".into()])?;
        return keep_only(&base, &[made.as_deref()]);
    }
    if packs.len() <= PACKS_MOST {
        return Ok(());
    }
    let largest = packs.iter().max_by_key(|(_, size)| *size).and_then(|(path, _)| path.file_stem());
    let Some(largest) = largest else { return Ok(()) };
    let mut keep = OsString::from("--keep-pack=");
    keep.push(largest);
    keep.push(".pack");
    let made = pack(&base, &objects(&base, &[BASE, NEXT])?, &["--local".into(), keep])?;
    remove_others(&base, &[made.as_deref(), Some(largest)])
}

/// Drops what is not needed from what was carried and from what the guest's repositories are made of, the
/// first of which is the one of the top.
pub(crate) fn after_look(kept: &Kept, gits: &[GuestGit]) -> Result<(), WorkspaceError> {
    for (number, git) in gits.iter().enumerate() {
        let repository = &git.repository(kept);
        if !is_due(repository, &packs(repository)?)? {
            continue;
        }
        let needed = needed_of(git, repository)?;
        let made = pack(repository, &needed, &[])?;
        if number == 0 {
            // What was carried has the objects of this one: of those that go it takes its own.
            let base = kept.base();
            let mut carried = objects(&base, &[BASE, NEXT])?;
            carried.retain(|object| !needed.contains(object));
            let of_base = pack(&base, &carried, &[])?;
            keep_only(&base, &[of_base.as_deref()])?;
        }
        keep_only(repository, &[made.as_deref()])?;
        keep_shallow(repository, &needed)?;
    }
    after_round(kept)
}

/// Returns what a guest's repository needs.
fn needed_of(git: &GuestGit, repository: &Path) -> Result<Objects, WorkspaceError> {
    let mut needed = objects(repository, &[HEAD])?;
    needed.extend(git.index_objects().iter().map(|object| object.clone().into_bytes()));
    Ok(needed)
}

/// Returns the packs of a repository, and their sizes.
fn packs(repository: &Path) -> Result<Vec<(PathBuf, u64)>, WorkspaceError> {
    let mut packs = Vec::new();
    for path in pack_files(repository)? {
        if path.extension() == Some(OsStr::new("pack")) {
            let size = fs::metadata(&path).map_err(WorkspaceError::keep("look at", &path))?.len();
            packs.push((path, size));
        }
    }
    Ok(packs)
}

/// Returns the files with objects, and what lies beside them.
pub(crate) fn pack_files(repository: &Path) -> Result<Vec<PathBuf>, WorkspaceError> {
    let directory = repository.join("objects/pack");
    let entries = match fs::read_dir(&directory) {
        // Nothing was ever packed.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(WorkspaceError::keep("list", &directory))?,
    };
    let paths = entries.map(|entry| entry.map(|entry| entry.path())).collect::<Result<_, _>>();
    paths.map_err(WorkspaceError::keep("list", directory))
}

/// Returns whether packs have become so large that half of them may be of no use. Those of a first look
/// are all needed.
fn is_due(repository: &Path, packs: &[(PathBuf, u64)]) -> Result<bool, WorkspaceError> {
    let total: u64 = packs.iter().map(|(_, size)| size).sum();
    let path = repository.join(NEEDED);
    let needed = match fs::read_to_string(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        text => text.map_err(WorkspaceError::keep("read", &path))?.parse::<u64>().ok(),
    };
    match needed {
        Some(needed) => Ok(total > needed.saturating_mul(2).saturating_add(UNUSED_LEAST)),
        None => note(repository, total).map(|()| false),
    }
}

fn note(repository: &Path, bytes: u64) -> Result<(), WorkspaceError> {
    replace(&repository.join(NEEDED), bytes.to_string().as_bytes())
}

/// Writes a file as a whole or not at all.
fn replace(path: &Path, content: &[u8]) -> Result<(), WorkspaceError> {
    let aside = path.with_extension("new");
    fs::write(&aside, content)
        .and_then(|()| fs::rename(&aside, path))
        .map_err(WorkspaceError::keep("write", path))
}

/// Returns the objects that some refs lead to, where they are there.
fn objects(repository: &Path, refs: &[&str]) -> Result<Objects, WorkspaceError> {
    let mut git = git::own(repository);
    git.args(["rev-list", "--objects", "--no-object-names", "--stdin"]);
    let mut there = git::own(repository);
    there.args(["for-each-ref", "--format=%(objectname)"]).args(refs);
    // Before the first commit there is none.
    let ids = git::checked(&mut there, "for-each-ref", repository)?;
    if ids.is_empty() {
        return Ok(Objects::new());
    }
    let listing = git::fed(&mut git, "rev-list", repository, ids)?.stdout;
    let lines = listing.split(|&byte| byte == b'\n').filter(|line| !line.is_empty());
    Ok(lines.map(<[u8]>::to_vec).collect())
}

/// Makes a pack of objects, with the deltas that they have; returns its name without an ending, or `None`
/// where there was nothing to pack.
fn pack(
    repository: &Path,
    objects: &Objects,
    options: &[OsString],
) -> Result<Option<OsString>, WorkspaceError> {
    let mut input = Vec::new();
    for object in objects {
        input.extend_from_slice(object);
        input.push(b'\n');
    }
    let mut git = git::own(repository);
    git.args(["pack-objects", "--quiet", "--non-empty", "--window=0"]).args(options);
    git.arg(repository.join("objects/pack/pack"));
    let answer = git::fed(&mut git, "pack-objects", repository, input)?.stdout;
    let hash = answer.trim_ascii();
    Ok((!hash.is_empty()).then(|| OsStr::from_bytes(&[&b"pack-"[..], hash].concat()).to_owned()))
}

/// Removes all packs but some, and notes how large those are.
fn keep_only(repository: &Path, names: &[Option<&OsStr>]) -> Result<(), WorkspaceError> {
    remove_others(repository, names)?;
    let total = packs(repository)?.iter().map(|(_, size)| size).sum();
    note(repository, total)
}

/// Removes all packs but some; also what commands that were killed have left there.
fn remove_others(repository: &Path, names: &[Option<&OsStr>]) -> Result<(), WorkspaceError> {
    for path in pack_files(repository)? {
        let is_kept = names.iter().flatten().any(|name| path.file_stem() == Some(*name));
        if !is_kept {
            fs::remove_file(&path).map_err(WorkspaceError::keep("remove", &path))?;
        }
    }
    Ok(())
}

/// Drops commits that went from the list of those whose parents are not there (gitformat-shallow(5)).
fn keep_shallow(repository: &Path, needed: &Objects) -> Result<(), WorkspaceError> {
    let path = repository.join("shallow");
    let text = match fs::read(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        text => text.map_err(WorkspaceError::keep("read", &path))?,
    };
    let lines = text.split(|&byte| byte == b'\n').filter(|line| needed.contains(*line));
    let rest: Vec<u8> = lines.flat_map(|line| [line, b"\n"].concat()).collect();
    replace(&path, &rest)
}
