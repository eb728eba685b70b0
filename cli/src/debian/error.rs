//! Why Debian's tools did not deliver, and what to run next.

use std::io;
use std::path::PathBuf;
use std::process::ExitStatus;

use crate::subordinate_ids;

/// A failure on the way to an image or a kernel.
#[derive(Debug, thiserror::Error)]
pub enum DebianError {
    /// The name says no suite.
    #[error("{0:?} is not the name of a Debian image; it is debian-SUITE, such as debian-bookworm")]
    ImageName(String),
    /// A suite that cannot be one.
    #[error("{0:?} is not a Debian suite")]
    Suite(String),
    /// A package that cannot be one.
    #[error("{0:?} is not a Debian package name")]
    Package(String),
    /// A mirror that is no URL.
    #[error("{0:?} is not the URL of a mirror (http, https, file or copy)")]
    Mirror(String),
    /// The kernel is not one that can be pulled.
    #[error("{name:?} is not a kernel that can be pulled; there are {known}")]
    KernelName {
        /// The name asked for.
        name: String,
        /// The names there are.
        known: String,
    },
    /// A tool is not installed.
    #[error("{tool} is not installed")]
    Tool {
        /// Its name.
        tool: &'static str,
        /// The Debian package that brings it.
        package: &'static str,
    },
    /// The keyring that proves Debian's archives is missing.
    #[error("the keyring {0} does not exist")]
    Keyring(PathBuf),
    /// The user has no subordinate ids.
    #[error("user {user} has no range of 65536 subordinate {kind} ids in {file}")]
    SubordinateIds {
        /// The user's name.
        user: String,
        /// `user` or `group`.
        kind: &'static str,
        /// `/etc/subuid` or `/etc/subgid`.
        file: &'static str,
    },
    /// The kernel of the host does not let users make namespaces.
    #[error("this host does not let users make user namespaces ({0})")]
    Namespaces(&'static str),
    /// A file operation failed.
    #[error("{action} {path}")]
    File {
        /// What was done.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// A tool could not be started or waited for.
    #[error("run {tool}")]
    Run {
        /// Its name.
        tool: &'static str,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// A tool failed.
    #[error("{tool} failed ({status}): {output}")]
    Failed {
        /// Its name.
        tool: &'static str,
        /// How it ended.
        status: ExitStatus,
        /// The end of what it wrote.
        output: String,
    },
    /// apt knows no package that would give the kernel.
    #[error("apt knows no package for the kernel {name} (looked for {packages})")]
    NoPackage {
        /// The kernel's name.
        name: String,
        /// The packages looked for.
        packages: String,
    },
    /// apt-get ended well and left no package.
    #[error("apt-get downloaded no package {0}")]
    NotDownloaded(String),
}

impl DebianError {
    /// What to run or change next.
    pub fn hint(&self) -> Option<String> {
        let root = if nix::unistd::geteuid().is_root() { "" } else { "sudo " };
        let text = match self {
            Self::Tool { tool: "apt-get" | "apt-cache", .. } => {
                "kernels come from the host's own Debian packages, and this host has no apt: \
                 download a linux-image package elsewhere and run `banger kernel import`"
                    .to_owned()
            }
            Self::Tool { package, .. } => format!("{root}apt-get install {package}"),
            Self::Keyring(_) => format!("{root}apt-get install debian-archive-keyring"),
            Self::SubordinateIds { user, .. } => {
                format!("{root}{}", subordinate_ids::command_for(user))
            }
            Self::Namespaces(setting) => {
                format!("{root}sysctl -w {setting}, or run this command as root")
            }
            Self::NoPackage { .. } | Self::NotDownloaded(_) => format!("{root}apt-get update"),
            Self::Failed { output, .. } => return self.failure_hint(root, output),
            _ => return None,
        };
        Some(text)
    }

    fn failure_hint(&self, root: &str, output: &str) -> Option<String> {
        let has = |texts: &[&str]| texts.iter().any(|text| output.contains(text));
        let fetching = matches!(self, Self::Failed { tool: "apt-get" | "apt-cache", .. });
        if has(&["No space left on device"]) {
            return Some("free some space, or set TMPDIR to a directory on a larger disk".into());
        }
        if has(&["NO_PUBKEY", "is not signed", "couldn't be verified"]) {
            return Some(format!(
                "the archive's signature cannot be verified: {root}apt-get install \
                 debian-archive-keyring, or check the mirror"
            ));
        }
        if has(&[
            "Temporary failure resolving",
            "Could not connect",
            "Could not resolve",
            "Unable to connect",
        ]) {
            return Some(
                "the mirror cannot be reached: check the network and the proxy, or give \
                         another one with --mirror URL"
                    .into(),
            );
        }
        if fetching && has(&["404", "Hash Sum mismatch", "Unable to fetch", "Can't find a source"])
        {
            return Some(format!("the package lists are out of date: {root}apt-get update"));
        }
        if has(&["404", "does not have a Release file"]) {
            return Some("the mirror does not have this suite: check --suite and --mirror".into());
        }
        None
    }
}
