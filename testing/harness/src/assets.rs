//! Images and kernels that the tests share, made once by the real command line.
//!
//! They are kept below `BANGER_BUILD_CACHE` (default `~/.cache/banger-build`)
//! under a key made of the sources that shape them, the same in every clone
//! ([`keyed`]), and are hard-linked (or copied, across file systems) into each
//! test's state directory. A manifest beside each image and kernel is the
//! daemon's own truth, so a linked one is as good as a pulled one.

use std::collections::BTreeSet;
use std::fs::{File, TryLockError};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use sha2::{Digest, Sha256};

use crate::environment::{BUSYBOX_IMAGE, Contents, Environment};
use crate::{keyed, other_kernel};

/// The image that `vm run` takes by default.
pub const DEFAULT_IMAGE: &str = "debian-bookworm";
/// The kernel that VMs boot by default.
pub const DEFAULT_KERNEL: &str = "debian-6.12-cloud";

/// Sources that decide what a built image or kernel looks like.
const SHAPED_BY: [&str; 3] = ["owner/image/src", "cli/src/debian", "testing/harness/src/rootfs.rs"];
/// What the folders of the cache begin with that hold a state directory.
const KIND: &str = "images";
/// The same while they are being made.
const STAGING: &str = "staging";
/// How long a pull may take, whatever the mirror does.
const PULL_PATIENCE: Duration = Duration::from_secs(20 * 60);
/// How much of what a failed pull said is told again.
const LAST_LINES: usize = 8;

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

/// Adds a file, or all files of a folder, by content and by name below `root`: where a clone lies
/// changes nothing.
fn hash_source(hash: &mut Sha256, root: &Path, relative: &Path) -> Result<()> {
    let path = root.join(relative);
    if !path.is_dir() {
        let content = std::fs::read(&path).with_context(|| format!("read {}", path.display()))?;
        for part in [relative.as_os_str().as_encoded_bytes(), &content] {
            hash.update(part.len().to_le_bytes());
            hash.update(part);
        }
        return Ok(());
    }
    let mut entries = std::fs::read_dir(&path)
        .and_then(Iterator::collect::<std::io::Result<Vec<_>>>)
        .with_context(|| format!("list {}", path.display()))?;
    entries.sort_by_key(std::fs::DirEntry::file_name);
    for entry in entries {
        hash_source(hash, root, &relative.join(entry.file_name()))?;
    }
    Ok(())
}

/// The key of what the clone at `root` makes.
fn key(root: &Path) -> Result<String> {
    let mut hash = Sha256::new();
    for source in SHAPED_BY {
        hash_source(&mut hash, root, Path::new(source))?;
    }
    Ok(short_name(hash))
}

/// A digest's first 16 hexadecimal digits: enough for a handful of folders.
pub(crate) fn short_name(hash: Sha256) -> String {
    hash.finalize().iter().take(8).map(|byte| format!("{byte:02x}")).collect()
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

/// Opens the cache and waits for the right to change what [`KIND`] it has.
fn lock_cache() -> Result<(PathBuf, File)> {
    let cache = build_cache()?;
    std::fs::create_dir_all(&cache).with_context(|| format!("make {}", cache.display()))?;
    let path = cache.join("lock");
    let lock = File::create(&path).with_context(|| format!("open {}", path.display()))?;
    wait_for_lock(&lock, "another who fetches the images and kernels that the tests share")
        .with_context(|| format!("lock {}", path.display()))?;
    Ok((cache, lock))
}

/// Locks; says for whom it waits.
pub(crate) fn wait_for_lock(lock: &File, holder: &str) -> Result<()> {
    match lock.try_lock() {
        Ok(()) => Ok(()),
        Err(TryLockError::WouldBlock) => {
            note(format_args!("waiting for {holder}"));
            Ok(lock.lock()?)
        }
        Err(TryLockError::Error(error)) => Err(error.into()),
    }
}

fn shared() -> Result<Assets> {
    let key = key(&crate::repository())?;
    let (cache, _lock) = lock_cache()?;
    let folder = cache.join(format!("{KIND}-{key}"));
    let count = keyed::kept_keys()?;
    if !keyed::hold(&folder)? {
        make(&cache, &folder).with_context(|| {
            format!("fetch the image and the kernel that the tests share, into {}", cache.display())
        })?;
        keyed::hold(&folder)?;
        keyed::remove_unused(&cache, KIND, count, u64::MAX)?;
        remove_former(&cache)?;
    }
    Ok(Assets { state: folder.join("state") })
}

/// Removes what sources made whose folders had only a key for a name, and which knew no way to say
/// that they use one: what is a day old and holds what they put there, and nothing else.
///
/// The caller holds the cache's lock, as those sources do that look for such a folder.
fn remove_former(cache: &Path) -> Result<()> {
    for entry in std::fs::read_dir(cache).context("list the cache")?.flatten() {
        let folder = entry.path();
        if is_former(&folder) && keyed::is_older_than_a_day(&folder) {
            std::fs::remove_dir_all(&folder)
                .with_context(|| format!("remove {}", folder.display()))?;
            note(format_args!("{} was of no more use and has been removed", folder.display()));
        }
    }
    Ok(())
}

/// Whether a folder is one that those sources made.
fn is_former(folder: &Path) -> bool {
    let name = folder.file_name().unwrap_or_default().to_string_lossy();
    let is_key = name.len() == 16 && name.bytes().all(|it| matches!(it, b'0'..=b'9' | b'a'..=b'f'));
    let names = |folder: &Path| -> Option<BTreeSet<String>> {
        let entries = std::fs::read_dir(folder).ok()?;
        entries.map(|entry| Some(entry.ok()?.file_name().to_string_lossy().into_owned())).collect()
    };
    let holds = |folder: &Path, must: &[&str], may: &[&str]| {
        names(folder).is_some_and(|names| {
            must.iter().all(|name| names.contains(*name))
                && names.iter().all(|name| [must, may].concat().contains(&name.as_str()))
        })
    };
    let state = folder.join("state");
    is_key
        && folder.symlink_metadata().is_ok_and(|found| found.is_dir())
        && holds(folder, &["state"], &["package", "package.staging"])
        && holds(&state, &["images", "kernels"], &[])
        && state.join("kernels").join(DEFAULT_KERNEL).join("manifest.json").is_file()
        && state.join("images").join(DEFAULT_IMAGE).join("manifest.json").is_file()
}

fn make(cache: &Path, folder: &Path) -> Result<()> {
    // Whoever held the lock before has ended; what it left unfinished is of no use.
    for unfinished in keyed::by_last_use(cache, STAGING)? {
        std::fs::remove_dir_all(&unfinished)
            .with_context(|| format!("remove {}", unfinished.display()))?;
    }
    note(format_args!(
        "fetching {DEFAULT_KERNEL} and {DEFAULT_IMAGE} from Debian, once for all clones with the \
         same sources (1 to 2 minutes)"
    ));
    let name = folder.file_name().context("a folder of the cache has a name")?;
    let staged = cache.join(format!("{STAGING}-{}", name.display()));
    with_scratch(|environment| {
        pull(environment, "kernel", DEFAULT_KERNEL)?;
        pull(environment, "image", DEFAULT_IMAGE)?;
        if let Some(rootfs) = crate::busybox_rootfs() {
            let path = environment.home().join("busybox.tar");
            std::fs::write(&path, rootfs).context("write the busybox's root file system")?;
            let path = path.to_str().context("a path that is text")?;
            banger(environment, &["image", "import", "--name", BUSYBOX_IMAGE, path])?;
        }
        stop_daemon(environment);
        link_folder(&environment.state(), &staged.join("state"))
    })?;
    let state = staged.join("state");
    for entry in std::fs::read_dir(&state).context("list the staged state")?.flatten() {
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
    std::fs::rename(&staged, folder).with_context(|| format!("keep {}", folder.display()))
}

/// Works in an environment in which nothing panics and of which nothing is left.
pub(crate) fn with_scratch<T>(work: impl FnOnce(&Environment) -> Result<T>) -> Result<T> {
    let environment = Environment::try_new(Contents::Empty).context("make a place to work in")?;
    let made = work(&environment);
    stop_daemon(&environment);
    environment.discard();
    made
}

/// Ends the daemon, so that nobody writes any more.
pub(crate) fn stop_daemon(environment: &Environment) {
    if environment.daemon().is_some() {
        // What does not end by itself is killed with the environment.
        let mut stop = environment.command(["daemon", "stop"]);
        let _ = stop.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status();
    }
}

/// Has something fetched from Debian; its failure says what to do.
fn pull(environment: &Environment, kind: &str, name: &str) -> Result<()> {
    banger(environment, &[kind, "pull", name]).map_err(|error| {
        anyhow!(
            "{error:#}\nIf this machine does not reach its Debian mirror (`apt-get update` tells), try \
             again when it does, or copy the build cache from a machine that has it"
        )
    })
}

/// Runs `banger`, and tells what it tells; its last words are the error's.
pub(crate) fn banger(environment: &Environment, arguments: &[&str]) -> Result<()> {
    let shown = format!("banger {}", arguments.join(" "));
    let mut command = environment.command(arguments);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    let program = command.get_program().display().to_string();
    let mut child = command.spawn().with_context(|| format!("start {program}"))?;
    let stderr = child.stderr.take().context("it has a standard error")?;
    let (sender, lines) = mpsc::channel();
    let reader = std::thread::spawn(move || {
        for line in BufReader::new(stderr).split(b'\n').map_while(std::io::Result::ok) {
            let _ = sender.send(String::from_utf8_lossy(&line).into_owned());
        }
    });
    let end = Instant::now() + PULL_PATIENCE;
    let mut said = Vec::new();
    loop {
        match lines.recv_timeout(end.saturating_duration_since(Instant::now())) {
            Ok(line) => {
                note(&line);
                said.push(line);
            }
            Err(RecvTimeoutError::Disconnected) => break,
            Err(RecvTimeoutError::Timeout) => {
                let _ = child.kill();
                let _ = child.wait();
                bail!("{shown} took longer than {} minutes", PULL_PATIENCE.as_secs() / 60);
            }
        }
    }
    let _ = reader.join();
    let status = child.wait().with_context(|| format!("wait for {shown}"))?;
    if !status.success() {
        let last = said.split_off(said.len().saturating_sub(LAST_LINES));
        bail!("{shown} failed ({status}):\n{}", last.join("\n"));
    }
    Ok(())
}

/// Prints a line for who waits.
pub(crate) fn note(line: impl std::fmt::Display) {
    let _ = writeln!(std::io::stderr().lock(), "build cache: {line}");
}

/// The kernel store with the shared kernel, where that has been pulled for this clone's sources.
///
/// # Errors
/// Where the cache cannot be read.
pub fn kernel_store_if_made() -> Result<Option<PathBuf>> {
    let key = key(&crate::repository())?;
    let (cache, _lock) = lock_cache()?;
    let folder = cache.join(format!("{KIND}-{key}"));
    Ok(keyed::hold(&folder)?.then(|| folder.join("state/kernels")))
}

/// The same, without waiting for who may be changing it, and without keeping it from being removed.
///
/// # Errors
/// Where the sources cannot be read.
pub fn kernel_store_now() -> Result<Option<PathBuf>> {
    let key = key(&crate::repository())?;
    let store = build_cache()?.join(format!("{KIND}-{key}/state/kernels"));
    Ok(store.is_dir().then_some(store))
}

/// Pulls the default kernel by the real command line, into a kernel store that it makes of `store`.
///
/// # Errors
/// Where it cannot be pulled or written.
pub fn pull_kernel(store: &Path) -> Result<()> {
    with_scratch(|environment| {
        pull(environment, "kernel", DEFAULT_KERNEL)?;
        stop_daemon(environment);
        link_folder(&environment.state().join("kernels"), store)
    })
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

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;

    /// A clone with these sources, and one more that shapes nothing.
    fn clone(root: &Path) {
        for (file, text) in [
            ("owner/image/src/lib.rs", "//! Images."),
            ("owner/image/src/ext4/mod.rs", "//! ext4."),
            ("cli/src/debian/mod.rs", "//! Debian."),
            ("testing/harness/src/rootfs.rs", "//! A busybox."),
            ("README.md", "banger"),
        ] {
            let path = root.join(file);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
    }

    #[test]
    fn two_clones_at_different_paths_with_the_same_sources_have_one_key() {
        let folder = tempfile::tempdir().unwrap();
        let clones = ["one", "deep/er/two"].map(|name| folder.path().join(name));
        let [one, two] = &clones;
        clones.iter().for_each(|root| clone(root));
        let first = key(one).unwrap();
        assert_eq!(first, key(two).unwrap());

        std::fs::write(two.join("README.md"), "other").unwrap();
        assert_eq!(first, key(two).unwrap(), "it shapes nothing");
        let of = |change: &dyn Fn(&Path)| {
            std::fs::remove_dir_all(two).unwrap();
            clone(two);
            change(&two.join("owner/image/src"));
            key(two).unwrap()
        };
        let content = of(&|sources| std::fs::write(sources.join("lib.rs"), "//! Other.").unwrap());
        let name =
            of(&|sources| std::fs::rename(sources.join("lib.rs"), sources.join("x.rs")).unwrap());
        let place = of(&|sources| {
            std::fs::rename(sources.join("ext4/mod.rs"), sources.join("mod.rs")).unwrap();
        });
        let keys = [first, content, name, place];
        for (at, key) in keys.iter().enumerate() {
            assert!(!keys[..at].contains(key), "{keys:?}");
        }
        std::fs::remove_file(one.join("testing/harness/src/rootfs.rs")).unwrap();
        assert!(key(one).is_err(), "a source that is gone is no input");
    }

    #[test]
    fn what_former_sources_made_goes_and_nothing_that_only_looks_like_it() {
        let folder = tempfile::tempdir().unwrap();
        let cache = folder.path();
        let long_ago = SystemTime::now() - Duration::from_secs(25 * 3600);
        let make = |name: &str, more: &[&str]| {
            let state = cache.join(name).join("state");
            for kind in [format!("kernels/{DEFAULT_KERNEL}"), format!("images/{DEFAULT_IMAGE}")] {
                std::fs::create_dir_all(state.join(&kind)).unwrap();
                std::fs::write(state.join(kind).join("manifest.json"), "{}").unwrap();
            }
            for more in more {
                std::fs::write(cache.join(name).join(more), "").unwrap();
            }
            File::open(cache.join(name)).unwrap().set_modified(long_ago).unwrap();
        };
        let stays: [(&str, &[&str]); 7] = [
            ("images-0123456789abcdef", &[]),
            ("0123456789abcde", &[]),
            ("0123456789ABCDEF", &[]),
            ("0123456789abcdeg", &[]),
            ("0000000000000001", &[".used"]),
            ("0000000000000002", &["state/images/mine", "mine"]),
            ("0000000000000003", &["state/mine"]),
        ];
        stays.iter().for_each(|(name, more)| make(name, more));
        make("0000000000000004", &[]);
        std::fs::remove_dir_all(cache.join("0000000000000004/state/kernels")).unwrap();
        File::open(cache.join("0000000000000004")).unwrap().set_modified(long_ago).unwrap();
        make("0000000000000005", &[]);
        File::open(cache.join("0000000000000005"))
            .unwrap()
            .set_modified(SystemTime::now())
            .unwrap();
        let elsewhere = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink(elsewhere.path(), cache.join("0000000000000006")).unwrap();
        for (name, more) in
            [("fbe4699a726a051c", [].as_slice()), ("0123456789abcdef", &["package"])]
        {
            make(name, more);
        }
        remove_former(cache).unwrap();
        assert!(!cache.join("fbe4699a726a051c").exists());
        assert!(!cache.join("0123456789abcdef").exists());
        assert_eq!(std::fs::read_dir(cache).unwrap().count(), stays.len() + 3);
    }

    #[test]
    fn a_pull_that_fails_says_why_and_what_to_do_and_leaves_nothing() {
        let mut base = PathBuf::new();
        let error = with_scratch(|environment| {
            environment.base().clone_into(&mut base);
            pull(environment, "kernel", "no-such-kernel")
        });
        // Where this crate's tests are built alone there is no banger, which is an error like others.
        let error = error.unwrap_err().to_string();
        assert!(error.contains("no-such-kernel") || error.starts_with("start "), "{error}");
        assert!(error.contains("\nIf this machine does not reach"), "{error}");
        assert!(base.starts_with("/var/tmp") && !base.exists(), "{}", base.display());
    }
}
