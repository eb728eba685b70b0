//! Where built things are kept between runs and clones, and who may change them.
//!
//! ```text
//! <build cache>/kvm-host/
//!   image-KEY/        the root file system
//!   kernel-KEY/       the kernel and its modules
//!   qemu-KEY/         a QEMU newer than this machine's, with its libraries
//!   initrd-KEY/       the guest agent, as the initrd for the kernel
//!   state-KEY/        a machine's saved memory and disk overlay, 220 MB
//!   .staging-*        being made; removed by the next one who holds the lock
//!   lock              held by whoever builds, boots or cleans
//!   run/, run.lock    the machine that runs for people; the lock is held by its keeper
//!   run-tests/, ...   the same of the machine that tests run in
//! <build cache>/vmm-binaries-VERSION/
//! ```
//!
//! Everything under a key is made under another name and renamed, so what is there is whole. Of
//! each kind a few are kept, for clones with different inputs; [`keyed`] says which go.

use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use banger_harness::keyed;
use sha2::{Digest, Sha256};

/// How many digits of a digest name a folder: 64 bits, for a handful of folders.
const KEY_DIGITS: usize = 16;

/// Most bytes of the disk that the folders of one kind may take, but for the last used one and those
/// in use.
const ROOM: u64 = 2 << 30;

/// Collects the inputs of something that is built, and names it by their digest.
#[derive(Debug, Default)]
pub struct Key(Sha256);

impl Key {
    /// Adds an input. Its length is added too, so that two inputs never read as one.
    #[must_use]
    pub fn with(mut self, input: impl AsRef<[u8]>) -> Self {
        let input = input.as_ref();
        self.0.update(input.len().to_le_bytes());
        self.0.update(input);
        self
    }

    /// Returns the name: hexadecimal digits.
    #[must_use]
    pub fn name(self) -> String {
        let mut name = hexadecimal(&self.0.finalize());
        name.truncate(KEY_DIGITS);
        name
    }
}

/// Writes bytes as hexadecimal digits.
#[must_use]
pub fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Of the two machines that may run at a time, which: a failed test has its machine start afresh,
/// and nobody else's command is to end with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seat {
    /// The one of `boot`, `run` and `shell`.
    People,
    /// The one of `test`.
    Tests,
}

impl Seat {
    /// Both.
    pub const ALL: [Self; 2] = [Self::People, Self::Tests];

    const fn run_folder(self) -> &'static str {
        match self {
            Self::People => "run",
            Self::Tests => "run-tests",
        }
    }
}

/// The KVM host's part of the build cache, as it is for one of the two machines.
#[derive(Clone, Debug)]
pub struct Cache {
    root: PathBuf,
    seat: Seat,
}

/// The right to change the cache; given up when dropped.
#[derive(Debug)]
pub struct CacheLock(#[expect(dead_code, reason = "holds the lock")] File);

/// Locks the file; says whom it waits for, if it has to.
fn wait_for(file: &File, whom: &str) -> std::io::Result<()> {
    match file.try_lock() {
        Ok(()) => Ok(()),
        Err(TryLockError::WouldBlock) => {
            crate::note(format_args!("waiting for {whom}"));
            file.lock()
        }
        Err(TryLockError::Error(error)) => Err(error),
    }
}

impl Cache {
    /// Opens the cache below [`banger_harness::build_cache`], making the folder.
    pub fn open() -> Result<Self> {
        // Refused before anything is done, not only when something was built.
        keyed::kept_keys()?;
        Self::at(banger_harness::build_cache()?.join("kvm-host"))
    }

    /// Opens the cache at `root`, making the folder.
    pub fn at(root: PathBuf) -> Result<Self> {
        std::fs::create_dir_all(&root).with_context(|| format!("make {}", root.display()))?;
        let root =
            root.canonicalize().with_context(|| format!("find the path of {}", root.display()))?;
        Ok(Self { root, seat: Seat::People })
    }

    /// Returns the same cache for this one of the machines.
    #[must_use]
    pub fn of(&self, seat: Seat) -> Self {
        Self { seat, ..self.clone() }
    }

    /// Which machine is meant.
    #[must_use]
    pub const fn seat(&self) -> Seat {
        self.seat
    }

    /// The folder itself.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The running machine's folder.
    #[must_use]
    pub fn run_folder(&self) -> PathBuf {
        self.root.join(self.seat.run_folder())
    }

    /// What the keeper of the last machine had to say.
    #[must_use]
    pub fn keeper_log(&self) -> PathBuf {
        self.root.join(format!("{}.log", self.seat.run_folder()))
    }

    fn lock_file(&self, name: &str) -> Result<File> {
        let path = self.root.join(name);
        File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
            .with_context(|| format!("open {}", path.display()))
    }

    /// Waits for the right to change the cache, and removes what a killed holder left unfinished.
    pub fn lock(&self) -> Result<CacheLock> {
        let file = self.lock_file("lock")?;
        wait_for(&file, "another who builds or boots the KVM host").context("lock the cache")?;
        if let Err(error) = self.remove_where(|name| name.starts_with(".staging-")) {
            // What a killed one started may be ending still; who comes next removes it.
            crate::note(format_args!("something unfinished stays for now: {error:#}"));
        }
        Ok(CacheLock(file))
    }

    /// Waits until no keeper runs, and keeps the next one from starting.
    pub fn lock_run(&self) -> Result<File> {
        let file = self.lock_file(&format!("{}.lock", self.seat.run_folder()))?;
        file.lock().context("wait for the running machine's lock")?;
        Ok(file)
    }

    /// Waits until no other run of the tests goes on: each looks at what is left in the machine.
    pub fn lock_tests(&self) -> Result<File> {
        let file = self.lock_file("test.lock")?;
        wait_for(&file, "another run of the tests").context("wait for another run of the tests")?;
        Ok(file)
    }

    /// Makes a folder in which something is built; needs the lock. Removed when dropped.
    pub fn stage(&self, _lock: &CacheLock) -> Result<tempfile::TempDir> {
        tempfile::Builder::new()
            .prefix(".staging-")
            .tempdir_in(&self.root)
            .with_context(|| format!("make a folder in {}", self.root.display()))
    }

    /// Gives what was built its name, and removes what of the same kind nobody has used for longest
    /// if that is too much; needs the lock.
    pub fn publish(&self, staged: tempfile::TempDir, kind: &str, key: &str) -> Result<PathBuf> {
        let count = keyed::kept_keys()?;
        let path = self.root.join(format!("{kind}-{key}"));
        if path.exists() {
            std::fs::remove_dir_all(&path).with_context(|| format!("remove {}", path.display()))?;
        }
        std::fs::rename(staged.path(), &path)
            .with_context(|| format!("keep {}", path.display()))?;
        // It has another name now; there is nothing left to remove under the old one.
        let _ = staged.keep();
        keyed::hold(&path)?;
        keyed::remove_unused(&self.root, kind, count, ROOM)?;
        Ok(path)
    }

    /// Removes the initrds of sources that had them all in one folder, once no such sources have
    /// asked for one for a day; needs the lock.
    pub fn remove_former_initrds(&self, _lock: &CacheLock) -> Result<()> {
        let folder = self.root.join("initrd");
        let Ok(entries) = std::fs::read_dir(&folder) else { return Ok(()) };
        let is_recent = |path: &Path| !keyed::is_older_than_a_day(path);
        if is_recent(&folder) || entries.flatten().any(|entry| is_recent(&entry.path())) {
            return Ok(());
        }
        std::fs::remove_dir_all(&folder).with_context(|| format!("remove {}", folder.display()))
    }

    /// Keeps what is built from being removed while this process lives, and notes that it is used;
    /// `path` is a folder with a key or anything in one. Needs the lock.
    pub fn hold(&self, path: &Path) -> Result<()> {
        let below = path.strip_prefix(&self.root).ok().and_then(|path| path.components().next());
        let folder = below.map(|first| self.root.join(first));
        folder.map_or(Ok(()), |folder| keyed::hold(&folder).map(drop))
    }

    /// What there is of a kind, the last used first.
    pub fn by_last_use(&self, kind: &str) -> Result<Vec<PathBuf>> {
        keyed::by_last_use(&self.root, kind)
    }

    /// Removes the saved states with these keys; needs the lock and no running machine of either kind.
    pub fn forget_states(&self, _lock: &CacheLock, keys: &[String]) -> Result<()> {
        self.remove_where(|name| {
            name.strip_prefix("state-").is_some_and(|key| keys.iter().any(|it| it == key))
        })
    }

    /// Removes everything but the locks; needs the lock and no running machine of either kind.
    pub fn clear(&self, _lock: &CacheLock) -> Result<()> {
        self.remove_where(|name| !name.ends_with("lock"))
    }

    fn remove_where(&self, unwanted: impl Fn(&str) -> bool) -> Result<()> {
        let listing = || format!("list {}", self.root.display());
        for entry in std::fs::read_dir(&self.root).with_context(listing)? {
            let entry = entry.with_context(listing)?;
            if unwanted(&entry.file_name().to_string_lossy()) {
                let path = entry.path();
                let removed = if path.is_dir() {
                    std::fs::remove_dir_all(&path)
                } else {
                    std::fs::remove_file(&path)
                };
                removed.with_context(|| format!("remove {}", path.display()))?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn inputs_do_not_run_together() {
        let one = Key::default().with("ab").with("c").name();
        assert_ne!(one, Key::default().with("a").with("bc").name());
        assert_eq!(one, Key::default().with("ab").with("c").name());
        assert_eq!(one.len(), KEY_DIGITS);
    }

    #[test]
    fn what_is_unfinished_or_forgotten_goes() {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::at(folder.path().join("kvm-host")).unwrap();
        for name in [".staging-dead/x", "state-one", "state-two"] {
            std::fs::create_dir_all(cache.root().join(name)).unwrap();
        }
        let lock = cache.lock().unwrap();
        assert!(!cache.root().join(".staging-dead").exists());
        cache.forget_states(&lock, &["one".to_owned(), "three".to_owned()]).unwrap();
        assert!(!cache.root().join("state-one").exists());
        assert!(cache.root().join("state-two").exists(), "another clone's");
        drop(cache.stage(&lock).unwrap());
        cache.clear(&lock).unwrap();
        let left: Vec<_> = std::fs::read_dir(cache.root()).unwrap().flatten().collect();
        assert_eq!(left.len(), 1, "{left:?}");
    }

    #[test]
    fn former_initrds_go_when_nobody_has_asked_for_one_for_a_day() {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::at(folder.path().join("kvm-host")).unwrap();
        let lock = cache.lock().unwrap();
        cache.remove_former_initrds(&lock).unwrap();
        let (former, now) = (cache.root().join("initrd"), cache.root().join("initrd-key"));
        let long_ago = std::time::SystemTime::now() - std::time::Duration::from_secs(25 * 3600);
        let age = |path: &Path| File::open(path).unwrap().set_modified(long_ago).unwrap();
        for (folder, name) in [(&former, "one.cpio"), (&former, "two.cpio"), (&now, "three.cpio")] {
            std::fs::create_dir_all(folder).unwrap();
            std::fs::write(folder.join(name), "070701").unwrap();
        }
        for path in [former.join("one.cpio"), former.clone(), now.join("three.cpio"), now.clone()] {
            age(&path);
        }
        cache.remove_former_initrds(&lock).unwrap();
        assert!(former.join("one.cpio").exists(), "the other one is in use");
        age(&former.join("two.cpio"));
        cache.remove_former_initrds(&lock).unwrap();
        assert!(!former.exists() && now.join("three.cpio").exists());
    }

    #[test]
    fn clones_with_different_inputs_each_find_their_own_and_the_oldest_goes() {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::at(folder.path().join("kvm-host")).unwrap();
        let lock = cache.lock().unwrap();
        let make = |kind: &str, key: &str, minutes: u64| {
            let path = cache.root().join(format!("{kind}-{key}"));
            std::fs::create_dir(&path).unwrap();
            let then = std::time::SystemTime::now() - std::time::Duration::from_secs(60 * minutes);
            File::open(&path).unwrap().set_modified(then).unwrap();
        };
        for (key, minutes) in [("a", 3), ("b", 1), ("c", 2)] {
            make("state", key, minutes);
            make("image", key, minutes);
        }
        // The clone of `a` begins to use it before that of `d` comes.
        cache.hold(&cache.root().join("state-a/memory")).unwrap();
        let staged = cache.stage(&lock).unwrap();
        std::fs::write(staged.path().join("memory"), "x").unwrap();
        let made = cache.publish(staged, "state", "d").unwrap();
        assert!(made.join("memory").exists());
        let names = |kind: &str| {
            let folders = cache.by_last_use(kind).unwrap();
            let name = |it: &PathBuf| it.file_name().unwrap().to_string_lossy().into_owned();
            folders.iter().map(name).collect::<Vec<_>>()
        };
        assert_eq!(names("state"), ["state-d", "state-a", "state-b"]);
        assert_eq!(names("image").len(), 3, "of each kind as many");
        cache.hold(Path::new("/usr/bin")).unwrap();
        cache.hold(&cache.root().join("state-gone")).unwrap();
        // What is replaced has the same name and is another.
        let staged = cache.stage(&lock).unwrap();
        let again = cache.publish(staged, "state", "d").unwrap();
        assert!(!again.join("memory").exists());
    }
}
