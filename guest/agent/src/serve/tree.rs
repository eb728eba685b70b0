//! What unpacking and packing share: a directory that cannot be left, and a bridge from the
//! asynchronous stream to the blocking thread that works on files.

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Component, Path, PathBuf};

use banger_agent_api::{AgentError, ErrorCode, FileKind, GuestPath, StatCall, StatReply};
use bytes::{Buf, Bytes};
use rustix::fs::{Mode, OFlags, ResolveFlags};
use tokio::sync::mpsc;

/// Chunks that may wait between stream and thread: with frames of 32 KiB, 128 KiB.
pub(super) const CHUNKS: usize = 4;

const DIRECTORY: OFlags = OFlags::DIRECTORY.union(OFlags::CLOEXEC).union(OFlags::RDONLY);

/// Paths below the tree are resolved by the kernel: no symbolic link is followed, nothing above is
/// reached, whatever another process of the guest does meanwhile (openat2(2)).
const BENEATH: ResolveFlags =
    ResolveFlags::BENEATH.union(ResolveFlags::NO_SYMLINKS).union(ResolveFlags::NO_MAGICLINKS);

/// A directory below which everything happens.
pub(super) struct Tree(OwnedFd);

impl Tree {
    /// Opens a directory.
    pub fn open(path: &Path) -> io::Result<Self> {
        Ok(Self(rustix::fs::open(path, DIRECTORY, Mode::empty())?))
    }

    /// Opens a directory below this one; an empty path is this one.
    pub fn directory(&self, path: &Path) -> io::Result<OwnedFd> {
        let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
        Ok(rustix::fs::openat2(&self.0, path, DIRECTORY, Mode::empty(), BENEATH)?)
    }

    /// Opens a directory below this one, making what is missing of it.
    pub fn make_directories(&self, path: &Path) -> io::Result<OwnedFd> {
        match self.directory(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            other => return other,
        }
        let mut current = self.0.try_clone()?;
        for component in path.components() {
            let name = component.as_os_str();
            match rustix::fs::mkdirat(&current, name, Mode::from_raw_mode(0o755)) {
                Ok(()) | Err(rustix::io::Errno::EXIST) => {}
                Err(error) => return Err(error.into()),
            }
            current = rustix::fs::openat2(&current, name, DIRECTORY, Mode::empty(), BENEATH)?;
        }
        Ok(current)
    }

    /// Opens the directory that holds `path`, and names its last component.
    pub fn parent<'p>(&self, path: &'p Path, make: bool) -> io::Result<(OwnedFd, &'p OsStr)> {
        let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?;
        let parent = path.parent().unwrap_or(Path::new(""));
        let parent = if make { self.make_directories(parent)? } else { self.directory(parent)? };
        Ok((parent, name))
    }

    pub fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Makes an archive's path relative and plain; `None` for one that climbs or starts at the root.
/// The path of the tree itself is empty.
pub(super) fn plain_path(path: &Path) -> Option<PathBuf> {
    let mut plain = PathBuf::new();
    for component in path.components() {
        match component {
            Component::Normal(name) => plain.push(name),
            Component::CurDir => {}
            Component::ParentDir | Component::RootDir | Component::Prefix(_) => return None,
        }
    }
    Some(plain)
}

/// Answers what a path leads to.
pub(super) fn stat(call: &StatCall) -> Result<StatReply, AgentError> {
    let path = Path::new(OsStr::from_bytes(call.path.as_bytes()));
    let failed = |error: io::Error| tree_error("look at", path, &error);
    let real = std::fs::canonicalize(path).map_err(failed)?;
    let kind = match std::fs::metadata(&real).map_err(failed)?.file_type() {
        kind if kind.is_dir() => FileKind::Directory,
        kind if kind.is_file() => FileKind::File,
        _ => FileKind::Other,
    };
    let real_path = GuestPath::new(real.into_os_string().into_vec())
        .map_err(|error| failed(io::Error::other(error)))?;
    Ok(StatReply { kind, real_path })
}

/// Says what went wrong with which path, with the code that fits.
pub(super) fn tree_error(operation: &str, path: &Path, error: &io::Error) -> AgentError {
    let code = match error.kind() {
        io::ErrorKind::NotFound => ErrorCode::NotFound,
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => ErrorCode::DiskFull,
        _ => ErrorCode::Failed,
    };
    AgentError::new(code, format!("{operation} {}: {error}", path.display()))
}

/// The thread's end of a stream that comes in.
pub(super) struct ChunkReader {
    pub receiver: mpsc::Receiver<Bytes>,
    pub current: Bytes,
    /// The sender says so before it closes the channel; otherwise the client went away.
    pub complete: std::sync::Arc<std::sync::atomic::AtomicBool>,
}

impl io::Read for ChunkReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.current.is_empty() {
            match self.receiver.blocking_recv() {
                Some(chunk) => self.current = chunk,
                None if self.complete.load(std::sync::atomic::Ordering::Acquire) => return Ok(0),
                None => return Err(io::ErrorKind::ConnectionAborted.into()),
            }
        }
        let count = self.current.len().min(buffer.len());
        self.current.copy_to_slice(&mut buffer[..count]);
        Ok(count)
    }
}

/// The thread's end of a stream that goes out; gathers small writes.
pub(super) struct ChunkWriter {
    pub sender: mpsc::Sender<Bytes>,
    pub buffer: Vec<u8>,
}

impl ChunkWriter {
    const SIZE: usize = banger_agent_api::MAX_FRAME_PAYLOAD;
}

impl io::Write for ChunkWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = bytes.len().min(Self::SIZE - self.buffer.len());
        self.buffer.extend_from_slice(&bytes[..count]);
        if self.buffer.len() == Self::SIZE {
            self.flush()?;
        }
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        let chunk = Bytes::from(std::mem::take(&mut self.buffer));
        self.sender.blocking_send(chunk).map_err(|_| io::ErrorKind::ConnectionAborted.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_that_climb_or_start_at_the_root_are_refused() {
        for bad in ["/etc/passwd", "../x", "a/../../x", "a/..", "/"] {
            assert_eq!(plain_path(Path::new(bad)), None, "{bad}");
        }
        for (path, plain) in [(".", ""), ("./", ""), ("./a//b/", "a/b"), ("a", "a")] {
            assert_eq!(plain_path(Path::new(path)), Some(plain.into()), "{path}");
        }
    }

    #[test]
    fn a_symbolic_link_is_never_followed_below_the_tree() {
        let outside = tempfile::tempdir().unwrap();
        let inside = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink(outside.path(), inside.path().join("link")).unwrap();
        std::os::unix::fs::symlink(".", inside.path().join("self")).unwrap();
        let tree = Tree::open(inside.path()).unwrap();
        for path in ["link", "link/x", "self", "self/y", "../x", ".."] {
            assert!(tree.make_directories(Path::new(path)).is_err(), "{path}");
        }
        assert_eq!(std::fs::read_dir(outside.path()).unwrap().count(), 0);
        tree.make_directories(Path::new("a/b/c")).unwrap();
        assert!(inside.path().join("a/b/c").is_dir());
    }
}
