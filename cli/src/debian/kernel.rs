//! A Debian kernel package, downloaded through the host's apt.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use super::StageReport;
use super::apt::output;
use super::error::DebianError;

/// A kernel that can be pulled by name.
#[derive(Clone, Copy, Debug)]
pub struct KnownKernel {
    /// The name in banger.
    pub name: &'static str,
    /// In a few words.
    pub description: &'static str,
    /// The packages that may bring it, the first that fits being taken: Debian calls the same
    /// kernel differently in its own release and in an older one.
    packages: &'static [&'static str],
    /// What the name of the package with the kernel itself begins with.
    prefix: &'static str,
}

/// The kernels that can be pulled.
pub const KNOWN_KERNELS: [KnownKernel; 2] = [
    KnownKernel {
        name: "debian-6.12-cloud",
        description: "Debian's Linux 6.12 for virtual machines",
        packages: &["linux-image-6.12-cloud-amd64", "linux-image-cloud-amd64"],
        prefix: "linux-image-6.12.",
    },
    KnownKernel {
        name: "debian-6.1-cloud",
        description: "Debian's Linux 6.1 for virtual machines",
        packages: &["linux-image-cloud-amd64"],
        prefix: "linux-image-6.1.",
    },
];

/// What to download.
#[derive(Clone, Copy, Debug)]
pub struct KernelRequest {
    known: KnownKernel,
}

impl KernelRequest {
    /// Makes the request for a kernel of [`KNOWN_KERNELS`].
    ///
    /// # Errors
    /// Another name.
    pub fn for_name(name: &str) -> Result<Self, DebianError> {
        KNOWN_KERNELS
            .iter()
            .find(|known| known.name == name)
            .map(|&known| Self { known })
            .ok_or_else(|| DebianError::KernelName {
                name: name.to_owned(),
                known: KNOWN_KERNELS.map(|known| known.name).join(" and "),
            })
    }

    /// Looks up which package brings the kernel today.
    ///
    /// # Errors
    /// No apt, or lists that do not have the package.
    pub fn resolve(&self) -> Result<KernelPackage, DebianError> {
        let known = self.known;
        let (package, version) = known
            .packages
            .iter()
            .find_map(|&name| resolve(name, known.prefix).transpose())
            .transpose()?
            .ok_or_else(|| DebianError::NoPackage {
                name: known.name.to_owned(),
                packages: known.packages.join(", "),
            })?;
        Ok(KernelPackage { package, version })
    }
}

/// One version of one package.
#[derive(Clone, Debug)]
pub struct KernelPackage {
    package: String,
    version: String,
}

impl KernelPackage {
    /// Returns what a kernel's manifest says about where it came from: `apt:PACKAGE=VERSION`.
    pub fn source(&self) -> String {
        format!("apt:{}={}", self.package, self.version)
    }
}

/// A downloaded package; its file is removed with it.
#[derive(Debug)]
pub struct DownloadedDeb {
    _directory: tempfile::TempDir,
    file: PathBuf,
}

impl DownloadedDeb {
    /// The package's file.
    pub fn path(&self) -> &Path {
        &self.file
    }
}

/// Downloads the package.
///
/// # Errors
/// No apt, or a failed download; [`DebianError::hint`] says what to do.
pub fn kernel_package(
    wanted: &KernelPackage,
    mut report: StageReport,
) -> Result<DownloadedDeb, DebianError> {
    let KernelPackage { package, version } = wanted;
    let failed = |source| DebianError::File {
        action: "create a temporary directory in",
        path: std::env::temp_dir(),
        source,
    };
    // apt fetches as its own user where it can, which must be able to reach the directory.
    let directory = tempfile::Builder::new()
        .prefix("banger-kernel-")
        .permissions(fs::Permissions::from_mode(0o755))
        .tempdir()
        .map_err(failed)?;
    report(&format!("downloading {package}"));
    output("apt-get", "apt", |command| {
        command.args(["download", "-q", "-o", "APT::Sandbox::User=root"]);
        command.arg(format!("{package}={version}")).current_dir(directory.path());
    })?;
    let file = fs::read_dir(directory.path())
        .map_err(failed)?
        .filter_map(Result::ok)
        .map(|entry| entry.path())
        .find(|path| path.extension().is_some_and(|extension| extension == "deb"))
        .ok_or_else(|| DebianError::NotDownloaded(package.clone()))?;
    Ok(DownloadedDeb { _directory: directory, file })
}

/// Finds the package with the kernel that `meta` stands for, and its version.
fn resolve(meta: &str, prefix: &str) -> Result<Option<(String, String)>, DebianError> {
    let Some(text) = show(meta)? else { return Ok(None) };
    let Some(package) = kernel_dependency(&text, prefix) else { return Ok(None) };
    let Some(text) = show(&package)? else { return Ok(None) };
    Ok(field(&text, "Version").map(|version| (package, version)))
}

/// What apt knows about a package; `None` if nothing.
fn show(package: &str) -> Result<Option<String>, DebianError> {
    let shown = output("apt-cache", "apt", |command| {
        command.args(["show", "--no-all-versions", package]);
    });
    match shown {
        Ok(text) if text.trim().is_empty() => Ok(None),
        Ok(text) => Ok(Some(text)),
        Err(DebianError::Failed { output, .. }) if output.contains("No packages found") => Ok(None),
        Err(error) => Err(error),
    }
}

fn field(text: &str, name: &str) -> Option<String> {
    text.lines().find_map(|line| {
        let value = line.strip_prefix(name)?.strip_prefix(':')?.trim();
        (!value.is_empty()).then(|| value.to_owned())
    })
}

/// The kernel package among a meta package's dependencies.
fn kernel_dependency(text: &str, prefix: &str) -> Option<String> {
    field(text, "Depends")?
        .split([',', '|'])
        .filter_map(|dependency| dependency.split_whitespace().next())
        .find(|name| name.starts_with(prefix) && !name.ends_with("-unsigned"))
        .map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_kernels_are_refused_with_the_known_names() {
        let error = KernelRequest::for_name("debian-5.10").unwrap_err();
        assert_eq!(
            error.to_string(),
            "\"debian-5.10\" is not a kernel that can be pulled; there are debian-6.12-cloud and debian-6.1-cloud"
        );
    }

    #[test]
    fn the_kernel_is_found_among_the_dependencies() {
        let text = "Package: linux-image-6.12-cloud-amd64\nDepends: linux-image-6.12.117+deb12-cloud-amd64 (= 6.12.117-1), other\n";
        let package = kernel_dependency(text, "linux-image-6.12.");
        assert_eq!(package.as_deref(), Some("linux-image-6.12.117+deb12-cloud-amd64"));
        assert_eq!(kernel_dependency(text, "linux-image-6.1."), None);
        assert_eq!(kernel_dependency("Depends: libc6\n", "linux-image-6.1."), None);
        assert_eq!(kernel_dependency("", "linux-image-6.1."), None);
    }
}
