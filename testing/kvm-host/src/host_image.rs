//! The root file system: `mmdebstrap` makes a tar stream, the product's image builder an ext4 file
//! system of it while it arrives. Nothing is unpacked or mounted on this machine.

use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use banger_image::{BuildOptions, BuildPaths, CancelFlag, NoProgress, build_image};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::cache::{Cache, CacheLock, Key};
use crate::debian::{Bootstrap, Release};
use crate::note;

/// One package a line, and comments.
const PACKAGES: &str = include_str!("../host/packages");
/// The last change to the tree, a shell script.
const CUSTOMIZE: &str = include_str!("../host/customize");
/// A change of how the image is made; part of its key.
const LAYOUT: &str = "banger kvm-host image 1";
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
    let release = Release::of_this_machine();
    let key = Key::default()
        .with(LAYOUT)
        .with(&release.suite)
        .with(release.sources_text()?)
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
    let (uuid, size) = bootstrap(&release, staged.path())?;
    let root = cache.root().join(format!("image-{key}/root.ext4"));
    let image = HostImage { key: key.clone(), root, uuid, size };
    std::fs::write(staged.path().join("manifest.json"), serde_json::to_vec_pretty(&image)?)
        .context("write the image's manifest")?;
    cache.publish(staged, "image", &key)?;
    note(format_args!("built in {:.0} s", started.elapsed().as_secs_f64()));
    Ok(image)
}

fn packages() -> String {
    let names = PACKAGES.lines().map(str::trim);
    let names: Vec<&str> =
        names.filter(|line| !line.is_empty() && !line.starts_with('#')).collect();
    names.join(",")
}

/// Runs mmdebstrap and writes the file system into `folder` while its archive arrives.
fn bootstrap(release: &Release, folder: &Path) -> Result<(Uuid, u64)> {
    let mut bootstrap = Bootstrap::start(folder, |command, scratch| {
        let hook = scratch.join("customize");
        std::fs::write(&hook, CUSTOMIZE).context("write the hook")?;
        std::fs::set_permissions(&hook, std::os::unix::fs::PermissionsExt::from_mode(0o755))
            .with_context(|| format!("make {} executable", hook.display()))?;
        command.arg("--variant=minbase").arg(format!("--include={}", packages()));
        command.arg(format!("--customize-hook={}", hook.display()));
        command.args([&release.suite, "-"]).args(&release.sources);
        Ok(())
    })?;
    let built = bootstrap.archive().and_then(|archive| build(archive, folder));
    bootstrap.finish(built)
}

fn build(archive: impl Read + Send, folder: &Path) -> Result<(Uuid, u64)> {
    let root = folder.join("root.ext4");
    let options = BuildOptions { label: "kvm-host".into(), ..BuildOptions::default() };
    let built = build_image(
        // The builder reads small pieces as they come.
        std::io::BufReader::with_capacity(1 << 20, archive),
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
}
