//! Another kernel in the place of the default one.
//!
//! `BANGER_TEST_KERNEL` names a Debian kernel package, such as the one that
//! `cargo xtask kernel` builds. It is imported under the default kernel's name,
//! so that every test boots it without knowing.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use sha2::{Digest, Sha256};

use crate::assets::{DEFAULT_KERNEL, build_cache, link_folder};
use crate::environment::{Contents, Environment};

/// The package, where one is named.
pub(crate) fn package() -> Option<PathBuf> {
    std::env::var_os("BANGER_TEST_KERNEL").filter(|value| !value.is_empty()).map(PathBuf::from)
}

/// The images of the state directory `shared` and the kernel of `package`, as a state directory.
pub(crate) fn state(shared: &Path, package: &Path) -> Result<PathBuf> {
    let cache = build_cache()?.join("test-kernel");
    std::fs::create_dir_all(&cache).with_context(|| format!("make {}", cache.display()))?;
    let lock_path = cache.join("lock");
    let lock = std::fs::File::create(&lock_path)
        .with_context(|| format!("open {}", lock_path.display()))?;
    lock.lock().with_context(|| format!("lock {}", lock_path.display()))?;

    let bytes = std::fs::read(package)
        .with_context(|| format!("read {} (BANGER_TEST_KERNEL)", package.display()))?;
    let mut hash = Sha256::new();
    hash.update(shared.as_os_str().as_encoded_bytes());
    hash.update(bytes);
    let key: String = hash.finalize().iter().take(8).map(|byte| format!("{byte:02x}")).collect();
    let state = cache.join(&key).join("state");
    if state.is_dir() {
        return Ok(state);
    }
    let environment = Environment::new(Contents::Empty);
    environment.banger(["kernel", "import", "--name", DEFAULT_KERNEL]).arg(package).ok();
    environment.stop_daemon();

    // Of other kernels, and what was not finished.
    for entry in std::fs::read_dir(&cache).context("list the cache")?.flatten() {
        if entry.path().is_dir() {
            std::fs::remove_dir_all(entry.path())
                .with_context(|| format!("remove {}", entry.path().display()))?;
        }
    }
    let staged = cache.join(format!("{key}.staging"));
    link_folder(&shared.join("images"), &staged.join("state/images"))?;
    link_folder(&environment.state().join("kernels"), &staged.join("state/kernels"))?;
    own_like(shared, &staged.join("state"))?;
    std::fs::rename(&staged, cache.join(&key)).context("keep the kernel")?;
    Ok(state)
}

/// Gives `folder` the owner and mode of `like`.
fn own_like(like: &Path, folder: &Path) -> Result<()> {
    use std::os::unix::fs::MetadataExt;
    let owner = like.metadata().with_context(|| format!("look at {}", like.display()))?;
    std::os::unix::fs::chown(folder, Some(owner.uid()), Some(owner.gid()))
        .with_context(|| format!("chown {}", folder.display()))?;
    std::fs::set_permissions(folder, owner.permissions())
        .with_context(|| format!("chmod {}", folder.display()))
}
