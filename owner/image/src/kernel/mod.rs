//! The kernel store: `<root>/<name>/{bzImage, vmlinux, config, modules/, modules.ext4, manifest.json}`.
//!
//! A kernel comes from a Debian package or from its files. `bzImage` is what QEMU boots, `vmlinux` (the same kernel,
//! uncompressed) what Firecracker boots, `modules/` what the initrd loads before there is a root
//! file system, and `modules.ext4` the whole module tree, for guests whose image has none for it.
//! A kernel with everything built in has no modules, and one whose package has no module tree at
//! all, not even the list of what is built in, has no `modules.ext4`.

mod bzimage;
mod deb;
mod depmod;
mod import;
mod modinfo;

use std::collections::BTreeMap;
use std::fmt;
use std::io::Read;
use std::path::PathBuf;

use banger_types::KernelName;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

pub use bzimage::BzImageError;
pub use deb::DebError;

use crate::builder::BuildError;
use crate::ext4::Ext4Error;
use crate::progress::{CancelFlag, Cancelled, Progress};
use crate::shelf::{Shelf, ShelfError};

const BZIMAGE: &str = "bzImage";
const VMLINUX: &str = "vmlinux";
const CONFIG: &str = "config";
const MODULES: &str = "modules";
const MODULES_IMAGE: &str = "modules.ext4";

/// Why the kernel store could not do its work.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// The store on disk.
    #[error("kernel store: {0}")]
    Shelf(#[from] ShelfError),
    /// The package is unusable.
    #[error("kernel package: {0}")]
    Package(#[from] DebError),
    /// The package is not a kernel for this machine.
    #[error("{package} ({architecture}) is not an amd64 kernel image package")]
    NotAKernel {
        /// The package's name.
        package: String,
        /// Its architecture.
        architecture: String,
    },
    /// Something is missing; it says where.
    #[error("there is no {0}")]
    Missing(&'static str),
    /// An ELF file that is another program.
    #[error("vmlinux is an ELF file, and no Linux kernel: it does not say its version as one does")]
    NoKernel,
    /// A file in the package is larger than such a file can be.
    #[error("{entry} in the package has {size} bytes, more than {limit}")]
    TooLarge {
        /// The entry's name, safe to show.
        entry: String,
        /// Its size in bytes.
        size: u64,
        /// The most allowed.
        limit: u64,
    },
    /// A module that cannot be decompressed or is no module.
    #[error("the module {module} is damaged")]
    Module {
        /// Its path, safe to show.
        module: String,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
    /// The kernel can never find its disk or talk to the host.
    #[error("the kernel has no {0}, neither built in nor as a module")]
    NoDriver(&'static str),
    /// The kernel image is unusable.
    #[error("{file} is no kernel that a machine can boot")]
    Image {
        /// Its name in the package or among the kernel's files, safe to show.
        file: String,
        /// The cause.
        #[source]
        source: BzImageError,
    },
    /// The module tree's file system could not be written.
    #[error("write the module tree")]
    Tree(#[source] Ext4Error),
    /// The module tree's file system is not sound.
    #[error("check the module tree")]
    Check(#[source] BuildError),
    /// The work was cancelled.
    #[error(transparent)]
    Cancelled(#[from] Cancelled),
}

/// What a module in the initrd is for; the agent loads what it needs for the disk first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ModuleRole {
    /// The bus on which the machine's devices are.
    Transport,
    /// Block devices.
    Disk,
    /// The root file system's type.
    Filesystem,
    /// The virtio-serial port to the host.
    Channel,
    /// Random numbers from the host.
    Entropy,
    /// Sockets to the host.
    Vsock,
    /// Network devices.
    Network,
}

impl fmt::Display for ModuleRole {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Transport => "transport",
            Self::Disk => "disk",
            Self::Filesystem => "filesystem",
            Self::Channel => "channel",
            Self::Entropy => "entropy",
            Self::Vsock => "vsock",
            Self::Network => "network",
        })
    }
}

/// A module for the initrd.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KernelModule {
    /// Its name with underscores.
    pub name: String,
    /// Its file below `modules/`, uncompressed.
    pub file: String,
    /// What it is for; one that several need has the role of the first of them.
    pub role: ModuleRole,
    /// The modules of this list that it needs, all of them earlier in it.
    pub depends: Vec<String>,
    /// Bytes of the file.
    pub size: u64,
}

/// The whole module tree as a file system.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModulesImage {
    /// The file system's UUID.
    pub uuid: Uuid,
    /// Bytes of the file (sparse).
    pub size: u64,
    /// Modules in it; none where everything is built in and it holds only the indexes, which let
    /// `modprobe` say so.
    pub modules: usize,
}

/// What is known about a kernel; `manifest.json` in its directory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KernelManifest {
    /// Version of this format: 1.
    pub schema: u32,
    /// The kernel's identity; a replaced kernel has a new one.
    pub id: Uuid,
    /// The local name.
    pub name: KernelName,
    /// What `uname -r` says in a guest.
    pub version: String,
    /// The package.
    pub package: String,
    /// The package's version.
    pub package_version: String,
    /// Hexadecimal SHA-256 of the package.
    pub sha256: String,
    /// Where it came from.
    pub source: String,
    /// When it was imported.
    pub imported_at: jiff::Timestamp,
    /// Bytes of `bzImage`.
    pub bzimage_size: u64,
    /// Bytes of `vmlinux`.
    pub vmlinux_size: u64,
    /// For the initrd, in an order in which they can be loaded.
    pub modules: Vec<KernelModule>,
    /// The module tree, where the package has one.
    #[serde(default)]
    pub modules_image: Option<ModulesImage>,
    /// The options of the kernel's configuration that decide what it can run on.
    pub config: BTreeMap<String, String>,
}

/// What to call a new kernel and where it came from.
#[derive(Clone, Debug)]
pub struct NewKernel {
    /// The local name.
    pub name: KernelName,
    /// Where it came from, such as `apt:linux-image-cloud-amd64`.
    pub source: String,
    /// Take the place of a kernel with this name.
    pub replace: bool,
}

/// A kernel in the store.
#[derive(Clone, Debug)]
pub struct Kernel {
    /// What is known about it.
    pub manifest: KernelManifest,
    directory: PathBuf,
}

impl Kernel {
    /// The compressed kernel, for QEMU.
    #[must_use]
    pub fn bzimage(&self) -> PathBuf {
        self.directory.join(BZIMAGE)
    }

    /// The ELF kernel, for Firecracker.
    #[must_use]
    pub fn vmlinux(&self) -> PathBuf {
        self.directory.join(VMLINUX)
    }

    /// The file system to mount read-only at `/lib/modules/<version>` and its UUID, where the
    /// kernel has one.
    #[must_use]
    pub fn modules_image(&self) -> Option<(PathBuf, Uuid)> {
        let image = self.manifest.modules_image.as_ref()?;
        Some((self.directory.join(MODULES_IMAGE), image.uuid))
    }

    /// A module for the initrd.
    #[must_use]
    pub fn module(&self, module: &KernelModule) -> PathBuf {
        self.directory.join(MODULES).join(&module.file)
    }
}

/// The kernels of this machine.
#[derive(Clone, Debug)]
pub struct KernelStore {
    shelf: Shelf,
}

impl KernelStore {
    /// Opens the store at `root`, creating the directory.
    ///
    /// # Errors
    /// A directory that cannot be made.
    pub fn open(root: impl Into<PathBuf>) -> Result<Self, KernelError> {
        Ok(Self { shelf: Shelf::open(root.into())? })
    }

    /// Removes what an earlier run left unfinished; call it once, before anything is imported.
    ///
    /// # Errors
    /// Files that cannot be removed.
    pub fn clean_staging(&self) -> Result<usize, KernelError> {
        Ok(self.shelf.clean_staging()?)
    }

    /// Imports a kernel of `size` bytes, where that is known: a Debian package, or a tar of `bzImage`,
    /// `vmlinux`, `config` and `modules/`, of which one of the first two is enough.
    ///
    /// # Errors
    /// A taken name, a package that is damaged or holds no usable kernel, a full disk, a cancelled
    /// call; nothing is left behind.
    pub fn import(
        &self,
        new: &NewKernel,
        package: impl Read,
        size: Option<u64>,
        progress: &dyn Progress,
        cancel: &CancelFlag,
    ) -> Result<Kernel, KernelError> {
        let name = new.name.as_str();
        self.shelf.refuse_taken(name, new.replace)?;
        let staging = self.shelf.stage()?;
        let manifest = import::import(
            staging.path(),
            new,
            package,
            &import::Report { size, progress },
            cancel,
        )?;
        self.shelf.publish(staging, name, &manifest, new.replace)?;
        Ok(Kernel { manifest, directory: self.shelf.path(name) })
    }

    /// Returns the kernel `name`.
    ///
    /// # Errors
    /// [`ShelfError::Missing`], or a manifest that cannot be read.
    pub fn get(&self, name: &KernelName) -> Result<Kernel, KernelError> {
        let manifest = self.shelf.manifest(name.as_str())?;
        Ok(Kernel { manifest, directory: self.shelf.path(name.as_str()) })
    }

    /// Returns all kernels by name; one whose manifest cannot be read is logged and left out.
    ///
    /// # Errors
    /// A store that cannot be listed.
    pub fn list(&self) -> Result<Vec<Kernel>, KernelError> {
        let names = self.shelf.names()?;
        let kernels = names.iter().filter_map(|name| match self.shelf.manifest(name) {
            Ok(manifest) => Some(Kernel { manifest, directory: self.shelf.path(name) }),
            Err(error) => {
                tracing::warn!(%name, error = &error as &dyn std::error::Error, "skip a kernel");
                None
            }
        });
        Ok(kernels.collect())
    }

    /// Removes the kernel `name`; false if it was not there.
    ///
    /// # Errors
    /// Files that cannot be removed.
    pub fn delete(&self, name: &KernelName) -> Result<bool, KernelError> {
        Ok(self.shelf.delete(name.as_str())?)
    }
}
