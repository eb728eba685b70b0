//! Paths that nobody but root can change: each part is opened, is no link, is root's and written to
//! by root alone. Such a path stays what it is, so it may be handed to a program by name.

use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{CWD, FileType, Mode, Stat};
use rustix::io::Errno;

use crate::{LOOK, kind};

/// Opens a path (O_PATH) whose every part is root's alone; none if there is nothing. Below a
/// directory with the sticky bit others may make files and not touch root's, so where `may_stick`
/// a parent may be one.
///
/// # Errors
/// Which part is not root's alone.
pub fn open_guarded(path: &Path, may_stick: bool) -> Result<Option<(OwnedFd, Stat)>, String> {
    let parts: Vec<_> = path.iter().collect();
    let mut at: Option<(OwnedFd, Stat)> = None;
    for (index, part) in parts.iter().enumerate() {
        let name = || parts[..=index].iter().collect::<std::path::PathBuf>();
        let failed = |errno: Errno| format!("{}: {errno}", name().display());
        let opened = match &at {
            Some((parent, _)) => rustix::fs::openat(parent, *part, LOOK, Mode::empty()),
            None => rustix::fs::openat(CWD, *part, LOOK, Mode::empty()),
        };
        let descriptor = match opened {
            Err(Errno::NOENT | Errno::NOTDIR) => return Ok(None),
            opened => opened.map_err(failed)?,
        };
        let stat = rustix::fs::fstat(&descriptor).map_err(failed)?;
        let is_last = index + 1 == parts.len();
        let sticks = stat.st_mode & 0o1000 != 0 && may_stick && !is_last;
        let fault = if kind(&stat) == FileType::Symlink {
            "is a symbolic link"
        } else if stat.st_uid != 0 {
            "is not root's"
        } else if stat.st_mode & 0o022 != 0 && !sticks {
            "can be written to by others than root"
        } else {
            at = Some((descriptor, stat));
            continue;
        };
        return Err(format!("{} {fault}", name().display()));
    }
    Ok(at)
}
