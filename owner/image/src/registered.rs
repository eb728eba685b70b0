//! Images that are files of the user's own: registered where they are, and taken into the store.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use banger_types::ImageName;

use crate::archives::{copy_sparse, inspect};
use crate::builder::{BuildError, BuildPaths, create};
use crate::images::{FromContainer, Image, ImageStore, ImageStoreError, NewImage};
use crate::progress::CancelFlag;
use crate::tarball::SourceDigests;

/// The digests of what was made from no archive.
fn no_digests() -> SourceDigests {
    SourceDigests { compressed: String::new(), uncompressed: String::new(), bytes: 0 }
}

impl ImageStore {
    /// Gives the ext4 file system in `path` a name. It is checked, stays where it is, and is never
    /// written to; whoever changes it changes the image.
    ///
    /// # Errors
    /// A taken name, a path that is not absolute, or a file that is no clean ext4 file system.
    pub fn register(
        &self,
        new: &NewImage,
        path: &Path,
        cancel: &CancelFlag,
    ) -> Result<Image, ImageStoreError> {
        let refused =
            |problem: &'static str| ImageStoreError::Register { path: path.to_owned(), problem };
        if !path.is_absolute() {
            return Err(refused("its path is not absolute"));
        }
        let failed = |source| ImageStoreError::Build {
            name: new.name.clone(),
            source: BuildError::File { action: "look at", path: path.to_owned(), source },
        };
        let path = path.canonicalize().map_err(failed)?;
        if !path.metadata().map_err(failed)?.is_file() {
            return Err(refused("it is not a regular file"));
        }
        self.make(new, |paths| {
            let paths = BuildPaths { image: &path, ..paths };
            let built = inspect(paths, no_digests(), cancel)
                .map_err(|source| ImageStoreError::Build { name: new.name.clone(), source })?;
            Ok((built, FromContainer { path: Some(path.clone()), ..FromContainer::default() }))
        })
    }

    /// Copies a registered image into the store; false if it is there already.
    ///
    /// # Errors
    /// No such image, a file that is gone or no longer a clean file system, or a full disk.
    pub fn promote(&self, name: &ImageName, cancel: &CancelFlag) -> Result<bool, ImageStoreError> {
        let image = self.get(name)?;
        let Some(from) = image.manifest.path.clone() else { return Ok(false) };
        let new = NewImage {
            name: name.clone(),
            source: image.manifest.source.clone(),
            kernel: image.manifest.kernel.clone(),
            replace: true,
        };
        let config = image.manifest.config;
        self.make(&new, |paths| {
            let failed = |source| ImageStoreError::Build { name: name.clone(), source };
            copy(&from, paths.image, cancel).map_err(failed)?;
            let built = inspect(paths, no_digests(), cancel).map_err(failed)?;
            Ok((built, FromContainer { config, ..FromContainer::default() }))
        })?;
        Ok(true)
    }
}

fn copy(from: &Path, to: &Path, cancel: &CancelFlag) -> Result<(), BuildError> {
    let failed = |action, path: &Path| {
        let path: PathBuf = path.to_owned();
        move |source: io::Error| BuildError::File { action, path, source }
    };
    let source = File::open(from).map_err(failed("open", from))?;
    let target = create(to)?;
    // A file system that can share blocks does so at no cost.
    if rustix::fs::ioctl_ficlone(&target, &source).is_ok() {
        return Ok(());
    }
    copy_sparse(&source, &target, cancel)
        .map_err(failed("copy", from))?
        .map_err(BuildError::Cancelled)
}
