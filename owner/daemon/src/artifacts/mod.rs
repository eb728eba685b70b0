//! Images, kernels and what is made of them, as the engine and the API need them.
//!
//! `banger-image` blocks; everything here calls it on threads that may.

mod failure;
mod import;
mod own_files;
mod pull;
mod registry_failure;
mod upload;
mod usage;

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use async_trait::async_trait;
use banger_daemon_api::artifact;
use banger_daemon_api::error::ApiError;
use banger_engine::seams::{ArtifactError, Artifacts, BaseImage, BootKernel};
use banger_image::{
    AgentBinary, CancelFlag, Image, ImageStore, Kernel, KernelStore, WorkDisk, build_initrd,
    make_work_disk,
};
use banger_types::{DiskSize, ImageName, KernelName};
use uuid::Uuid;

use crate::agent_binary::AGENT;
use crate::directories::Directories;
use crate::start_error::StartError;

pub use import::Importer;
pub use pull::Puller;
pub use registry_failure::store as blob_store_failure;

/// The agent with its digest, which a start need not take again.
static AGENT_BINARY: LazyLock<AgentBinary<'static>> = LazyLock::new(|| AgentBinary::new(AGENT));

/// The stores of images and kernels, and the cache of initrds.
#[derive(Clone, Debug)]
pub struct ArtifactStores {
    images: ImageStore,
    kernels: KernelStore,
    initrds: PathBuf,
}

impl ArtifactStores {
    /// Opens the stores and sweeps what an earlier daemon left unfinished.
    pub fn open(directories: &Directories) -> Result<Self, StartError> {
        let part = |error: ApiError| StartError::Part(error);
        let images = ImageStore::open(directories.state.join("images"))
            .map_err(|error| part(failure::image_store(&error)))?;
        let kernels = KernelStore::open(directories.state.join("kernels"))
            .map_err(|error| part(failure::kernel_store(&error)))?;
        let swept = images
            .clean_staging()
            .map_err(|error| part(failure::image_store(&error)))?
            .saturating_add(
                kernels.clean_staging().map_err(|error| part(failure::kernel_store(&error)))?,
            );
        if swept > 0 {
            tracing::info!(swept, "removed unfinished imports of an earlier daemon");
        }
        Ok(Self { images, kernels, initrds: directories.cache.join("initrd") })
    }

    /// Returns all images.
    pub async fn images(&self) -> Result<Vec<artifact::Image>, ApiError> {
        let store = self.images.clone();
        blocking(move || {
            let images = store.list().map_err(|error| failure::image_store(&error))?;
            Ok(images.iter().map(image_shown).collect())
        })
        .await
    }

    /// Returns one image.
    pub async fn image(&self, name: &ImageName) -> Result<artifact::Image, ApiError> {
        let (store, name) = (self.images.clone(), name.clone());
        blocking(move || {
            let image = store.get(&name).map_err(|error| failure::image(&name, &error))?;
            Ok(image_shown(&image))
        })
        .await
    }

    /// Deletes an image that no VM uses.
    pub async fn delete_image(&self, name: &ImageName) -> Result<(), ApiError> {
        let (store, name) = (self.images.clone(), name.clone());
        blocking(move || match store.delete(&name) {
            Ok(true) => Ok(()),
            Ok(false) => Err(failure::no_image(&name)),
            Err(error) => Err(failure::image(&name, &error)),
        })
        .await
    }

    /// Changes the kernel that VMs of an image boot unless told otherwise.
    pub async fn set_image_kernel(
        &self,
        name: &ImageName,
        kernel: Option<KernelName>,
    ) -> Result<(), ApiError> {
        let (store, name) = (self.images.clone(), name.clone());
        blocking(move || {
            store.set_kernel(&name, kernel).map_err(|error| failure::image(&name, &error))
        })
        .await
    }

    /// Returns all kernels.
    pub async fn kernels(&self) -> Result<Vec<artifact::Kernel>, ApiError> {
        let store = self.kernels.clone();
        blocking(move || {
            let kernels = store.list().map_err(|error| failure::kernel_store(&error))?;
            Ok(kernels.iter().map(kernel_shown).collect())
        })
        .await
    }

    /// Returns one kernel.
    pub async fn kernel(&self, name: &KernelName) -> Result<artifact::Kernel, ApiError> {
        let (store, name) = (self.kernels.clone(), name.clone());
        blocking(move || {
            let kernel = store.get(&name).map_err(|error| failure::kernel(&name, &error))?;
            Ok(kernel_shown(&kernel))
        })
        .await
    }

    /// Deletes a kernel that no VM uses.
    pub async fn delete_kernel(&self, name: &KernelName) -> Result<(), ApiError> {
        let (store, name) = (self.kernels.clone(), name.clone());
        blocking(move || match store.delete(&name) {
            Ok(true) => Ok(()),
            Ok(false) => Err(failure::no_kernel(&name)),
            Err(error) => Err(failure::kernel(&name, &error)),
        })
        .await
    }
}

/// Runs `work` on a thread that may block.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ApiError> + Send + 'static,
) -> Result<T, ApiError> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|_| Err(failure::defect()))
}

fn image_shown(image: &Image) -> artifact::Image {
    let manifest = &image.manifest;
    let os = manifest.os_release.as_ref().map(|os| match &os.version {
        Some(version) => format!("{} {version}", os.id),
        None => os.id.clone(),
    });
    artifact::Image {
        name: manifest.name.clone(),
        id: manifest.id.to_string(),
        sha256: manifest.tar_sha256.clone(),
        source: manifest.source.clone(),
        size: manifest.size,
        allocated: manifest.allocated,
        entries: manifest.entries,
        os,
        has_init: manifest.has_init,
        default_kernel: manifest.kernel.clone(),
        config: manifest.config.clone(),
        layers: manifest.layers.iter().map(|layer| layer.digest.clone()).collect(),
        manifest_digest: manifest.manifest_digest.clone(),
        path: manifest.path.as_ref().map(|path| path.display().to_string()),
        created_at: manifest.created_at,
        used_by: Vec::new(),
    }
}

fn kernel_shown(kernel: &Kernel) -> artifact::Kernel {
    let manifest = &kernel.manifest;
    let files = [kernel.bzimage(), kernel.vmlinux()].into_iter();
    let files = files.chain(kernel.modules_image().map(|(file, _)| file));
    let modules = manifest.modules.iter().map(|module| kernel.module(module));
    let allocated = files.chain(modules).map(|file| allocated(&file)).sum();
    artifact::Kernel {
        name: manifest.name.clone(),
        version: manifest.version.clone(),
        sha256: manifest.sha256.clone(),
        source: manifest.source.clone(),
        modules: manifest.modules.iter().map(|module| module.name.clone()).collect(),
        allocated,
        imported_at: manifest.imported_at,
        used_by: Vec::new(),
    }
}

/// Returns the bytes that a file takes on disk; a block is 512 bytes in stat(2), whatever the file
/// system's own are.
fn allocated(file: &Path) -> u64 {
    std::fs::metadata(file).map_or(0, |metadata| metadata.blocks().saturating_mul(512))
}

#[async_trait]
impl Artifacts for ArtifactStores {
    async fn image(&self, name: &ImageName) -> Result<BaseImage, ArtifactError> {
        let (store, name) = (self.images.clone(), name.clone());
        artifact_work(move || {
            let image = store.get(&name).map_err(|error| failure::image_artifact(&name, error))?;
            Ok(BaseImage {
                rootfs: image.root(),
                uuid: image.manifest.id,
                size: image.manifest.size,
                config: image.manifest.config.clone(),
            })
        })
        .await
    }

    async fn kernel(&self, name: &KernelName) -> Result<BootKernel, ArtifactError> {
        let (store, name) = (self.kernels.clone(), name.clone());
        artifact_work(move || {
            let kernel =
                store.get(&name).map_err(|error| failure::kernel_artifact(&name, error))?;
            Ok(BootKernel {
                bzimage: kernel.bzimage(),
                vmlinux: kernel.vmlinux(),
                modules_disk: kernel.modules_image(),
            })
        })
        .await
    }

    async fn initrd(&self, kernel: &KernelName) -> Result<PathBuf, ArtifactError> {
        let (store, name, cache) = (self.kernels.clone(), kernel.clone(), self.initrds.clone());
        artifact_work(move || {
            let kernel =
                store.get(&name).map_err(|error| failure::kernel_artifact(&name, error))?;
            build_initrd(&AGENT_BINARY, &kernel, &cache).map_err(|error| {
                failure::making("making the initrd of kernel", &name, &cache, error)
            })
        })
        .await
    }

    async fn make_work_disk(
        &self,
        image: &ImageName,
        path: &Path,
        size: DiskSize,
        uuid: Uuid,
    ) -> Result<(), ArtifactError> {
        let (store, name, path) = (self.images.clone(), image.clone(), path.to_owned());
        artifact_work(move || {
            let image = store.get(&name).map_err(|error| failure::image_artifact(&name, error))?;
            let seed = image.work_seed();
            let disk = WorkDisk {
                path: &path,
                size: size.bytes(),
                uuid,
                label: "banger-work",
                seed: seed.as_deref(),
            };
            make_work_disk(&disk, &CancelFlag::default()).map_err(|error| {
                failure::making("making a work disk of image", &name, &path, error)
            })
        })
        .await
    }
}

async fn artifact_work<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ArtifactError> + Send + 'static,
) -> Result<T, ArtifactError> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|source| {
        Err(ArtifactError::Failed {
            act: "running",
            object: "work on an image or a kernel".to_owned(),
            source: Box::new(source),
        })
    })
}
