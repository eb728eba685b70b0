//! Images, kernels and what is made of them: the base of a VM's disks and what it boots.

use std::path::{Path, PathBuf};

use async_trait::async_trait;
use banger_types::{DiskSize, ImageConfig, ImageName, KernelName};
use uuid::Uuid;

/// An image as a VM's root disk stands on it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BaseImage {
    /// The read-only raw ext4 file.
    pub rootfs: PathBuf,
    /// UUID of its file system, by which the guest finds the disk.
    pub uuid: Uuid,
    /// Size in bytes.
    pub size: u64,
    /// How it wants to be run, where it says so.
    pub config: Option<ImageConfig>,
}

/// A kernel as a VM boots it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BootKernel {
    /// The bzImage.
    pub bzimage: PathBuf,
    /// The same kernel as an ELF file.
    pub vmlinux: PathBuf,
    /// A read-only ext4 file with the kernel's module tree and its UUID, where there is one.
    pub modules_disk: Option<(PathBuf, Uuid)>,
}

/// Why an image, a kernel or something made of them is not to be had.
#[derive(Debug, thiserror::Error)]
pub enum ArtifactError {
    /// There is none of this name.
    #[error("no {kind} is named {name}")]
    NotFound {
        /// `image` or `kernel`.
        kind: &'static str,
        /// The name.
        name: String,
    },
    /// It is there and broken.
    #[error("{kind} {name} is broken: {problem}")]
    Corrupt {
        /// `image` or `kernel`.
        kind: &'static str,
        /// The name.
        name: String,
        /// What is wrong with it.
        problem: String,
    },
    /// A program that the host should have is missing.
    #[error("{what} is missing")]
    Unavailable {
        /// The program.
        what: String,
        /// What to do about it.
        hint: String,
    },
    /// The host's file system is full.
    #[error("no space left for {act} {}", path.display())]
    NoSpace {
        /// The act, as a participle.
        act: &'static str,
        /// The file.
        path: PathBuf,
    },
    /// Making something of it failed.
    #[error("{act} {object}")]
    Failed {
        /// The act, as a participle: `making work disk`.
        act: &'static str,
        /// What it was done to.
        object: String,
        /// The cause.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

/// Gives the engine what VMs are made of; the daemon implements it over `banger-image`.
///
/// Contract: what is made at a path is whole or not there at all; an initrd may be shared between
/// VMs and is never changed in place.
#[async_trait]
pub trait Artifacts: Send + Sync {
    /// Finds an image.
    async fn image(&self, name: &ImageName) -> Result<BaseImage, ArtifactError>;

    /// Finds a kernel.
    async fn kernel(&self, name: &KernelName) -> Result<BootKernel, ArtifactError>;

    /// Returns the initial RAM disk with this build's agent for the kernel, making it if needed.
    async fn initrd(&self, kernel: &KernelName) -> Result<PathBuf, ArtifactError>;

    /// Makes a raw ext4 file of `size` bytes with file system `uuid` at `path`, which does not
    /// exist, seeded with the image's `/root`.
    async fn make_work_disk(
        &self,
        image: &ImageName,
        path: &Path,
        size: DiskSize,
        uuid: Uuid,
    ) -> Result<(), ArtifactError>;
}
