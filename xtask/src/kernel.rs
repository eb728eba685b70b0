//! `cargo xtask kernel`: banger's own guest kernel, from Debian's source.
//!
//! The source package comes through apt, which checks its origin; the
//! configuration is `guest/kernel/banger.config`. The result lies in the build
//! cache under the hash of all that shapes it, beside what it was made of:
//!
//! ```text
//! <cache>/kernel/<hash>/linux-image-6.12.N-banger_amd64.deb   for `banger kernel import`
//!                       bzImage  vmlinux  config              the same, unpacked
//!                       sources                               what it was made of
//! ```
//!
//! A build happens in a folder of its own and is renamed when it is whole, so
//! a build that was killed leaves nothing that looks like a result; the next
//! one removes what it left.

mod config;
mod package;
mod source;
mod tools;

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use sha2::{Digest, Sha256};

use crate::process::{must_succeed, output_of};
use crate::say;
use source::SourcePackage;

/// Where the options are, below the root of the repository.
const FRAGMENT: &str = "guest/kernel/banger.config";
/// What a folder is called in which a build is going on.
const UNFINISHED: &str = ".building-";
/// Part of the cache's key: raised when this code builds something else from
/// the same inputs.
const RECIPE: &str = "1";

/// How to build.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Build it again although it is there, and fail if the bytes differ
    #[arg(long)]
    verify: bool,
    /// How many compilers run at once [default: the number of CPUs]
    #[arg(long)]
    jobs: Option<usize>,
}

/// A built kernel in the cache.
#[derive(Debug)]
pub(crate) struct Built {
    folder: PathBuf,
}

impl Built {
    /// The Debian package that `banger kernel import` takes.
    pub(crate) fn package(&self) -> Result<PathBuf> {
        let entries = std::fs::read_dir(&self.folder)
            .with_context(|| format!("list {}", self.folder.display()))?;
        entries
            .flatten()
            .map(|entry| entry.path())
            .find(|path| path.extension().is_some_and(|extension| extension == "deb"))
            .with_context(|| format!("{} has no package", self.folder.display()))
    }

    /// All its options.
    #[cfg(test)]
    fn configuration(&self) -> PathBuf {
        self.folder.join("config")
    }
}

/// Builds the kernel and says where it is.
pub(crate) fn run(options: &Options) -> Result<()> {
    let jobs = options.jobs.unwrap_or_else(jobs);
    let built = ensure(jobs)?;
    if options.verify {
        verify(&built, jobs)?;
    }
    for name in ["bzImage", "vmlinux"] {
        let path = built.folder.join(name);
        let size = path.metadata().with_context(|| format!("look at {}", path.display()))?.len();
        say(format_args!("{:>5.1} MiB  {}", size as f64 / f64::from(1 << 20), path.display()));
    }
    say(format_args!("banger kernel import --name own {}", built.package()?.display()));
    Ok(())
}

/// One compiler per CPU.
pub(crate) fn jobs() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// The kernel, where it is in the cache already.
pub(crate) fn cached() -> Result<Option<Built>> {
    let Ok(inputs) = Inputs::read() else { return Ok(None) };
    let folder = inputs.folder(&cache()?);
    Ok(folder.is_dir().then_some(Built { folder }))
}

/// Returns the kernel, built first where the cache does not have it.
pub(crate) fn ensure(jobs: usize) -> Result<Built> {
    tools::check()?;
    let inputs = Inputs::read()?;
    let cache = cache()?;
    let _lock = lock(&cache)?;
    let folder = inputs.folder(&cache);
    if !folder.is_dir() {
        remove_unfinished(&cache)?;
        let scratch = scratch(&cache)?;
        let result = build(&inputs, scratch.path(), jobs)?;
        std::fs::rename(&result, &folder)
            .with_context(|| format!("keep the kernel as {}", folder.display()))?;
        scratch.close().context("remove the build's folder")?;
    }
    Ok(Built { folder })
}

/// Builds a second time and compares all files.
fn verify(built: &Built, jobs: usize) -> Result<()> {
    let cache = cache()?;
    let _lock = lock(&cache)?;
    let scratch = scratch(&cache)?;
    let again = build(&Inputs::read()?, scratch.path(), jobs)?;
    let mut differing = Vec::new();
    for entry in std::fs::read_dir(&built.folder).context("list the kernel's files")? {
        let name = entry.context("list the kernel's files")?.file_name();
        let [first, second] = [built.folder.join(&name), again.join(&name)].map(std::fs::read);
        if first.context("read the first build")? != second.context("read the second build")? {
            differing.push(name.to_string_lossy().into_owned());
        }
    }
    scratch.close().context("remove the build's folder")?;
    if !differing.is_empty() {
        bail!("built twice, not the same bytes: {}", differing.join(", "));
    }
    say("built twice, the same bytes");
    Ok(())
}

fn cache() -> Result<PathBuf> {
    let folder = banger_harness::build_cache()?.join("kernel");
    std::fs::create_dir_all(&folder).with_context(|| format!("make {}", folder.display()))?;
    Ok(folder)
}

/// Waits for another build; held until it is dropped.
fn lock(cache: &Path) -> Result<std::fs::File> {
    let path = cache.join("lock");
    let file = std::fs::File::create(&path).with_context(|| format!("open {}", path.display()))?;
    file.lock().with_context(|| format!("lock {}", path.display()))?;
    Ok(file)
}

fn scratch(cache: &Path) -> Result<tempfile::TempDir> {
    tempfile::Builder::new()
        .prefix(UNFINISHED)
        .tempdir_in(cache)
        .with_context(|| format!("make a folder in {}", cache.display()))
}

/// Removes what killed builds left; the caller holds the lock.
fn remove_unfinished(cache: &Path) -> Result<()> {
    for entry in std::fs::read_dir(cache).context("list the cache")?.flatten() {
        if entry.file_name().to_string_lossy().starts_with(UNFINISHED) {
            std::fs::remove_dir_all(entry.path())
                .with_context(|| format!("remove {}", entry.path().display()))?;
        }
    }
    Ok(())
}

/// All that shapes the result.
#[derive(Debug)]
struct Inputs {
    source: SourcePackage,
    fragment: String,
    tools: String,
}

impl Inputs {
    fn read() -> Result<Self> {
        let path = crate::root()?.join(FRAGMENT);
        let fragment =
            std::fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
        Ok(Self { source: SourcePackage::find()?, fragment, tools: tools::versions()? })
    }

    /// What the result says about itself.
    fn shown(&self) -> String {
        // Its comments change nothing.
        let fragment = hexadecimal(&Sha256::digest(config::options(&self.fragment)));
        format!(
            "recipe {RECIPE}\nsource {} {} sha256 {}\nconfiguration sha256 {fragment}\n{}",
            source::PACKAGE,
            self.source.version,
            self.source.sha256,
            self.tools
        )
    }

    fn folder(&self, cache: &Path) -> PathBuf {
        let mut key = hexadecimal(&Sha256::digest(self.shown()));
        key.truncate(16);
        cache.join(key)
    }
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Builds in `scratch` and returns the folder of the result in it.
fn build(inputs: &Inputs, scratch: &Path, jobs: usize) -> Result<PathBuf> {
    let began = Instant::now();
    let tree = source::unpack(&inputs.source, scratch)?;
    let make = |targets: &[&str]| {
        let mut command = Command::new("nice");
        command.args(["-n", "19", "make", "--silent", "-C"]).arg(&tree.folder).args(targets);
        command.stdin(Stdio::null());
        // Nothing of the machine or the time may get into the kernel.
        command.env("KBUILD_BUILD_TIMESTAMP", &tree.date);
        command.env("SOURCE_DATE_EPOCH", tree.epoch.to_string());
        command.env("KBUILD_BUILD_USER", "banger").env("KBUILD_BUILD_HOST", "banger");
        command.env("KBUILD_BUILD_VERSION", "1").env("LC_ALL", "C").env("TZ", "UTC");
        // What a make or a shell around this one set is not meant for this one.
        for name in ["MAKEFLAGS", "MFLAGS", "ARCH", "CROSS_COMPILE", "LOCALVERSION", "KCFLAGS"] {
            command.env_remove(name);
        }
        command
    };

    let fragment = scratch.join("fragment");
    std::fs::write(&fragment, &inputs.fragment).context("write the options")?;
    say("configuring");
    let wanted = format!("KCONFIG_ALLCONFIG={}", fragment.display());
    output_of(&mut make(&[&wanted, "allnoconfig"]))?;
    let config = std::fs::read_to_string(tree.folder.join(".config")).context("read .config")?;
    let lost = config::lost(&inputs.fragment, &config);
    if !lost.is_empty() {
        bail!(
            "{FRAGMENT} has options that this kernel does not have, or that need others to be set \
             first: {}",
            lost.join(", ")
        );
    }

    say(format_args!("compiling Linux {} with {jobs} jobs; this takes a while", tree.release));
    let parallel = format!("-j{}", jobs.max(1));
    must_succeed(&mut make(&[&parallel, "vmlinux", "bzImage"]))?;
    let release = output_of(&mut make(&["kernelrelease"]))?;
    let result = package::make(&tree, release.trim(), &inputs.source.version, scratch)?;
    std::fs::write(result.join("sources"), inputs.shown()).context("write what it is made of")?;
    say(format_args!("built in {:.1} minutes", began.elapsed().as_secs_f64() / 60.0));
    Ok(result)
}
