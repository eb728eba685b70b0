//! The root file system: `mmdebstrap` makes a tar stream, the product's image builder an ext4 file
//! system of it while it arrives. Nothing is unpacked or mounted on this machine.

use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use banger_image::{BuildOptions, BuildPaths, CancelFlag, NoProgress, build_image};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::cache::{Cache, CacheLock, Key};
use crate::checksum::Checksum;
use crate::debian::{Bootstrap, Release};
use crate::note;

/// One package a line, and comments.
const PACKAGES: &str = include_str!("../host/packages");
/// The last change to the tree, a shell script.
const CUSTOMIZE: &str = include_str!("../host/customize");
/// A change of how the image is made; part of its key.
const LAYOUT: &str = "banger kvm-host image 2";
/// Says what was built.
const MANIFEST: &str = "manifest.json";

/// A built root file system.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct HostImage {
    /// The key of its inputs.
    pub key: String,
    /// The ext4 file system, read-only.
    pub root: PathBuf,
    /// Its UUID, by which the agent finds it.
    pub uuid: Uuid,
    /// What the file (sparse) held when it was built.
    checksum: Checksum,
}

impl HostImage {
    /// Returns the image for today's inputs, if it is there in its full length; an error where
    /// something else is in its place.
    pub fn find(cache: &Cache) -> Result<Option<Self>> {
        Self::at(&cache.root().join(format!("image-{}", key(&Release::of_this_machine())?)))
    }

    fn at(folder: &Path) -> Result<Option<Self>> {
        let manifest = folder.join(MANIFEST);
        let text = match std::fs::read(&manifest) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound && !folder.exists() => {
                return Ok(None);
            }
            Err(error) => {
                return Err(error).with_context(|| format!("read {}", manifest.display()));
            }
        };
        let image: Self = serde_json::from_slice(&text)
            .with_context(|| format!("read {}", manifest.display()))?;
        let image = Self { root: folder.join("root.ext4"), ..image };
        image.checksum.check_length(&image.root)?;
        Ok(Some(image))
    }

    /// Bytes of the file.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.checksum.bytes
    }

    /// Reads it whole and refuses it if it is not what was built.
    pub fn check(&self) -> Result<()> {
        self.checksum.check(&self.root)
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

fn key(release: &Release) -> Result<String> {
    let key = Key::default().with(LAYOUT).with(&release.suite).with(release.sources_text()?);
    Ok(key.with(PACKAGES).with(CUSTOMIZE).name())
}

/// Returns the image for today's inputs, building it unless it is there.
pub fn ensure_image(cache: &Cache, lock: &CacheLock) -> Result<HostImage> {
    match HostImage::find(cache) {
        Ok(Some(image)) => Ok(image),
        Ok(None) => build_anew(cache, lock),
        Err(error) => {
            note(format_args!("the root file system is damaged: {error:#}"));
            build_anew(cache, lock)
        }
    }
}

/// Builds the image for today's inputs in the place of what is there.
pub fn build_anew(cache: &Cache, lock: &CacheLock) -> Result<HostImage> {
    let release = Release::of_this_machine();
    let key = key(&release)?;
    note("building the root file system from Debian packages (about a minute)");
    let started = std::time::Instant::now();
    let staged = cache.stage(lock)?;
    let uuid = bootstrap(&release, staged.path())?;
    let checksum = Checksum::of(&staged.path().join("root.ext4"))?;
    let root = cache.root().join(format!("image-{key}/root.ext4"));
    let image = HostImage { key: key.clone(), root, uuid, checksum };
    std::fs::write(staged.path().join(MANIFEST), serde_json::to_vec_pretty(&image)?)
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
fn bootstrap(release: &Release, folder: &Path) -> Result<Uuid> {
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

fn build(archive: impl Read + Send, folder: &Path) -> Result<Uuid> {
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
    Ok(built.uuid)
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
    fn a_damaged_image_is_none_that_was_never_built_and_is_told_apart() {
        let folder = tempfile::tempdir().unwrap();
        let at = folder.path().join("image-x");
        assert!(HostImage::at(&at).unwrap().is_none());
        std::fs::create_dir(&at).unwrap();
        let why = || format!("{:#}", HostImage::at(&at).unwrap_err());
        assert!(why().contains(MANIFEST), "{}", why());
        std::fs::write(at.join(MANIFEST), "{").unwrap();
        assert!(why().contains(MANIFEST), "{}", why());
        let root = at.join("root.ext4");
        std::fs::write(&root, "ext4").unwrap();
        let checksum = Checksum::of(&root).unwrap();
        let image = HostImage { key: "x".to_owned(), root, uuid: Uuid::nil(), checksum };
        std::fs::write(at.join(MANIFEST), serde_json::to_vec(&image).unwrap()).unwrap();
        HostImage::at(&at).unwrap().unwrap().check().unwrap();
        std::fs::write(&image.root, "ext3").unwrap();
        let error = HostImage::at(&at).unwrap().unwrap().check().unwrap_err().to_string();
        assert!(error.contains("root.ext4 is damaged"), "{error}");
        std::fs::write(&image.root, "ext").unwrap();
        assert!(why().contains("has 3 bytes, and had 4"), "{}", why());
    }
}
