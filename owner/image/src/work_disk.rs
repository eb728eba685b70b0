//! Work disks: the writable file system that a VM mounts at `/root`.

use std::collections::HashMap;
use std::fs::File;
use std::path::Path;

use uuid::Uuid;

use crate::builder::{BuildError, Population, create};
use crate::ext4::{self, Kind, Metadata, Timestamp, Writer};
use crate::limits::Limits;
use crate::progress::CancelFlag;
use crate::tarball::Archive;

/// How a work disk is made.
#[derive(Clone, Copy, Debug)]
pub struct WorkDisk<'a> {
    /// The file to make; it must not exist.
    pub path: &'a Path,
    /// Bytes; the file is sparse, so only what is written to it takes space.
    pub size: u64,
    /// The file system's identity, by which the guest finds it.
    pub uuid: Uuid,
    /// At most 16 bytes.
    pub label: &'a str,
    /// The image's [work seed](crate::Image::work_seed), whose content it begins with.
    pub seed: Option<&'a Path>,
}

/// Makes an ext4 file system whose root belongs to root with mode 0700, or as the seed says.
///
/// It is not yet written out when this returns: the disk holds nothing of anyone's. The guest's
/// first flush, which the VMM passes on as fdatasync(2) of the whole file, does that; whatever was
/// promised to the guest lies on a file system that is on the host's disk too. On an error the file
/// is removed.
///
/// # Errors
/// A file that exists, a full disk, a seed that does not fit or is damaged, a cancelled call.
pub fn make_work_disk(disk: &WorkDisk<'_>, cancel: &CancelFlag) -> Result<(), BuildError> {
    let file = create(disk.path)?;
    let made = write(disk, file, cancel);
    if made.is_err()
        && let Err(error) = std::fs::remove_file(disk.path)
    {
        tracing::warn!(path = %disk.path.display(), %error, "remove an unfinished work disk");
    }
    made
}

fn write(disk: &WorkDisk<'_>, file: File, cancel: &CancelFlag) -> Result<(), BuildError> {
    let failed = |source| BuildError::FileSystem { path: disk.path.to_owned(), source };
    let options = ext4::Options {
        size: disk.size,
        grow_with_free: None,
        uuid: disk.uuid,
        label: disk.label.to_owned(),
        journal: true,
    };
    let mut writer = Writer::new(file, options).map_err(failed)?;
    let root = Metadata { permissions: 0o700, modified: Timestamp::now(), ..Metadata::default() };
    writer.add(b"", &Kind::Directory, &root).map_err(failed)?;
    if let Some(path) = disk.seed {
        let open = |source| BuildError::File { action: "open", path: path.to_owned(), source };
        let mut population = Population {
            writer,
            archive: Archive::new(File::open(path).map_err(open)?),
            prefix: b"root",
            limits: Limits::default(),
            cancel,
            report: &|_, _| Ok(()),
            content: 0,
            entries: 0,
            ignored_attributes: 0,
            releases: HashMap::new(),
            seed: None,
        };
        population.run()?;
        writer = population.writer;
    }
    writer.finish().map(drop).map_err(failed)
}
