//! Another kernel in the place of the default one.
//!
//! `BANGER_TEST_KERNEL` names a Debian kernel package, such as the one that
//! `cargo xtask kernel` builds. It is imported under the default kernel's name,
//! so that every test boots it without knowing.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use sha2::{Digest, Sha256};

use crate::assets::{
    DEFAULT_KERNEL, banger, build_cache, link_folder, note, short_name, stop_daemon, wait_for_lock,
    with_scratch,
};
use crate::keyed;

/// What the folders of this cache begin with, and while they are being made.
const KIND: &str = "kernel";
const STAGING: &str = "staging";

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
    wait_for_lock(&lock, "another who imports a kernel for the tests")
        .with_context(|| format!("lock {}", lock_path.display()))?;

    let bytes = std::fs::read(package)
        .with_context(|| format!("read {} (BANGER_TEST_KERNEL)", package.display()))?;
    // The folder's name has the key of the images.
    let images = shared.parent().and_then(Path::file_name).context("a key of the images")?;
    let mut hash = Sha256::new();
    hash.update(images.as_encoded_bytes());
    hash.update(bytes);
    let folder = cache.join(format!("{KIND}-{}", short_name(hash)));
    let count = keyed::kept_keys()?;
    if !keyed::hold(&folder)? {
        // What killed ones left.
        for unfinished in keyed::by_last_use(&cache, STAGING)? {
            std::fs::remove_dir_all(&unfinished)
                .with_context(|| format!("remove {}", unfinished.display()))?;
        }
        let staged = cache.join(format!("{STAGING}-kernel"));
        note(format_args!("importing {} for the tests", package.display()));
        with_scratch(|environment| {
            let package = package.to_str().context("a path that is text")?;
            banger(environment, &["kernel", "import", "--name", DEFAULT_KERNEL, package])?;
            stop_daemon(environment);
            link_folder(&shared.join("images"), &staged.join("state/images"))?;
            link_folder(&environment.state().join("kernels"), &staged.join("state/kernels"))
        })?;
        own_like(shared, &staged.join("state"))?;
        std::fs::rename(&staged, &folder).context("keep the kernel")?;
        keyed::hold(&folder)?;
        keyed::remove_unused(&cache, KIND, count, u64::MAX)?;
    }
    Ok(folder.join("state"))
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
