//! The temporary directory of a tool that may leave files of other (subordinate) owners in it.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::mount::UnmountFlags;

use super::error::DebianError;

/// A directory that is removed with everything in it.
#[derive(Debug)]
pub struct Workplace {
    path: PathBuf,
}

impl Workplace {
    /// Makes the directory below `$TMPDIR`, else `/var/tmp` (which is a disk, not memory).
    pub fn create() -> Result<Self, DebianError> {
        let parent = std::env::var_os("TMPDIR")
            .map(PathBuf::from)
            .filter(|path| path.is_absolute())
            .unwrap_or_else(|| PathBuf::from("/var/tmp"));
        let failed = |source| DebianError::File {
            action: "create a temporary directory in",
            path: parent.clone(),
            source,
        };
        let made = tempfile::Builder::new()
            .prefix("banger-debian-")
            // The subordinate ids must be able to pass through.
            .permissions(fs::Permissions::from_mode(0o711))
            .tempdir_in(&parent)
            .map_err(failed)?;
        Ok(Self { path: made.keep() })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Workplace {
    fn drop(&mut self) {
        remove(&self.path);
    }
}

/// Removes the directory, unless something is mounted below it.
pub fn remove(path: &Path) {
    if !path.exists() || has_mounts(path) || fs::remove_dir_all(path).is_ok() {
        return;
    }
    // Files of subordinate ids can only be removed inside of their namespace; mmdebstrap has a
    // helper for that, where it did not do it itself. What stays is only space: no error.
    let Ok(tool) = super::apt::find_tool("mmdebstrap", "mmdebstrap") else { return };
    for entry in fs::read_dir(path).into_iter().flatten().filter_map(Result::ok) {
        let _ = Command::new(&tool)
            .args(["--unshare-helper", "rm", "-rf", "--one-file-system"])
            .arg(entry.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status();
    }
    let _ = fs::remove_dir_all(path);
}

/// Whether a file system is mounted below `path`: removing would reach into the host's own
/// directories. Where that cannot be known, the answer is yes.
fn has_mounts(path: &Path) -> bool {
    mounts_below(path).is_none_or(|mounts| !mounts.is_empty())
}

/// Takes away what is mounted below `path`, the deepest first; only for a mount namespace of our
/// own.
pub fn detach_mounts(path: &Path) {
    for point in mounts_below(path).unwrap_or_default().iter().rev() {
        // One that stays keeps the directory from being removed, which is safe.
        let _ = rustix::mount::unmount(point, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW);
    }
}

/// Returns the mount points at and below `path`, in the order in which they were made.
fn mounts_below(path: &Path) -> Option<Vec<PathBuf>> {
    let mounts = fs::read("/proc/thread-self/mountinfo").ok()?;
    let points = mounts
        .split(|&byte| byte == b'\n')
        // The fifth field is the mount point (proc(5)).
        .filter_map(|line| line.split(|&byte| byte == b' ').nth(4))
        .map(|point| PathBuf::from(OsStr::from_bytes(point)))
        .filter(|point| point.starts_with(path))
        .collect();
    Some(points)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::debian::supervisor::leave_host_mounts;

    #[test]
    fn a_removal_never_reaches_into_what_is_mounted() {
        if !rustix::process::geteuid().is_root() {
            eprintln!("SKIP: root: mounting needs root");
            return;
        }
        // The namespace is the thread's own and ends with it.
        std::thread::spawn(|| {
            if leave_host_mounts().is_err() {
                eprintln!("SKIP: mounts: this root may not make a mount namespace");
                return;
            }
            let host = tempfile::tempdir().unwrap();
            fs::write(host.path().join("precious"), "").unwrap();
            let base = tempfile::tempdir().unwrap();
            let workplace = base.path().join("workplace");
            let inside = workplace.join("dev/shm");
            fs::create_dir_all(&inside).unwrap();
            rustix::mount::mount_bind(host.path(), &inside).unwrap();

            assert_eq!(mounts_below(&workplace).unwrap(), [inside]);
            assert!(!has_mounts(&base.path().join("work")), "a sibling is not below");
            remove(&workplace);
            assert!(workplace.exists());
            assert!(host.path().join("precious").exists());

            detach_mounts(&workplace);
            remove(&workplace);
            assert!(!workplace.exists());
            assert!(host.path().join("precious").exists());
        })
        .join()
        .unwrap();
    }
}
