//! Images and kernels that the tests share, made once by the real command line.
//!
//! They are kept below `BANGER_BUILD_CACHE` (default `~/.cache/banger-build`)
//! under a key made of the sources that shape them, and are hard-linked (or
//! copied, across file systems) into each test's state directory. A manifest
//! beside each image and kernel is the daemon's own truth, so a linked one is
//! as good as a pulled one.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use sha2::{Digest, Sha256};

use crate::environment::{BUSYBOX_IMAGE, Contents, Environment};
use crate::other_kernel;

/// The image that `vm run` takes by default.
pub const DEFAULT_IMAGE: &str = "debian-bookworm";
/// The kernel that VMs boot by default.
pub const DEFAULT_KERNEL: &str = "debian-6.12-cloud";

/// Sources that decide what a built image or kernel looks like.
const SHAPED_BY: [&str; 2] = ["owner/image/src", "cli/src/debian"];

/// The folder of what is built once for all tests: `BANGER_BUILD_CACHE`, or
/// `banger-build` in the user's cache.
///
/// # Errors
/// Where neither that nor a home is set.
pub fn build_cache() -> Result<PathBuf> {
    let named = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    if let Some(folder) = named("BANGER_BUILD_CACHE") {
        if folder.is_relative() {
            bail!("BANGER_BUILD_CACHE is {}, which is not an absolute path", folder.display());
        }
        return Ok(folder);
    }
    // The XDG base directory specification has relative paths ignored.
    if let Some(folder) = named("XDG_CACHE_HOME").filter(|folder| folder.is_absolute()) {
        return Ok(folder.join("banger-build"));
    }
    let home = std::env::var_os("HOME").context("HOME is not set; set BANGER_BUILD_CACHE")?;
    Ok(PathBuf::from(home).join(".cache/banger-build"))
}

fn hash_folder(hash: &mut Sha256, folder: &Path) -> Result<()> {
    let mut entries = std::fs::read_dir(folder)
        .and_then(Iterator::collect::<std::io::Result<Vec<_>>>)
        .with_context(|| format!("list {}", folder.display()))?;
    entries.sort_by_key(std::fs::DirEntry::file_name);
    for entry in entries {
        let path = entry.path();
        if entry.file_type().with_context(|| format!("look at {}", path.display()))?.is_dir() {
            hash_folder(hash, &path)?;
        } else {
            let content =
                std::fs::read(&path).with_context(|| format!("read {}", path.display()))?;
            hash.update(path.as_os_str().as_encoded_bytes());
            hash.update(content.len().to_le_bytes());
            hash.update(content);
        }
    }
    Ok(())
}

fn key() -> Result<String> {
    let mut hash = Sha256::new();
    for folder in SHAPED_BY {
        hash_folder(&mut hash, &crate::repository().join(folder))?;
    }
    Ok(hash.finalize().iter().take(8).map(|byte| format!("{byte:02x}")).collect())
}

/// Whether a folder of the cache has a name that [`key`] made, whole or being made.
fn is_key(name: &str) -> bool {
    let key = name.trim_end_matches(".staging");
    key.len() == 16 && key.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// Copies a folder with owners, modes and holes; hard links where possible.
///
/// # Errors
/// Where neither can be made.
pub fn link_folder(from: &Path, to: &Path) -> Result<()> {
    if let Some(parent) = to.parent() {
        std::fs::create_dir_all(parent).with_context(|| format!("make {}", parent.display()))?;
    }
    let copy = |how: &[&str]| {
        let status = Command::new("/bin/cp")
            .arg("-a")
            .args(how)
            .args(["-T", "--"])
            .arg(from)
            .arg(to)
            .output();
        status.is_ok_and(|output| output.status.success())
    };
    if copy(&["--link"]) {
        return Ok(());
    }
    let _ = std::fs::remove_dir_all(to);
    if !copy(&["--sparse=always", "--reflink=auto"]) {
        bail!("copy {} to {}", from.display(), to.display());
    }
    Ok(())
}

/// What an environment is made from, and who owns the daemon's files.
#[derive(Debug)]
pub(crate) struct Assets {
    state: PathBuf,
}

impl Assets {
    /// Puts the parts of `contents` into a state directory.
    pub(crate) fn give(&self, contents: Contents, state: &Path) -> Result<()> {
        use std::os::unix::fs::MetadataExt;
        let images: &[&str] = match contents {
            Contents::Empty => return Ok(()),
            Contents::Kernel => &[],
            Contents::Busybox => &[BUSYBOX_IMAGE],
            Contents::Debian => &[DEFAULT_IMAGE],
        };
        for (folder, name) in images
            .iter()
            .map(|name| ("images", *name))
            .chain(std::iter::once(("kernels", DEFAULT_KERNEL)))
        {
            link_folder(&self.state.join(folder).join(name), &state.join(folder).join(name))?;
        }
        // The folders above belong to whom the originals belong to.
        let mut folders = vec![(self.state.clone(), state.to_owned())];
        folders.push((self.state.join("kernels"), state.join("kernels")));
        if !images.is_empty() {
            folders.push((self.state.join("images"), state.join("images")));
        }
        for (from, to) in folders {
            let owner = from.metadata().with_context(|| format!("look at {}", from.display()))?;
            std::os::unix::fs::chown(&to, Some(owner.uid()), Some(owner.gid()))
                .with_context(|| format!("chown {}", to.display()))?;
            std::fs::set_permissions(&to, owner.permissions())
                .with_context(|| format!("chmod {}", to.display()))?;
        }
        Ok(())
    }
}

/// What older sources made, for who works on those and does not want a pull
/// after each change: `BANGER_BUILD_CACHE_KEEP=1`.
fn kept(cache: &Path) -> Option<PathBuf> {
    std::env::var_os("BANGER_BUILD_CACHE_KEEP").filter(|value| value == "1")?;
    let entries = std::fs::read_dir(cache).ok()?.flatten();
    let states = entries.map(|entry| entry.path().join("state"));
    states.into_iter().find(|state| state.is_dir() && !state.to_string_lossy().contains("staging"))
}

/// Finds the shared images, and the default kernel or the one that the tests are
/// to boot instead; makes them where they are missing, which takes minutes the
/// first time.
pub(crate) fn find() -> Result<Assets> {
    let shared = shared()?;
    match other_kernel::package() {
        None => Ok(shared),
        Some(package) => Ok(Assets { state: other_kernel::state(&shared.state, &package)? }),
    }
}

fn shared() -> Result<Assets> {
    let cache = build_cache()?;
    std::fs::create_dir_all(&cache).with_context(|| format!("make {}", cache.display()))?;
    let lock_path = cache.join("lock");
    let lock = std::fs::File::create(&lock_path)
        .with_context(|| format!("open {}", lock_path.display()))?;
    lock.lock().with_context(|| format!("lock {}", lock_path.display()))?;
    let key = key()?;
    let state = cache.join(&key).join("state");
    if state.is_dir() {
        return Ok(Assets { state });
    }
    if let Some(state) = kept(&cache) {
        return Ok(Assets { state });
    }
    let environment = Environment::new(Contents::Empty);
    let minutes = Duration::from_secs(20 * 60);
    environment.banger(["kernel", "pull", DEFAULT_KERNEL]).deadline(minutes).ok();
    environment.banger(["image", "pull", DEFAULT_IMAGE]).deadline(minutes).ok();
    if let Some(rootfs) = crate::busybox_rootfs() {
        environment.import(BUSYBOX_IMAGE, &rootfs).ok();
    }
    environment.stop_daemon();

    // What older sources made is of no more use; folders with other names are not ours.
    for entry in std::fs::read_dir(&cache).context("list the cache")?.flatten() {
        if entry.path().is_dir() && is_key(&entry.file_name().to_string_lossy()) {
            let _ = std::fs::remove_dir_all(entry.path());
        }
    }
    let staged = cache.join(format!("{key}.staging"));
    link_folder(&environment.state(), &staged.join("state"))?;
    for entry in std::fs::read_dir(staged.join("state")).context("list the staged state")?.flatten()
    {
        let path = entry.path();
        let name = entry.file_name();
        if name == "images" || name == "kernels" {
            continue;
        }
        let _ = if path.is_dir() {
            std::fs::remove_dir_all(&path)
        } else {
            std::fs::remove_file(&path)
        };
    }
    std::fs::rename(&staged, cache.join(&key)).context("keep the images")?;
    Ok(Assets { state })
}

/// The kernel store with the shared kernel, which is pulled where it is missing.
///
/// # Errors
/// Where the cache cannot be written; a failed pull panics like a test.
pub fn kernel_store() -> Result<PathBuf> {
    find().map(|assets| assets.state.join("kernels"))
}

/// The Debian package that the shared kernel came from; downloaded where it is missing.
///
/// # Errors
/// Where the shared kernel did not come through apt, or apt does not have its package any more.
pub fn kernel_package() -> Result<PathBuf> {
    let shared = shared()?;
    let folder = shared.state.with_file_name("package");
    let found = || std::fs::read_dir(&folder).ok()?.flatten().next().map(|entry| entry.path());
    if let Some(package) = found() {
        return Ok(package);
    }
    let manifest = shared.state.join("kernels").join(DEFAULT_KERNEL).join("manifest.json");
    let text = std::fs::read(&manifest).with_context(|| format!("read {}", manifest.display()))?;
    let manifest: serde_json::Value = serde_json::from_slice(&text).context("the manifest")?;
    let source = manifest["source"].as_str().and_then(|source| source.strip_prefix("apt:"));
    let source = source.context("the shared kernel did not come through apt")?;
    let staged = shared.state.with_file_name("package.staging");
    let _ = std::fs::remove_dir_all(&staged);
    std::fs::create_dir(&staged).with_context(|| format!("make {}", staged.display()))?;
    let mut apt = Command::new("/usr/bin/apt-get");
    apt.args(["-qq", "-o", "APT::Sandbox::User=root", "download", source]).current_dir(&staged);
    let output = apt.output().context("run apt-get")?;
    if !output.status.success() {
        bail!("download {source}: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    std::fs::rename(&staged, &folder).context("keep the package")?;
    found().context("apt-get downloaded nothing")
}

/// Makes sure that the shared images and kernels are there.
///
/// # Errors
/// Where the cache cannot be written; a failed pull panics like a test.
pub fn ensure() -> Result<()> {
    find().map(drop)
}
