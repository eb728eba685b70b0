//! The root file system: `mmdebstrap` makes a tar stream, the product's image builder an ext4 file
//! system of it while it arrives. Nothing is unpacked or mounted on this machine.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use banger_image::{BuildOptions, BuildPaths, CancelFlag, NoProgress, build_image};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::cache::{Cache, CacheLock, Key};
use crate::note;

/// One package a line, and comments.
const PACKAGES: &str = include_str!("../host/packages");
/// The last change to the tree, a shell script.
const CUSTOMIZE: &str = include_str!("../host/customize");
/// A change of how the image is made; part of its key.
const LAYOUT: &str = "banger kvm-host image 1";
/// Where releases have their package lists; the first that fits is used.
const SOURCES: [&str; 2] = ["/etc/apt/sources.list.d/debian.sources", "/etc/apt/sources.list"];
/// The release, where this machine's own is not one of these.
const DEFAULT_SUITE: &str = "bookworm";
const KNOWN_SUITES: [&str; 3] = ["bookworm", "trixie", "forky"];

/// A built root file system.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct HostImage {
    /// The key of its inputs.
    pub key: String,
    /// The ext4 file system, read-only.
    pub root: PathBuf,
    /// Its UUID, by which the agent finds it.
    pub uuid: Uuid,
    /// Bytes of the file (sparse).
    pub size: u64,
}

impl HostImage {
    /// Whether its file is there in its full length.
    fn is_whole(&self) -> bool {
        self.root.metadata().is_ok_and(|found| found.is_file() && found.len() == self.size)
    }
}

/// Why this machine cannot build the image at all, in words for a `SKIP:` line; `None` if it can.
#[must_use]
pub fn impossible() -> Option<String> {
    for (program, package) in [
        ("mmdebstrap", "mmdebstrap"),
        ("e2fsck", "e2fsprogs"),
        ("qemu-system-x86_64", "qemu-system-x86"),
        ("setpriv", "util-linux"),
    ] {
        if banger_harness::find_program(program).is_none() {
            return Some(format!("{program} is missing; apt-get install {package}"));
        }
    }
    None
}

/// Returns the image for today's inputs, building it unless it is there.
pub fn ensure_image(cache: &Cache, lock: &CacheLock) -> Result<HostImage> {
    let suite = suite();
    let sources = sources(&suite);
    let key = Key::default()
        .with(LAYOUT)
        .with(&suite)
        .with(sources.as_deref().map(std::fs::read).transpose()?.unwrap_or_default())
        .with(PACKAGES)
        .with(CUSTOMIZE)
        .name();
    let manifest = cache.root().join(format!("image-{key}/manifest.json"));
    if let Some(image) = std::fs::read(&manifest)
        .ok()
        .and_then(|text| serde_json::from_slice::<HostImage>(&text).ok())
        .map(|image| HostImage { root: manifest.with_file_name("root.ext4"), ..image })
        .filter(|image| image.is_whole())
    {
        return Ok(image);
    }
    note("building the root file system from Debian packages (about a minute)");
    let started = std::time::Instant::now();
    let staged = cache.stage(lock)?;
    let (uuid, size) = bootstrap(&suite, sources.as_deref(), staged.path())?;
    let root = cache.root().join(format!("image-{key}/root.ext4"));
    let image = HostImage { key: key.clone(), root, uuid, size };
    std::fs::write(staged.path().join("manifest.json"), serde_json::to_vec_pretty(&image)?)
        .context("write the image's manifest")?;
    cache.publish(staged, "image", &key)?;
    note(format_args!("built in {:.0} s", started.elapsed().as_secs_f64()));
    Ok(image)
}

/// The release of this machine where Debian has it, so that programs built here find the C library
/// they were built for.
fn suite() -> String {
    let text = std::fs::read_to_string("/etc/os-release").unwrap_or_default();
    let value = |key: &str| {
        text.lines()
            .find_map(|line| line.strip_prefix(key)?.strip_prefix('='))
            .map(|value| value.trim_matches('"').to_owned())
    };
    value("VERSION_CODENAME")
        .filter(|name| KNOWN_SUITES.contains(&name.as_str()))
        .unwrap_or_else(|| DEFAULT_SUITE.to_owned())
}

/// This machine's own package sources where they are for the release.
fn sources(suite: &str) -> Option<PathBuf> {
    SOURCES.iter().map(PathBuf::from).find(|path| {
        let text = std::fs::read_to_string(path).unwrap_or_default();
        text.lines().any(|line| {
            !line.trim_start().starts_with('#') && line.split_whitespace().any(|word| word == suite)
        })
    })
}

fn packages() -> String {
    let names = PACKAGES.lines().map(str::trim);
    let names: Vec<&str> =
        names.filter(|line| !line.is_empty() && !line.starts_with('#')).collect();
    names.join(",")
}

/// Runs mmdebstrap and writes the file system into `folder` while its archive arrives.
fn bootstrap(suite: &str, sources: Option<&Path>, folder: &Path) -> Result<(Uuid, u64)> {
    let log = std::fs::File::create(folder.join("mmdebstrap.log")).context("make a log")?;
    let scratch = scratch(folder)?;
    let hook = scratch.path().join("customize");
    std::fs::write(&hook, CUSTOMIZE).context("write the hook")?;
    make_executable(&hook)?;
    let mut child = mmdebstrap(suite, sources, &hook)
        .env("TMPDIR", scratch.path())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(log)
        .spawn()
        .context("start mmdebstrap")?;
    let built = build(&mut child, folder);
    if built.is_err() {
        // It would wait for a reader for ever.
        let _ = child.kill();
    }
    let status = child.wait().context("wait for mmdebstrap")?;
    if !status.success() {
        let words = std::fs::read_to_string(folder.join("mmdebstrap.log")).unwrap_or_default();
        let tail: Vec<&str> = words.lines().rev().take(12).collect();
        let tail: Vec<&str> = tail.into_iter().rev().collect();
        bail!("mmdebstrap failed: {status}\n{}", tail.join("\n"));
    }
    scratch.close().context("remove mmdebstrap's scratch folder")?;
    built
}

/// Makes the folder that mmdebstrap works in. Without root it works as a subordinate user, for whom
/// nothing below a home is within reach.
fn scratch(folder: &Path) -> Result<tempfile::TempDir> {
    let is_root = rustix::process::geteuid().is_root();
    let parent = if is_root { folder } else { Path::new("/var/tmp") };
    let scratch = tempfile::Builder::new()
        .prefix("kvm-host-")
        .tempdir_in(parent)
        .with_context(|| format!("make a scratch folder in {}", parent.display()))?;
    // As root, apt's own user must get through; the cache's folder is ours alone otherwise.
    let open: &[&Path] = if is_root { &[folder, scratch.path()] } else { &[scratch.path()] };
    for path in open {
        std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o755))
            .with_context(|| format!("open {}", path.display()))?;
    }
    Ok(scratch)
}

fn build(child: &mut Child, folder: &Path) -> Result<(Uuid, u64)> {
    let stream = child.stdout.take().context("mmdebstrap has an output")?;
    let root = folder.join("root.ext4");
    let options = BuildOptions { label: "kvm-host".into(), ..BuildOptions::default() };
    let built = build_image(
        // The builder reads small pieces as they come.
        std::io::BufReader::with_capacity(1 << 20, stream.take(u64::MAX)),
        BuildPaths { image: &root, work_seed: None },
        &options,
        &NoProgress,
        &CancelFlag::default(),
    )
    .context("write the root file system")?;
    ensure!(built.has_init, "the root file system has no init");
    std::fs::set_permissions(&root, std::os::unix::fs::PermissionsExt::from_mode(0o444))
        .context("protect the root file system")?;
    Ok((built.uuid, built.size))
}

fn mmdebstrap(suite: &str, sources: Option<&Path>, hook: &Path) -> Command {
    // It ends with us, however we end. As root all its processes are in a pid namespace, which ends
    // with its first, at once; and it mounts /proc and the like below its folder, which happens in a
    // mount namespace of its own, so that they end with it. For others it makes such namespaces
    // itself, and ends them when it is told to.
    let mut command = Command::new("setpriv");
    let mode = if rustix::process::geteuid().is_root() {
        command.args(["--pdeathsig", "KILL", "--", "unshare", "--mount", "--pid", "--fork"]);
        command.args(["--kill-child", "--mount-proc", "--"]);
        "root"
    } else {
        command.args(["--pdeathsig", "TERM", "--"]);
        "unshare"
    };
    command.arg("mmdebstrap").arg(format!("--mode={mode}"));
    command.args(["--variant=minbase", "--format=tar"]);
    command.arg(format!("--include={}", packages()));
    command.arg("--aptopt=APT::Install-Recommends \"false\"");
    for path in ["man", "locale", "doc", "info"] {
        command.arg(format!("--dpkgopt=path-exclude=/usr/share/{path}/*"));
    }
    command.arg(format!("--customize-hook={}", hook.display()));
    command.args([suite, "-"]);
    command.args(sources);
    command
}

fn make_executable(path: &Path) -> Result<()> {
    std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o755))
        .with_context(|| format!("make {} executable", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_of_packages_is_words() {
        let list = packages();
        assert!(list.contains("systemd-resolved") && list.contains("openssh-server"));
        assert!(list.split(',').all(|name| {
            !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || "+-.".contains(c))
        }));
    }

    #[test]
    fn the_suite_is_one_that_debian_has() {
        assert!(KNOWN_SUITES.contains(&suite().as_str()));
    }
}
