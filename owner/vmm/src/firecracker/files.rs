//! What a Firecracker has in its VM's directories.
//!
//! | name | in | made by | what |
//! |---|---|---|---|
//! | `vm` | runtime directory | us | the VM's id, which is its jail's name; before the launch is asked for |
//! | `fc.sock` | runtime directory | the helper | a link to the API's socket in the jail |
//! | `vsock.sock` | runtime directory | the helper | a link to the vsock's socket in the jail |
//! | ID | a directory of marks in the state directory | us | empty: that VM's jail was asked for and is not removed |
//! | `initrd` | the VM's directory | us | the initial RAM disk, below the state directory as the helper wants it |
//!
//! The runtime directory (0700) is what keeps other users from the sockets.

use std::fs::OpenOptions;
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use banger_engine::seams::VmmError;
use banger_types::VmId;

/// An id is shorter.
const LONGEST_ID: u64 = 128;

/// The paths of one Firecracker's files in the runtime directory.
#[derive(Clone, Debug)]
pub(super) struct RuntimeFiles {
    pub(super) vm: PathBuf,
    pub(super) api: PathBuf,
    pub(super) vsock: PathBuf,
}

impl RuntimeFiles {
    pub(super) fn below(directory: &Path) -> Self {
        Self {
            vm: directory.join("vm"),
            api: directory.join("fc.sock"),
            vsock: directory.join("vsock.sock"),
        }
    }

    /// Claims the directory for a VM: a second launch in it fails here.
    pub(super) fn claim(&self, vm: &VmId) -> Result<(), VmmError> {
        let write = || {
            let options = OpenOptions::new().write(true).create_new(true).mode(0o600).clone();
            options.open(&self.vm)?.write_all(vm.as_str().as_bytes())
        };
        write()
            .map_err(|source| VmmError::Io { act: format!("making {}", self.vm.display()), source })
    }

    /// Returns whose directory it is; `None` where nobody has claimed it.
    pub(super) fn claimed_by(&self) -> Result<Option<VmId>, VmmError> {
        let mut text = String::new();
        let read = std::fs::File::open(&self.vm)
            .and_then(|file| file.take(LONGEST_ID).read_to_string(&mut text));
        let fail = |source| VmmError::Io { act: format!("reading {}", self.vm.display()), source };
        match read {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            // Killed between making and writing it: nothing was asked of the helper yet.
            Ok(0) => Ok(None),
            Ok(_) => text.parse().map(Some).map_err(|error| fail(io::Error::other(error))),
            Err(error) => Err(fail(error)),
        }
    }

    /// Removes what is there; returns whether there was anything. The links are the helper's, which
    /// has removed them with the jail.
    pub(super) fn remove(&self) -> Result<bool, VmmError> {
        let mut any = false;
        for path in [&self.api, &self.vsock, &self.vm] {
            match std::fs::remove_file(path) {
                Ok(()) => any = true,
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(source) => {
                    return Err(VmmError::Io {
                        act: format!("removing {}", path.display()),
                        source,
                    });
                }
            }
        }
        Ok(any)
    }
}

/// Marks that a jail of a VM is asked for, so that it is known to be ours whatever else is lost.
pub(super) fn mark(marks: &Path, vm: &VmId) -> Result<(), VmmError> {
    let path = marks.join(vm.as_str());
    let make = || {
        match std::fs::DirBuilder::new().mode(0o700).create(marks) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
        OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&path)
    };
    make()
        .map(drop)
        .map_err(|source| VmmError::Io { act: format!("making {}", path.display()), source })
}

/// Returns whose jail may be left where the runtime directory and the claim in it are lost, as a reboot
/// of the host loses both: the marked VM that the directory is named after.
pub(super) fn marked_for(marks: &Path, runtime_dir: &Path) -> Option<VmId> {
    let names = std::fs::read_dir(marks).into_iter().flatten().flatten();
    let mut ids = names.filter_map(|entry| entry.file_name().to_str()?.parse::<VmId>().ok());
    let is_its = |vm: &VmId| runtime_dir.file_name().is_some_and(|name| name == vm.short());
    ids.find(is_its)
}

/// Undoes [`mark`]; one that is not there is no failure.
pub(super) fn unmark(marks: &Path, vm: &VmId) -> Result<(), VmmError> {
    let path = marks.join(vm.as_str());
    match std::fs::remove_file(&path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            Err(VmmError::Io { act: format!("removing {}", path.display()), source })
        }
        _ => Ok(()),
    }
}

/// Puts the initial RAM disk into the VM's directory: by another name for it where that is possible,
/// else by a copy.
pub(super) fn place_initrd(initrd: &Path, console_log: &Path) -> Result<PathBuf, VmmError> {
    let place = console_log.with_file_name("initrd");
    let put = || {
        match std::fs::remove_file(&place) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        match std::fs::hard_link(initrd, &place) {
            Ok(()) => Ok(()),
            Err(_) => std::fs::copy(initrd, &place).map(drop),
        }
    };
    put().map_err(|source| VmmError::Io { act: format!("making {}", place.display()), source })?;
    Ok(place)
}
