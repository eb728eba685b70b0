//! Folders of the build cache that are named by the digest of what they are made of.
//!
//! All clones of the repository on a machine share them. Who uses one marks it with the time and
//! holds a shared lock on the mark until the process ends; so what no clone has used for longest
//! is what goes when there are too many, and nothing goes that is in use.
//!
//! ```text
//! <cache>/<kind>-<key>/         what was made; renamed into place when it is whole
//! <cache>/<kind>-<key>/.used    its time is the last use; locked by all who use it
//! ```

use std::collections::BTreeMap;
use std::env::VarError;
use std::fs::{File, TryLockError};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, bail};

/// How many folders of a kind are kept: for as many clones with different inputs.
const KEPT: usize = 3;
/// Names another number.
const KEPT_VARIABLE: &str = "BANGER_BUILD_CACHE_KEYS";
/// Marks a folder as used.
const MARK: &str = ".used";

/// The marks that this process holds; they are let go when it ends.
static HELD: Mutex<BTreeMap<PathBuf, File>> = Mutex::new(BTreeMap::new());

/// How many folders of a kind are kept: 3, or `BANGER_BUILD_CACHE_KEYS`.
///
/// # Errors
/// Where that is set to something that is no number above 0.
pub fn kept_keys() -> Result<usize> {
    match std::env::var(KEPT_VARIABLE) {
        Ok(text) if !text.is_empty() => parse_kept(&text),
        Err(VarError::NotUnicode(text)) => parse_kept(&text.to_string_lossy()),
        _ => Ok(KEPT),
    }
}

fn parse_kept(text: &str) -> Result<usize> {
    match text.parse() {
        Ok(count) if count > 0 => Ok(count),
        _ => bail!("{KEPT_VARIABLE} is {text:?}; name how many of each kind are kept: 1 or more"),
    }
}

/// Marks a folder as used now, and until this process ends; false if it is not there.
///
/// The caller holds the lock under which folders are made and removed.
///
/// # Errors
/// Where its mark cannot be written.
pub fn hold(folder: &Path) -> Result<bool> {
    if !folder.is_dir() {
        return Ok(false);
    }
    let path = folder.join(MARK);
    let mark = File::options().create(true).truncate(false).write(true).open(&path);
    let mark = mark.with_context(|| format!("open {}", path.display()))?;
    mark.lock_shared().with_context(|| format!("lock {}", path.display()))?;
    mark.set_modified(SystemTime::now()).with_context(|| format!("touch {}", path.display()))?;
    // An older mark of the same folder is let go only now.
    HELD.lock().unwrap_or_else(PoisonError::into_inner).insert(folder.to_owned(), mark);
    Ok(true)
}

/// The folders of a kind, the last used first, with their keys.
///
/// # Errors
/// Where the cache cannot be listed.
pub fn by_last_use(cache: &Path, kind: &str) -> Result<Vec<PathBuf>> {
    let listing = || format!("list {}", cache.display());
    let prefix = format!("{kind}-");
    let mut found = Vec::new();
    for entry in std::fs::read_dir(cache).with_context(listing)? {
        let path = entry.with_context(listing)?.path();
        let is_of_kind =
            path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(&prefix));
        if is_of_kind && path.is_dir() {
            found.push((last_use(&path), path));
        }
    }
    found.sort();
    Ok(found.into_iter().rev().map(|(_, path)| path).collect())
}

fn last_use(folder: &Path) -> SystemTime {
    let of = |path: &Path| path.metadata().and_then(|found| found.modified()).ok();
    of(&folder.join(MARK)).or_else(|| of(folder)).unwrap_or(SystemTime::UNIX_EPOCH)
}

/// Removes folders of a kind, the longest unused ones first, until there are at most `count` that
/// take at most `bytes` of the disk; but none that is in use, nor the last used one.
///
/// The caller holds the lock under which folders are made and removed.
///
/// # Errors
/// Where one cannot be removed.
pub fn remove_unused(cache: &Path, kind: &str, count: usize, bytes: u64) -> Result<()> {
    let (mut kept, mut taken) = (0, 0_u64);
    for folder in by_last_use(cache, kind)? {
        let size = size_on_disk(&folder);
        let fits = kept < count && taken.saturating_add(size) <= bytes;
        if kept == 0 || fits || is_in_use(&folder)? {
            kept += 1;
            taken = taken.saturating_add(size);
            continue;
        }
        std::fs::remove_dir_all(&folder).with_context(|| format!("remove {}", folder.display()))?;
    }
    Ok(())
}

/// Whether it is there and has not been changed for a day.
#[must_use]
pub fn is_older_than_a_day(path: &Path) -> bool {
    let modified = path.symlink_metadata().and_then(|found| found.modified());
    modified.is_ok_and(|then| then.elapsed().is_ok_and(|age| age > Duration::from_secs(24 * 3600)))
}

fn is_in_use(folder: &Path) -> Result<bool> {
    let path = folder.join(MARK);
    // Without a mark nobody can hold it.
    let Ok(mark) = File::open(&path) else { return Ok(false) };
    match mark.try_lock() {
        Ok(()) => Ok(false),
        Err(TryLockError::WouldBlock) => Ok(true),
        Err(TryLockError::Error(error)) => {
            Err(error).with_context(|| format!("lock {}", path.display()))
        }
    }
}

/// What a tree takes of the disk, in bytes; holes take nothing.
fn size_on_disk(folder: &Path) -> u64 {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    entries
        .filter_map(|entry| {
            let metadata = entry.metadata().ok()?;
            let below = if metadata.is_dir() { size_on_disk(&entry.path()) } else { 0 };
            Some(metadata.blocks() * 512 + below)
        })
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Makes a folder of the kind `x` that was used `minutes` ago.
    fn make(cache: &Path, key: &str, minutes: u64) -> PathBuf {
        let folder = cache.join(format!("x-{key}"));
        std::fs::create_dir(&folder).unwrap();
        std::fs::write(folder.join("content"), [1; 20_000]).unwrap();
        let mark = File::create(folder.join(MARK)).unwrap();
        let then = SystemTime::now() - Duration::from_secs(60 * minutes);
        mark.set_modified(then).unwrap();
        folder
    }

    fn keys(cache: &Path) -> Vec<String> {
        let folders = by_last_use(cache, "x").unwrap();
        let name = |path: &PathBuf| path.file_name().unwrap().to_string_lossy()[2..].to_owned();
        folders.iter().map(name).collect()
    }

    #[test]
    fn what_was_not_used_for_longest_goes_first() {
        let folder = tempfile::tempdir().unwrap();
        let cache = folder.path();
        for (key, minutes) in [("a", 5), ("b", 1), ("c", 9), ("d", 3)] {
            make(cache, key, minutes);
        }
        std::fs::create_dir(cache.join("xother-z")).unwrap();
        std::fs::write(cache.join("x-file"), "").unwrap();
        assert_eq!(keys(cache), ["b", "d", "a", "c"]);
        // Another clone comes back to the one that would go.
        assert!(hold(&cache.join("x-c")).unwrap());
        assert_eq!(keys(cache), ["c", "b", "d", "a"]);
        remove_unused(cache, "x", 2, u64::MAX).unwrap();
        assert_eq!(keys(cache), ["c", "b"]);
        assert!(cache.join("xother-z").exists() && cache.join("x-file").exists());
        assert!(!hold(&cache.join("x-a")).unwrap(), "what is gone cannot be held");
        assert!(!cache.join("x-a").exists());
    }

    #[test]
    fn what_is_in_use_stays_however_long_ago_that_began() {
        let folder = tempfile::tempdir().unwrap();
        let cache = folder.path();
        let old = make(cache, "old", 900);
        // As another process would.
        let mark = File::open(old.join(MARK)).unwrap();
        mark.lock_shared().unwrap();
        make(cache, "new", 1);
        make(cache, "middle", 20);
        remove_unused(cache, "x", 1, u64::MAX).unwrap();
        assert_eq!(keys(cache), ["new", "old"]);
        drop(mark);
        remove_unused(cache, "x", 1, u64::MAX).unwrap();
        assert_eq!(keys(cache), ["new"]);
    }

    #[test]
    fn room_is_bounded_too_but_the_last_used_one_stays() {
        let folder = tempfile::tempdir().unwrap();
        let cache = folder.path();
        for (key, minutes) in [("a", 1), ("b", 2), ("c", 3)] {
            make(cache, key, minutes);
        }
        let one = size_on_disk(&cache.join("x-a"));
        assert!(one >= 20_000);
        remove_unused(cache, "x", 9, 2 * one).unwrap();
        assert_eq!(keys(cache), ["a", "b"]);
        remove_unused(cache, "x", 9, 0).unwrap();
        assert_eq!(keys(cache), ["a"]);
    }

    #[test]
    fn how_many_are_kept_is_a_number_above_none() {
        assert_eq!(parse_kept("7").unwrap(), 7);
        for bad in ["0", "-1", "x", "1 "] {
            let error = parse_kept(bad).unwrap_err().to_string();
            assert!(error.contains(KEPT_VARIABLE), "{error}");
        }
    }
}
