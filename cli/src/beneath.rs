//! Opening what lies below a directory, and nothing else.
//!
//! The kernel resolves the path: it follows no link and leaves the directory nowhere, whatever
//! another process does meanwhile (openat2(2)).

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

/// Opens `path` below `root`; a link on the way is [`Errno::LOOP`].
///
/// Does not block: what was a file a moment ago may be a pipe now.
pub fn open(root: impl AsFd, path: impl AsRef<Path>, flags: OFlags) -> Result<OwnedFd, Errno> {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    // A mere handle (O_PATH) opens nothing that could block.
    let patience = if flags.contains(OFlags::PATH) { OFlags::empty() } else { OFlags::NONBLOCK };
    let flags = flags | OFlags::CLOEXEC | patience;
    rustix::fs::openat2(root.as_fd(), path.as_ref(), flags, Mode::empty(), resolve)
}
