//! Debian's packages, as `mmdebstrap` fetches them from where this machine has its own from.

use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};

use anyhow::{Context, Result, bail};

/// Where releases have their package lists; the first that fits is used.
const SOURCES: [&str; 2] = ["/etc/apt/sources.list.d/debian.sources", "/etc/apt/sources.list"];
/// The release, where this machine's own is not one of these.
const DEFAULT_SUITE: &str = "bookworm";
const KNOWN_SUITES: [&str; 3] = ["bookworm", "trixie", "forky"];

/// A release and where its packages are.
#[derive(Debug)]
pub(crate) struct Release {
    /// Its name.
    pub(crate) suite: String,
    /// This machine's own package sources, where they are for the release.
    pub(crate) sources: Option<PathBuf>,
}

impl Release {
    /// The release of this machine where Debian has it, so that programs built here find the C
    /// library they were built for.
    pub(crate) fn of_this_machine() -> Self {
        let text = std::fs::read_to_string("/etc/os-release").unwrap_or_default();
        let suite = text
            .lines()
            .find_map(|line| line.strip_prefix("VERSION_CODENAME="))
            .map(|value| value.trim_matches('"'))
            .filter(|name| KNOWN_SUITES.contains(name))
            .unwrap_or(DEFAULT_SUITE)
            .to_owned();
        let sources = SOURCES.iter().map(PathBuf::from).find(|path| {
            let text = std::fs::read_to_string(path).unwrap_or_default();
            text.lines().any(|line| {
                let mut words = line.split_whitespace();
                !line.trim_start().starts_with('#') && words.any(|word| word == suite)
            })
        });
        Self { suite, sources }
    }

    /// What the package sources say; part of the key of what is made of them.
    pub(crate) fn sources_text(&self) -> Result<Vec<u8>> {
        let Some(path) = &self.sources else { return Ok(Vec::new()) };
        std::fs::read(path).with_context(|| format!("read {}", path.display()))
    }
}

/// A running `mmdebstrap`, which ends when this process does, however that ends.
#[derive(Debug)]
pub(crate) struct Bootstrap {
    child: Child,
    scratch: tempfile::TempDir,
    log: PathBuf,
}

impl Bootstrap {
    /// Starts it with the words that `arguments` adds; it may put files into the folder it is
    /// given. Its log and, for root, its scratch folder are in `folder`.
    pub(crate) fn start(
        folder: &Path,
        arguments: impl FnOnce(&mut Command, &Path) -> Result<()>,
    ) -> Result<Self> {
        let log = folder.join("mmdebstrap.log");
        let file = std::fs::File::create(&log).context("make a log")?;
        let scratch = scratch(folder)?;
        let mut command = confined();
        command.args(["--format=tar", "--aptopt=APT::Install-Recommends \"false\""]);
        for path in ["man", "locale", "doc", "info"] {
            command.arg(format!("--dpkgopt=path-exclude=/usr/share/{path}/*"));
        }
        arguments(&mut command, scratch.path())?;
        let child = command
            .env("TMPDIR", scratch.path())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(file)
            .spawn()
            .context("start mmdebstrap")?;
        Ok(Self { child, scratch, log })
    }

    /// The tar archive that it writes; once.
    pub(crate) fn archive(&mut self) -> Result<ChildStdout> {
        self.child.stdout.take().context("mmdebstrap has an output")
    }

    /// Waits for its end, and returns what was made of the archive. Its own failure goes first:
    /// the reader's is its consequence.
    pub(crate) fn finish<T>(mut self, made: Result<T>) -> Result<T> {
        if made.is_err() {
            // It would wait for a reader for ever.
            let _ = self.child.kill();
        }
        let status = self.child.wait().context("wait for mmdebstrap")?;
        if !status.success() {
            let tail = crate::saved_state::last_lines(&self.log, 12);
            bail!(
                "mmdebstrap failed: {status}\n{tail}\n\
                 It needs this machine's Debian mirror; `apt-get update` tells whether that is \
                 reached"
            );
        }
        self.scratch.close().context("remove mmdebstrap's scratch folder")?;
        made
    }
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

fn confined() -> Command {
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
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_suite_is_one_that_debian_has() {
        assert!(KNOWN_SUITES.contains(&Release::of_this_machine().suite.as_str()));
    }
}
