//! Files of the user's working tree, opened without following a link anywhere in their names.

use std::fs::{File, Metadata};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use banger_agent_api::{Listed, ListedKind};
use rustix::fs::{Mode, OFlags, ResolveFlags};

use crate::error::WorkspaceError;

/// One name of the working tree, held open.
pub(crate) enum Entry {
    File(File, Metadata),
    Link(Vec<u8>, Metadata),
}

/// Opens the top of a working tree.
pub(crate) fn open_top(top: &Path) -> Result<std::os::fd::OwnedFd, WorkspaceError> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::open(top, flags, Mode::empty())
        .map_err(|error| WorkspaceError::Path { path: top.to_owned(), source: error.into() })
}

/// Opens a name without following a link anywhere in it; `None` where no file or link is there.
pub(crate) fn open_beneath(top: &impl AsFd, path: &Path) -> Result<Option<Entry>, WorkspaceError> {
    use rustix::io::Errno;
    let failed = |source: io::Error| WorkspaceError::File { path: path.to_owned(), source };
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    // O_PATH first: opening a fifo or a device for reading has effects.
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let held = match rustix::fs::openat2(top, path, flags, Mode::empty(), resolve) {
        Ok(held) => held,
        // Deleted, or below what is a link or a file now: git calls it deleted too.
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::XDEV) => return Ok(None),
        Err(error) => return Err(failed(error.into())),
    };
    let metadata = File::from(held.try_clone().map_err(failed)?).metadata().map_err(failed)?;
    let kind = metadata.file_type();
    if kind.is_symlink() {
        let target =
            rustix::fs::readlinkat(&held, c"", Vec::new()).map_err(|error| failed(error.into()))?;
        return Ok(Some(Entry::Link(target.into_bytes(), metadata)));
    }
    if !kind.is_file() {
        return Ok(None);
    }
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = match rustix::fs::openat2(top, path, flags, Mode::empty(), resolve) {
        Ok(file) => File::from(file),
        // Deleted in this moment.
        Err(Errno::NOENT) => return Ok(None),
        Err(error) => return Err(failed(error.into())),
    };
    let metadata = file.metadata().map_err(failed)?;
    Ok(metadata.is_file().then_some(Entry::File(file, metadata)))
}

/// The mode that git has for a file or link.
pub(crate) fn git_mode(kind: ListedKind, mode: u32) -> u32 {
    match (kind, mode & 0o100) {
        (ListedKind::Link, _) => 0o120_000,
        (_, 0) => 0o100_644,
        _ => 0o100_755,
    }
}

/// What is known of a file or link beside its content, by which a change shows.
pub(crate) fn listed(name: &Path, metadata: &Metadata) -> Listed {
    let nanos = |seconds: i64, nanos: i64| seconds.saturating_mul(1_000_000_000) + nanos;
    Listed {
        kind: if metadata.is_symlink() { ListedKind::Link } else { ListedKind::File },
        mode: metadata.mode() & 0o7777,
        size: metadata.len(),
        modified_nanos: nanos(metadata.mtime(), metadata.mtime_nsec()),
        changed_nanos: nanos(metadata.ctime(), metadata.ctime_nsec()),
        inode: metadata.ino(),
        name: name.as_os_str().as_bytes().to_vec(),
    }
}
