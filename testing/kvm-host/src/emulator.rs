//! The QEMU that runs the machine: this one's own where it is new enough, else that of the
//! release's backports, unpacked into the cache with all its libraries and run from there.
//!
//! Before 8.1 two threads of the translator can leave a stale translation behind when a kernel
//! patches itself (QEMU commit deba78709ae8): a nested guest with two CPUs then dies of an `int3`
//! that is long gone, and now and then the machine itself does. With one thread, one nested guest
//! in four stood for ever in a spin lock that it held itself. Nothing is installed here, because
//! the product is tested with the QEMU that the release's users have.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};

use crate::cache::{Cache, CacheLock, Key};
use crate::debian::{Bootstrap, Release};
use crate::note;

/// The program's name, on PATH and in its package.
const PROGRAM: &str = "qemu-system-x86_64";
/// Its package.
const PACKAGE: &str = "qemu-system-x86";
/// The first version whose threads translate safely.
const SAFE: (u32, u32) = (8, 1);
/// The release whose own QEMU is older, and which has a newer one in its backports.
const BACKPORTED: &str = "bookworm";
/// A change of how the tree is made; part of its key.
const LAYOUT: &str = "banger kvm-host qemu 1";
/// What a folder holds instead of a tree that could not be had.
const MISSING: &str = "missing";
/// How long it is not tried again.
const PAUSE: Duration = Duration::from_secs(3600);

/// Whether what could not be fetched a while ago is tried again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retry {
    /// After an hour: every boot would wait for it otherwise.
    AfterPause,
    /// At once.
    Now,
}

/// A QEMU that runs on this machine.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Emulator {
    /// The tree that it was unpacked to, unless it is this machine's own.
    root: Option<PathBuf>,
    /// The first line of its `--version`.
    version: String,
}

impl Emulator {
    /// Finds or fetches the QEMU to use.
    pub fn prepare(cache: &Cache, lock: &CacheLock, retry: Retry) -> Result<Self> {
        let own = Self::find(cache)?;
        let release = Release::of_this_machine();
        if own.translates_safely() || release.suite != BACKPORTED {
            own.hold(cache)?;
            return Ok(own);
        }
        let key = key(&release)?;
        let folder = cache.root().join(format!("qemu-{key}"));
        let suite = format!("{BACKPORTED}-backports");
        let tried = folder.join(MISSING).metadata().and_then(|found| found.modified()).ok();
        if let Some(age) = tried.and_then(age_within_pause)
            && retry == Retry::AfterPause
        {
            say_once(&paused(&own.version, &suite, age));
            return Ok(own);
        }
        note(format_args!("fetching QEMU from {suite} (about 20 s)"));
        let staged = cache.stage(lock)?;
        match fetch(&release, &suite, staged.path()) {
            Ok(()) => {
                let folder = cache.publish(staged, "qemu", &key)?;
                Self::at(Some(folder)).context("start the fetched QEMU")
            }
            Err(error) => {
                note(format_args!("QEMU from {suite} cannot be had: {error:#}"));
                say_once(&paused(&own.version, &suite, Duration::ZERO));
                drop(staged);
                let empty = cache.stage(lock)?;
                std::fs::write(empty.path().join(MISSING), format!("{error:#}"))
                    .context("write down that there is no QEMU")?;
                cache.publish(empty, "qemu", &key)?;
                Ok(own)
            }
        }
    }

    /// Finds the QEMU to use among those that are there.
    pub fn find(cache: &Cache) -> Result<Self> {
        let own = Self::at(None)?;
        let release = Release::of_this_machine();
        if own.translates_safely() || release.suite != BACKPORTED {
            return Ok(own);
        }
        let folder = cache.root().join(format!("qemu-{}", key(&release)?));
        Ok(Self::at(Some(folder)).unwrap_or(own))
    }

    fn at(root: Option<PathBuf>) -> Result<Self> {
        let mut emulator = Self { root, version: String::new() };
        let words = emulator.words();
        let (program, rest) = words.split_first().context("a program")?;
        let output = Command::new(program)
            .args(rest)
            .arg("--version")
            .output()
            .with_context(|| format!("run {}", program.display()))?;
        ensure!(output.status.success(), "{PROGRAM} --version failed: {}", output.status);
        let text = String::from_utf8_lossy(&output.stdout);
        text.lines().next().unwrap_or_default().clone_into(&mut emulator.version);
        Ok(emulator)
    }

    /// Keeps it from being removed while this process lives; needs the cache's lock.
    pub(crate) fn hold(&self, cache: &Cache) -> Result<()> {
        self.root.as_deref().map_or(Ok(()), |root| cache.hold(root))
    }

    /// Its own words about its version.
    #[must_use]
    pub fn version(&self) -> &str {
        &self.version
    }

    /// Whether a kernel may patch itself while two threads run its CPUs.
    #[must_use]
    pub fn translates_safely(&self) -> bool {
        let numbers = self.version.strip_prefix("QEMU emulator version ").unwrap_or_default();
        let mut numbers = numbers.split(['.', ' ']).map(|number| number.parse::<u32>().ok());
        match (numbers.next().flatten(), numbers.next().flatten()) {
            (Some(major), Some(minor)) => (major, minor) >= SAFE,
            _ => false,
        }
    }

    /// The program and its first arguments. A fetched one is started by its own dynamic linker and
    /// finds its own libraries and firmware.
    #[must_use]
    pub fn words(&self) -> Vec<OsString> {
        let Some(root) = &self.root else { return vec![PROGRAM.into()] };
        let at = |path: &str| root.join(path).into_os_string();
        let mut libraries = at("usr/lib/x86_64-linux-gnu");
        libraries.push(":");
        libraries.push(at("lib/x86_64-linux-gnu"));
        vec![
            at("lib/x86_64-linux-gnu/ld-linux-x86-64.so.2"),
            "--library-path".into(),
            libraries,
            at(&format!("usr/bin/{PROGRAM}")),
            "-L".into(),
            at("usr/share/qemu"),
            "-L".into(),
            at("usr/share/seabios"),
        ]
    }
}

fn key(release: &Release) -> Result<String> {
    let key = Key::default().with(LAYOUT).with(&release.suite).with(release.sources_text()?);
    Ok(key.name())
}

/// How long ago that was, where it is not tried again yet.
fn age_within_pause(tried: SystemTime) -> Option<Duration> {
    tried.elapsed().ok().filter(|age| *age < PAUSE)
}

/// What runs instead of a QEMU that could not be fetched `age` ago, and until when.
fn paused(version: &str, suite: &str, age: Duration) -> String {
    let minutes = |time: Duration| time.as_secs() / 60;
    format!(
        "{version} runs, slower: {} minutes ago that of {suite} could not be had; it is tried again \
         in {} minutes, or at once by: cargo xtask kvm-host build",
        minutes(age),
        minutes(PAUSE.saturating_sub(age))
    )
}

/// Notes it, once in this process: a run prepares the machine more than once.
fn say_once(line: &str) {
    static SAID: std::sync::Once = std::sync::Once::new();
    SAID.call_once(|| note(line));
}

/// Unpacks the package and all that it depends on into `folder`.
fn fetch(release: &Release, suite: &str, folder: &Path) -> Result<()> {
    let mirror = mirror(release)?;
    let mut bootstrap = Bootstrap::start(folder, |command, _| {
        command.arg("--variant=extract").arg(format!("--include={PACKAGE}"));
        command.arg(format!("--aptopt=APT::Default-Release \"{suite}\""));
        command.args([&release.suite, "-"]).args(&release.sources);
        command.arg(format!("deb {mirror} {suite} main"));
        Ok(())
    })?;
    let unpacked = bootstrap.archive().and_then(|archive| {
        let output = Command::new("tar")
            .args(["--extract", "--no-same-owner", "--exclude=./dev", "--directory"])
            .arg(folder)
            .stdin(archive)
            .stdout(Stdio::null())
            .output()
            .context("run tar")?;
        let words = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "tar failed: {}: {}", output.status, words.trim());
        Ok(())
    });
    bootstrap.finish(unpacked)
}

/// Where this machine has the release's packages from.
fn mirror(release: &Release) -> Result<String> {
    let text = String::from_utf8(release.sources_text()?).context("read the package sources")?;
    let lines = text.lines().filter(|line| !line.trim_start().starts_with('#'));
    let found = lines.flat_map(str::split_whitespace).find(|word| word.starts_with("http"));
    Ok(found.unwrap_or("http://deb.debian.org/debian").to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_versions_that_translate_safely_have_threads_from_the_start() {
        let is_safe = |version: &str| {
            Emulator { root: None, version: version.to_owned() }.translates_safely()
        };
        for version in [
            "",
            "QEMU",
            "QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7)",
            "QEMU emulator version 8.0.5",
            "QEMU emulator version x.y",
        ] {
            assert!(!is_safe(version), "{version}");
        }
        for version in ["QEMU emulator version 8.1.0", "QEMU emulator version 10.0.2 (Debian 1:10)"]
        {
            assert!(is_safe(version), "{version}");
        }
    }

    #[test]
    fn what_could_not_be_had_is_told_with_when_and_how_it_is_tried_again() {
        let minutes = |count: u64| Duration::from_secs(60 * count);
        let words = paused("QEMU emulator version 7.2", "bookworm-backports", minutes(12));
        for part in ["7.2", "bookworm-backports", "12 minutes ago", "in 48 minutes", "host build"] {
            assert!(words.contains(part), "{words}");
        }
        let now = SystemTime::now();
        assert!(age_within_pause(now - minutes(59)).is_some());
        assert!(age_within_pause(now - minutes(61)).is_none());
    }

    #[test]
    fn a_fetched_one_finds_everything_in_its_own_tree() {
        let fetched = Emulator { root: Some("/cache/qemu-x".into()), version: String::new() };
        let words = fetched.words();
        let of_its_own = words.iter().filter(|word| word.to_string_lossy().starts_with("/cache/"));
        assert_eq!(of_its_own.count(), 5, "{words:?}");
    }
}
