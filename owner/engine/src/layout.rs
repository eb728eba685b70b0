//! Where a VM's files are: everything is derived from its id, so that it can be found and removed
//! without any record.

use std::path::{Path, PathBuf};

use banger_types::VmId;

/// The directories of one VM.
#[derive(Clone, Debug)]
pub(crate) struct VmFiles {
    dir: PathBuf,
    runtime_dir: PathBuf,
}

impl VmFiles {
    pub(crate) fn new(vms_dir: &Path, runtime_root: &Path, id: &VmId) -> Self {
        // The beginning of the id keeps sockets' paths short (107 bytes, unix(7)).
        Self { dir: vms_dir.join(id.as_str()), runtime_dir: runtime_root.join(id.short()) }
    }

    /// The VM's directory in the state directory.
    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// The directory of its sockets.
    pub(crate) fn runtime_dir(&self) -> &Path {
        &self.runtime_dir
    }

    /// Its own link to the base image, which outlives the image's replacement.
    pub(crate) fn base(&self) -> PathBuf {
        self.dir.join("base.ext4")
    }

    /// Its work disk.
    pub(crate) fn work_disk(&self) -> PathBuf {
        self.dir.join("work.ext4")
    }

    /// What is known of its VMM.
    pub(crate) fn handles(&self) -> PathBuf {
        self.dir.join("handles.json")
    }

    /// Its serial console's log.
    pub(crate) fn console_log(&self) -> PathBuf {
        self.dir.join("console.log")
    }
}
