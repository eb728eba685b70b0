//! Where built things are kept between runs and clones, and who may change them.
//!
//! ```text
//! <build cache>/kvm-host/
//!   image-KEY/        the root file system
//!   kernel-KEY/       the kernel and its modules
//!   qemu-KEY/         a QEMU newer than this machine's, with its libraries
//!   initrd/           initrds by the digest of agent and kernel
//!   state-KEY/        a machine's saved memory and disk overlay
//!   .staging-*        being made; removed by the next one who holds the lock
//!   lock              held by whoever builds, boots or cleans
//!   run/, run.lock    the running machine; the lock is held by its keeper
//! <build cache>/vmm-binaries-VERSION/
//! ```
//!
//! Everything under a key is made under another name and renamed, so what is there is whole.

use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use sha2::{Digest, Sha256};

/// How many digits of a digest name a folder: 64 bits, for a handful of folders.
const KEY_DIGITS: usize = 16;

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

/// The KVM host's part of the build cache.
#[derive(Clone, Debug)]
pub struct Cache {
    root: PathBuf,
}

/// The right to change the cache; given up when dropped.
#[derive(Debug)]
pub struct CacheLock(#[expect(dead_code, reason = "holds the lock")] File);

impl Cache {
    /// Opens the cache below [`banger_harness::build_cache`], making the folder.
    pub fn open() -> Result<Self> {
        Self::at(banger_harness::build_cache()?.join("kvm-host"))
    }

    /// Opens the cache at `root`, making the folder.
    pub fn at(root: PathBuf) -> Result<Self> {
        std::fs::create_dir_all(&root).with_context(|| format!("make {}", root.display()))?;
        let root =
            root.canonicalize().with_context(|| format!("find the path of {}", root.display()))?;
        Ok(Self { root })
    }

    /// The folder itself.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The running machine's folder.
    #[must_use]
    pub fn run_folder(&self) -> PathBuf {
        self.root.join("run")
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
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                crate::note("waiting for another who builds or boots the KVM host");
                file.lock().context("wait for the cache's lock")?;
            }
            Err(TryLockError::Error(error)) => return Err(error).context("lock the cache"),
        }
        if let Err(error) = self.remove_where(|name| name.starts_with(".staging-")) {
            // What a killed one started may be ending still; who comes next removes it.
            crate::note(format_args!("something unfinished stays for now: {error:#}"));
        }
        Ok(CacheLock(file))
    }

    /// Waits until no keeper runs, and keeps the next one from starting.
    pub fn lock_run(&self) -> Result<File> {
        let file = self.lock_file("run.lock")?;
        file.lock().context("wait for the running machine's lock")?;
        Ok(file)
    }

    /// Waits until no other run of the tests goes on: each looks at what is left in the machine.
    pub fn lock_tests(&self) -> Result<File> {
        let file = self.lock_file("test.lock")?;
        file.lock().context("wait for another run of the tests")?;
        Ok(file)
    }

    /// Makes a folder in which something is built; needs the lock. Removed when dropped.
    pub fn stage(&self, _lock: &CacheLock) -> Result<tempfile::TempDir> {
        tempfile::Builder::new()
            .prefix(".staging-")
            .tempdir_in(&self.root)
            .with_context(|| format!("make a folder in {}", self.root.display()))
    }

    /// Gives what was built its name, and removes what had the same kind under other keys.
    pub fn publish(&self, staged: tempfile::TempDir, kind: &str, key: &str) -> Result<PathBuf> {
        let path = self.root.join(format!("{kind}-{key}"));
        if path.exists() {
            std::fs::remove_dir_all(&path).with_context(|| format!("remove {}", path.display()))?;
        }
        std::fs::rename(staged.path(), &path)
            .with_context(|| format!("keep {}", path.display()))?;
        // It has another name now; there is nothing left to remove under the old one.
        let _ = staged.keep();
        let (prefix, own) = (format!("{kind}-"), format!("{kind}-{key}"));
        self.remove_where(|name| name.starts_with(&prefix) && name != own)?;
        Ok(path)
    }

    /// Removes the saved states; needs the lock and no running machine.
    pub fn forget_states(&self, _lock: &CacheLock) -> Result<()> {
        self.remove_where(|name| name.starts_with("state-"))
    }

    /// Removes everything but the locks; needs the lock and no running machine.
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
    fn what_is_unfinished_or_replaced_goes() {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::at(folder.path().join("kvm-host")).unwrap();
        std::fs::create_dir_all(cache.root().join(".staging-dead/x")).unwrap();
        std::fs::create_dir_all(cache.root().join("image-old")).unwrap();
        std::fs::create_dir_all(cache.root().join("state-old")).unwrap();
        let lock = cache.lock().unwrap();
        assert!(!cache.root().join(".staging-dead").exists());
        let staged = cache.stage(&lock).unwrap();
        std::fs::write(staged.path().join("file"), "x").unwrap();
        let path = cache.publish(staged, "image", "new").unwrap();
        assert!(path.join("file").exists());
        assert!(!cache.root().join("image-old").exists());
        assert!(cache.root().join("state-old").exists());
        cache.forget_states(&lock).unwrap();
        assert!(!cache.root().join("state-old").exists());
        assert!(path.join("file").exists());
        drop(cache.stage(&lock).unwrap());
        cache.clear(&lock).unwrap();
        let left: Vec<_> = std::fs::read_dir(cache.root()).unwrap().flatten().collect();
        assert_eq!(left.len(), 1, "{left:?}");
    }
}
