//! The temporary directory of a tool that may leave files of other (subordinate) owners in it.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

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
    let Ok(mounts) = fs::read("/proc/self/mountinfo") else { return true };
    let path = path.as_os_str().as_encoded_bytes();
    mounts.split(|&byte| byte == b'\n').any(|line| {
        // The fifth field is the mount point (proc(5)).
        let point = line.split(|&byte| byte == b' ').nth(4);
        point.is_some_and(|point| {
            point == path
                || point.strip_prefix(path).is_some_and(|rest| rest.first() == Some(&b'/'))
        })
    })
}
