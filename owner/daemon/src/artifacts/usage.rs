//! What takes the host's disk.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use banger_daemon_api::artifact::{Image, Kernel};
use banger_daemon_api::error::{ApiError, ErrorCode};
use banger_daemon_api::pull::{DiskUsage, Usage};
use banger_registry::BlobStore;

use super::{ArtifactStores, blocking, registry_failure};

impl ArtifactStores {
    /// Adds up what is there; `images` and `kernels` say who uses them, `vms` is where VMs lie.
    pub async fn usage(
        &self,
        images: &[Image],
        kernels: &[Kernel],
        blobs: &BlobStore,
        vms: &Path,
    ) -> Result<DiskUsage, ApiError> {
        let images_usage =
            sum(images.iter().map(|image| (image.allocated, image.used_by.is_empty())));
        let kernels_usage =
            sum(kernels.iter().map(|kernel| (kernel.allocated, kernel.used_by.is_empty())));
        let (initrds, blobs, vms) = (self.initrds.clone(), blobs.clone(), vms.to_owned());
        blocking(move || {
            let initrds = entries(&initrds)?;
            let blobs = blobs.usage().map_err(|error| registry_failure::store(&error))?;
            Ok(DiskUsage {
                images: images_usage,
                blobs: Usage {
                    count: blobs.count,
                    bytes: blobs.bytes,
                    unused_count: blobs.unused_count,
                    reclaimable: blobs.unused_bytes,
                },
                kernels: kernels_usage,
                // Those of VMs that run are links of their own.
                initrds: Usage {
                    unused_count: initrds.count,
                    reclaimable: initrds.bytes,
                    ..initrds
                },
                vms: entries(&vms)?,
            })
        })
        .await
    }
}

fn sum(things: impl Iterator<Item = (u64, bool)>) -> Usage {
    things.fold(Usage::default(), |mut usage, (bytes, unused)| {
        usage.count += 1;
        usage.bytes = usage.bytes.saturating_add(bytes);
        if unused {
            usage.unused_count += 1;
            usage.reclaimable = usage.reclaimable.saturating_add(bytes);
        }
        usage
    })
}

/// Counts the entries of a directory and the bytes below it. A file with another name elsewhere (an
/// image's, which a VM keeps) counts there.
fn entries(path: &Path) -> Result<Usage, ApiError> {
    let failed = |error: io::Error| {
        let message = format!("measure {}", path.display());
        let mut api = ApiError::new(ErrorCode::OperationFailed, message);
        api.causes.push(error.to_string());
        api
    };
    let mut usage = Usage::default();
    let entries = match fs::read_dir(path) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(usage),
        Err(error) => return Err(failed(error)),
    };
    for entry in entries {
        usage.count += 1;
        usage.bytes += below(&entry.map_err(failed)?.path()).map_err(failed)?;
    }
    Ok(usage)
}

/// Adds up what is below a path; what is removed meanwhile takes nothing.
fn below(path: &Path) -> io::Result<u64> {
    let gone = |error: io::Error| match error.kind() {
        io::ErrorKind::NotFound => Ok(0),
        _ => Err(error),
    };
    let metadata = match fs::symlink_metadata(path) {
        Ok(metadata) => metadata,
        Err(error) => return gone(error),
    };
    if !metadata.is_dir() {
        let elsewhere = metadata.is_file() && metadata.nlink() > 1;
        return Ok(if elsewhere { 0 } else { metadata.blocks() * 512 });
    }
    let mut bytes = 0;
    let entries = match fs::read_dir(path) {
        Ok(entries) => entries,
        Err(error) => return gone(error),
    };
    for entry in entries {
        bytes += below(&entry?.path())?;
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn linked_files_count_where_they_come_from() {
        let directory = tempfile::tempdir().unwrap();
        let vms = directory.path().join("vms");
        fs::create_dir_all(vms.join("a/b")).unwrap();
        fs::write(directory.path().join("image"), vec![1; 1 << 20]).unwrap();
        fs::hard_link(directory.path().join("image"), vms.join("a/base")).unwrap();
        fs::write(vms.join("a/b/disk"), vec![1; 1 << 16]).unwrap();
        let usage = entries(&vms).unwrap();
        assert_eq!(usage.count, 1);
        assert!((1 << 16..1 << 19).contains(&usage.bytes), "{usage:?}");
        assert_eq!(entries(&directory.path().join("none")).unwrap(), Usage::default());
    }
}
