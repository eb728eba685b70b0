//! The image store: `<root>/<name>/{rootfs.ext4, work-seed.tar, manifest.json}`.

use std::fs;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use banger_types::{Digest, ImageConfig, ImageName, KernelName};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::archives::{self, ContainerError, Contents, Export, ExportFormat, Selection};
use crate::builder::{BuildError, BuildOptions, BuildPaths, BuiltImage, OsRelease, build_image};
use crate::contents::ContentsError;
use crate::layers::{LayerRecord, LayeredImage, build_layers};
use crate::progress::{CancelFlag, Progress};
use crate::shelf::{Shelf, ShelfError, failed};
use crate::tarball::TarError;

const ROOT: &str = "rootfs.ext4";
const SEED: &str = "work-seed.tar";

/// Why the image store could not do its work.
#[derive(Debug, thiserror::Error)]
pub enum ImageStoreError {
    /// The store on disk.
    #[error("image store: {0}")]
    Shelf(#[from] ShelfError),
    /// The archive of container images, or the bundle, is bad.
    #[error("read the archive of image {name}")]
    Container {
        /// The image's name.
        name: ImageName,
        /// The cause.
        #[source]
        source: Box<ContainerError>,
    },
    /// What was to be registered is no file that can be.
    #[error("register {path}: {problem}")]
    Register {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// The image's files could not be copied.
    #[error("export image {name}")]
    Export {
        /// The image's name.
        name: ImageName,
        /// The cause.
        #[source]
        source: ContentsError,
    },
    /// The image could not be built.
    #[error("build image {name}")]
    Build {
        /// The image's name.
        name: ImageName,
        /// The cause.
        #[source]
        source: BuildError,
    },
}

/// What is known about an image; `manifest.json` in its directory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageManifest {
    /// Version of this format: 1.
    pub schema: u32,
    /// The image's identity; a replaced image has a new one. Also its file system's UUID.
    pub id: Uuid,
    /// The local name.
    pub name: ImageName,
    /// Bytes of the root file system.
    pub size: u64,
    /// Bytes that it takes on disk.
    pub allocated: u64,
    /// Entries of the archive it was made from.
    pub entries: u64,
    /// Hexadecimal SHA-256 of the archive as it came.
    pub sha256: String,
    /// Hexadecimal SHA-256 of the uncompressed archive.
    pub tar_sha256: String,
    /// Where it came from, such as `mmdebstrap:bookworm`.
    pub source: String,
    /// When it was made.
    pub created_at: jiff::Timestamp,
    /// From its `/etc/os-release`.
    pub os_release: Option<OsRelease>,
    /// Whether it has an init of its own.
    pub has_init: bool,
    /// Whether it has `/bin/sh`.
    pub has_shell: bool,
    /// Whether there is a work seed: the image has something below `/root`.
    pub has_work_seed: bool,
    /// The kernel for its VMs, unless another is asked for.
    pub kernel: Option<KernelName>,
    /// How a container image wants to be run; `None` for the root file system of a machine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub config: Option<ImageConfig>,
    /// The layers that it was made from, oldest first; empty where it was made from one archive.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub layers: Vec<LayerRecord>,
    /// The digest of the manifest that it was made from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub manifest_digest: Option<Digest>,
    /// The user's own file that is the root file system of a registered image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<PathBuf>,
}

/// What to call a new image and where it came from.
#[derive(Clone, Debug)]
pub struct NewImage {
    /// The local name.
    pub name: ImageName,
    /// Where it came from.
    pub source: String,
    /// The kernel for its VMs.
    pub kernel: Option<KernelName>,
    /// Take the place of an image with this name.
    pub replace: bool,
}

/// What only some images have.
#[derive(Default)]
pub(crate) struct FromContainer {
    pub(crate) config: Option<ImageConfig>,
    pub(crate) layers: Vec<LayerRecord>,
    pub(crate) manifest_digest: Option<Digest>,
    /// Unless another is asked for.
    pub(crate) kernel: Option<KernelName>,
    pub(crate) path: Option<PathBuf>,
}

/// An image in the store.
#[derive(Clone, Debug)]
pub struct Image {
    /// What is known about it.
    pub manifest: ImageManifest,
    directory: PathBuf,
}

impl Image {
    /// The root file system, read-only. A replaced or deleted image takes this path with it, so a
    /// VM keeps [`Image::link_root`]'s link.
    #[must_use]
    pub fn root(&self) -> PathBuf {
        self.manifest.path.clone().unwrap_or_else(|| self.directory.join(ROOT))
    }

    /// The archive of the image's `/root`, where it has one.
    #[must_use]
    pub fn work_seed(&self) -> Option<PathBuf> {
        self.manifest.has_work_seed.then(|| self.directory.join(SEED))
    }

    /// Links the root file system to `path` (on the same file system), where it outlives a
    /// replaced or deleted image. It stays read-only; nothing is copied.
    ///
    /// # Errors
    /// A link that cannot be made.
    pub fn link_root(&self, path: &Path) -> Result<(), ImageStoreError> {
        fs::hard_link(self.root(), path).map_err(failed("link the root file system to", path))?;
        Ok(())
    }
}

/// The images of this machine.
#[derive(Clone, Debug)]
pub struct ImageStore {
    shelf: Shelf,
}

impl ImageStore {
    /// Opens the store at `root`, creating the directory.
    ///
    /// # Errors
    /// A directory that cannot be made.
    pub fn open(root: impl Into<PathBuf>) -> Result<Self, ImageStoreError> {
        Ok(Self { shelf: Shelf::open(root.into())? })
    }

    /// Removes what an earlier run left unfinished; call it once, before anything is built.
    ///
    /// # Errors
    /// Files that cannot be removed.
    pub fn clean_staging(&self) -> Result<usize, ImageStoreError> {
        Ok(self.shelf.clean_staging()?)
    }

    /// Builds an image from the archive that `input` yields and gives it its name.
    ///
    /// # Errors
    /// A taken name, a bad archive, a full disk or a cancelled build; nothing is left behind.
    pub fn import(
        &self,
        new: &NewImage,
        input: impl Read,
        options: &BuildOptions,
        progress: &dyn Progress,
        cancel: &CancelFlag,
    ) -> Result<Image, ImageStoreError> {
        self.make(new, |paths| {
            let built = build_image(input, paths, options, progress, cancel)
                .map_err(|source| ImageStoreError::Build { name: new.name.clone(), source })?;
            Ok((built, FromContainer::default()))
        })
    }

    /// Builds an image from the layers of a container image and gives it its name.
    ///
    /// # Errors
    /// A taken name, a bad layer, a full disk or a cancelled build; nothing is left behind.
    pub fn import_layers(
        &self,
        new: &NewImage,
        image: LayeredImage,
        options: &BuildOptions,
        progress: &dyn Progress,
        cancel: &CancelFlag,
    ) -> Result<Image, ImageStoreError> {
        let LayeredImage { layers, config, manifest_digest } = image;
        self.make(new, |paths| {
            let (built, layers) = build_layers(&layers, paths, options, progress, cancel)
                .map_err(|source| ImageStoreError::Build { name: new.name.clone(), source })?;
            Ok((
                built,
                FromContainer {
                    config: Some(config),
                    layers,
                    manifest_digest,
                    ..FromContainer::default()
                },
            ))
        })
    }

    /// Builds an image from whatever `input` turns out to be: a root file system, container images
    /// or a bundle; and gives it its name.
    ///
    /// # Errors
    /// A taken name, a bad archive, no image or several that fit, a full disk or a cancelled build;
    /// nothing is left behind.
    pub fn import_any(
        &self,
        new: &NewImage,
        selection: &Selection,
        input: impl Read,
        options: &BuildOptions,
        progress: &dyn Progress,
        cancel: &CancelFlag,
    ) -> Result<Image, ImageStoreError> {
        self.shelf.refuse_taken(new.name.as_str(), new.replace)?;
        let read = |source| {
            let source = BuildError::Archive(TarError::Read { position: 0, source });
            ImageStoreError::Build { name: new.name.clone(), source }
        };
        progress.stage("reading the archive");
        let (contents, input) = archives::look(input).map_err(read)?;
        match contents {
            Contents::RootFileSystem => self.make(new, |paths| {
                let built = build_image(input, paths, options, progress, cancel)
                    .map_err(|source| ImageStoreError::Build { name: new.name.clone(), source })?;
                let config = selection.config.clone();
                Ok((built, FromContainer { config, ..FromContainer::default() }))
            }),
            Contents::Containers => {
                let kept = self.shelf.stage()?;
                let limits = &options.limits;
                let (path, name) = (kept.path(), &new.name);
                let mut image =
                    archives::read_containers(input, path, selection, limits, progress, cancel)
                        .map_err(|source| ImageStoreError::Container {
                            name: name.clone(),
                            source: Box::new(source),
                        })?;
                image.config = selection.config.clone().unwrap_or(image.config);
                self.import_layers(new, image, options, progress, cancel)
            }
            Contents::Bundle => self.make(new, |paths| {
                let (built, bundle) =
                    archives::build_bundle(input, new, paths, options, progress, cancel)?;
                let container = FromContainer {
                    config: selection.config.clone().or(bundle.config),
                    kernel: bundle.kernel,
                    ..FromContainer::default()
                };
                Ok((built, container))
            }),
        }
    }

    /// Makes an export of the image `name`, ready to be written.
    ///
    /// # Errors
    /// [`ShelfError::Missing`], an image that cannot be read, a full disk or a cancelled call.
    pub fn export(
        &self,
        name: &ImageName,
        format: ExportFormat,
        cancel: &CancelFlag,
    ) -> Result<Export, ImageStoreError> {
        let image = self.get(name)?;
        Export::prepare(self.shelf.stage()?, &image, format, cancel)
            .map_err(|source| ImageStoreError::Export { name: name.clone(), source })
    }

    /// Stages an image, has it built there, and publishes it.
    pub(crate) fn make(
        &self,
        new: &NewImage,
        build: impl FnOnce(BuildPaths<'_>) -> Result<(BuiltImage, FromContainer), ImageStoreError>,
    ) -> Result<Image, ImageStoreError> {
        let name = new.name.as_str();
        self.shelf.refuse_taken(name, new.replace)?;
        let staging = self.shelf.stage()?;
        let root = staging.path().join(ROOT);
        let seed = staging.path().join(SEED);
        let paths = BuildPaths { image: &root, work_seed: Some(&seed) };
        let (built, container) = build(paths)?;
        if container.path.is_none() {
            fs::set_permissions(&root, fs::Permissions::from_mode(0o444))
                .map_err(failed("protect", &root))?;
        }
        let manifest = ImageManifest {
            schema: 1,
            id: built.uuid,
            name: new.name.clone(),
            size: built.size,
            allocated: built.allocated,
            entries: built.entries,
            sha256: built.digests.compressed,
            tar_sha256: built.digests.uncompressed,
            source: new.source.clone(),
            created_at: jiff::Timestamp::now(),
            os_release: built.os_release,
            has_init: built.has_init,
            has_shell: built.has_shell,
            has_work_seed: built.has_work_seed,
            kernel: new.kernel.clone().or(container.kernel),
            config: container.config,
            layers: container.layers,
            manifest_digest: container.manifest_digest,
            path: container.path,
        };
        self.shelf.publish(staging, name, &manifest, new.replace)?;
        Ok(Image { manifest, directory: self.shelf.path(name) })
    }

    /// Returns the image `name`.
    ///
    /// # Errors
    /// [`ShelfError::Missing`], or a manifest that cannot be read.
    pub fn get(&self, name: &ImageName) -> Result<Image, ImageStoreError> {
        let manifest = self.shelf.manifest(name.as_str())?;
        Ok(Image { manifest, directory: self.shelf.path(name.as_str()) })
    }

    /// Changes which kernel VMs of the image `name` boot unless told otherwise.
    ///
    /// # Errors
    /// [`ShelfError::Missing`], or a manifest that cannot be read or written.
    pub fn set_kernel(
        &self,
        name: &ImageName,
        kernel: Option<KernelName>,
    ) -> Result<(), ImageStoreError> {
        let change = |manifest: ImageManifest| ImageManifest { kernel, ..manifest };
        Ok(self.shelf.change_manifest(name.as_str(), change)?)
    }

    /// Returns all images by name; one whose manifest cannot be read is logged and left out.
    ///
    /// # Errors
    /// A store that cannot be listed.
    pub fn list(&self) -> Result<Vec<Image>, ImageStoreError> {
        let names = self.shelf.names()?;
        let images = names.iter().filter_map(|name| match self.shelf.manifest(name) {
            Ok(manifest) => Some(Image { manifest, directory: self.shelf.path(name) }),
            Err(error) => {
                tracing::warn!(%name, error = &error as &dyn std::error::Error, "skip an image");
                None
            }
        });
        Ok(images.collect())
    }

    /// Removes the image `name`; false if it was not there. The caller makes sure that no VM uses
    /// it by path; links made by [`Image::link_root`] stay.
    ///
    /// # Errors
    /// Files that cannot be removed.
    pub fn delete(&self, name: &ImageName) -> Result<bool, ImageStoreError> {
        Ok(self.shelf.delete(name.as_str())?)
    }
}
