//! Debian's source package of the kernel.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use sha2::{Digest, Sha256};

use super::hexadecimal;
use crate::process::output_of;
use crate::say;

/// The package; its name has the kernel's series.
pub(super) const PACKAGE: &str = "linux-source-6.12";

/// The version of the package that apt would install.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct SourcePackage {
    pub(super) version: String,
    pub(super) sha256: String,
}

impl SourcePackage {
    /// Asks apt.
    pub(super) fn find() -> Result<Self> {
        let shown = output_of(Command::new("apt-cache").env("LC_ALL", "C").args([
            "show",
            "--no-all-versions",
            PACKAGE,
        ]));
        shown.ok().and_then(|text| Self::parse(&text)).with_context(|| {
            format!(
                "apt does not know {PACKAGE}; `sudo apt-get update` may help (Debian 12 has it \
                     in its security archive)"
            )
        })
    }

    fn parse(text: &str) -> Option<Self> {
        let field = |name: &str| {
            let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
            Some(value.trim().to_owned())
        };
        let version = field("Version").filter(|version| {
            !version.is_empty()
                && version
                    .bytes()
                    .all(|byte| byte.is_ascii_alphanumeric() || b".+~:-".contains(&byte))
        })?;
        let sha256 = field("SHA256")
            .filter(|hash| hash.len() == 64 && hash.bytes().all(|byte| byte.is_ascii_hexdigit()))?;
        Some(Self { version, sha256 })
    }
}

/// An unpacked source.
#[derive(Debug)]
pub(super) struct Tree {
    pub(super) folder: PathBuf,
    /// Linux's version, such as `6.12.117`.
    pub(super) release: String,
    /// When the source was packed, in seconds since 1970: the kernel's date.
    pub(super) epoch: i64,
    /// The same as date(1) prints it.
    pub(super) date: String,
}

/// Downloads, checks and unpacks the package.
pub(super) fn unpack(package: &SourcePackage, scratch: &Path) -> Result<Tree> {
    say(format_args!("downloading {PACKAGE} {}", package.version));
    // apt fetches as a user of its own where it can; as this one otherwise.
    let download = scratch.join("download");
    fs::create_dir(&download).context("make a folder for the package")?;
    fs::set_permissions(&download, fs::Permissions::from_mode(0o700))
        .context("close the package's folder")?;
    let wanted = format!("{PACKAGE}={}", package.version);
    output_of(
        Command::new("apt-get")
            .args(["download", "-q", "-o", "APT::Sandbox::User=root", &wanted])
            .current_dir(&download),
    )?;
    let deb = only_file(&download)?;
    let found = hexadecimal(&Sha256::digest(fs::read(&deb).context("read the package")?));
    ensure!(
        found == package.sha256,
        "the downloaded {PACKAGE} has the SHA-256 {found}, apt's lists say {}",
        package.sha256
    );

    say("unpacking");
    let unpacked = scratch.join("package");
    output_of(Command::new("dpkg-deb").arg("--extract").arg(&deb).arg(&unpacked))?;
    fs::remove_dir_all(&download).context("remove the download")?;
    let archive = unpacked.join(format!("usr/src/{PACKAGE}.tar.xz"));
    let epoch =
        archive.metadata().with_context(|| format!("look at {}", archive.display()))?.mtime();
    output_of(Command::new("tar").arg("-C").arg(scratch).arg("-xJf").arg(&archive))?;
    fs::remove_dir_all(&unpacked).context("remove the unpacked package")?;

    let folder = scratch.join(PACKAGE);
    let makefile = fs::read_to_string(folder.join("Makefile")).context("read the Makefile")?;
    let release = release(&makefile).context("the Makefile does not say which Linux it is")?;
    let date = output_of(Command::new("date").env("LC_ALL", "C").args([
        "-u",
        "-d",
        &format!("@{epoch}"),
    ]))?;
    Ok(Tree { folder, release, epoch, date: date.trim().to_owned() })
}

fn only_file(folder: &Path) -> Result<PathBuf> {
    let mut entries = fs::read_dir(folder).with_context(|| format!("list {}", folder.display()))?;
    let entry = entries.next().with_context(|| format!("{} is empty", folder.display()))?;
    Ok(entry.with_context(|| format!("list {}", folder.display()))?.path())
}

/// The version in Linux's own Makefile.
fn release(makefile: &str) -> Option<String> {
    let part = |name: &str| {
        let line = makefile.lines().find(|line| line.starts_with(name))?;
        let (key, value) = line.split_once('=')?;
        (key.trim() == name).then(|| value.trim().to_owned())
    };
    Some(format!("{}.{}.{}", part("VERSION")?, part("PATCHLEVEL")?, part("SUBLEVEL")?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_apt_shows_is_a_version_and_a_hash() {
        let hash = "ab".repeat(32);
        let text = format!("Package: {PACKAGE}\nVersion: 6.12.117-1~deb12u1\nSHA256: {hash}\n");
        let package = SourcePackage::parse(&text).unwrap();
        assert_eq!(package, SourcePackage { version: "6.12.117-1~deb12u1".into(), sha256: hash });
        let hash = "ab".repeat(32);
        for bad in [
            "".to_owned(),
            "Version: 6.12\n".to_owned(),
            "Version: 6.12\nSHA256: abcd\n".to_owned(),
            format!("Version: \nSHA256: {hash}\n"),
            format!("Version: 6.12 -o x\nSHA256: {hash}\n"),
            format!("Version: 6.12\nSHA256: {}\n", "zz".repeat(32)),
        ] {
            assert_eq!(SourcePackage::parse(&bad), None, "{bad:?}");
        }
    }

    #[test]
    fn the_makefile_says_the_version() {
        let text = "# x\nVERSION = 6\nPATCHLEVEL = 12\nSUBLEVEL = 117\nEXTRAVERSION =\n";
        assert_eq!(release(text).as_deref(), Some("6.12.117"));
        assert_eq!(release("VERSION = 6\n"), None);
    }
}
