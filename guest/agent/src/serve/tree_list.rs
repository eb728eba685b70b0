//! Listing a directory tree: names, kinds, sizes and times, without the content.

use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::SystemTime;

use banger_agent_api::{
    AgentError, Argument, ErrorCode, Frame, FrameWriter, ListTreeCall, ListTreeReply, Listed,
    ListedKind, WireError,
};
use rustix::fs::{AtFlags, FileType, Mode, OFlags, Stat};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc;

use super::calls::{begin, refuse};
use super::tree::{CHUNKS, ChunkWriter, Tree, tree_error};

/// Deepest directory that is listed; each level holds a descriptor.
const DEPTH_LIMIT: usize = 200;

/// Runs the call.
pub(super) async fn run<S>(call: ListTreeCall, mut stream: S) -> Result<(), WireError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let path = Path::new(std::ffi::OsStr::from_bytes(call.path.as_bytes())).to_owned();
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let now_nanos = i64::try_from(since.as_nanos()).unwrap_or(i64::MAX);
    let tree = match Tree::open(&path) {
        Ok(tree) => tree,
        Err(error) => {
            let error = tree_error("open", &path, &error);
            return refuse(&mut stream, error).await;
        }
    };
    begin(&mut stream, ListTreeReply { now_nanos }).await?;
    let (sender, mut receiver) = mpsc::channel(CHUNKS);
    let list = tokio::task::spawn_blocking(move || {
        let out = ChunkWriter { sender, buffer: Vec::new() };
        let mut lister = Lister { out, skip: call.skip, record: Vec::new() };
        let failed = |error: std::io::Error| tree_error("list", &path, &error);
        let stat = rustix::fs::fstat(tree.as_fd()).map_err(|error| failed(error.into()))?;
        lister.record(&stat, b"").map_err(failed)?;
        lister.children(tree.as_fd(), &mut Vec::new(), 0)?;
        lister.out.flush().map_err(failed)
    });
    let mut writer = FrameWriter::new(stream);
    while let Some(chunk) = receiver.recv().await {
        // An early return closes the channel, which ends the thread.
        writer.send(&Frame::Data(chunk)).await?;
    }
    let end = match list.await {
        Ok(Ok(())) => Frame::DataEnd,
        Ok(Err(error)) => Frame::Error(error),
        Err(error) => {
            Frame::Error(AgentError::new(ErrorCode::Failed, format!("listing ended: {error}")))
        }
    };
    writer.send(&end).await?;
    writer.shutdown().await
}

struct Lister {
    out: ChunkWriter,
    skip: Vec<Argument>,
    record: Vec<u8>,
}

impl Lister {
    fn record(&mut self, stat: &Stat, name: &[u8]) -> std::io::Result<()> {
        let nanos = |seconds: i64, nanos: u64| {
            let nanos = i64::try_from(nanos).unwrap_or(0);
            seconds.saturating_mul(1_000_000_000).saturating_add(nanos)
        };
        let listed = Listed {
            kind: match FileType::from_raw_mode(stat.st_mode) {
                FileType::RegularFile => ListedKind::File,
                FileType::Directory => ListedKind::Directory,
                FileType::Symlink => ListedKind::Link,
                _ => ListedKind::Other,
            },
            mode: stat.st_mode & 0o7777,
            size: u64::try_from(stat.st_size).unwrap_or(0),
            modified_nanos: nanos(stat.st_mtime, stat.st_mtime_nsec),
            changed_nanos: nanos(stat.st_ctime, stat.st_ctime_nsec),
            inode: stat.st_ino,
            name: name.to_vec(),
        };
        self.record.clear();
        listed.encode(&mut self.record);
        self.out.write_all(&self.record)
    }

    /// Lists what is in `directory`, whose own name `path` holds.
    fn children(
        &mut self,
        directory: BorrowedFd<'_>,
        path: &mut Vec<u8>,
        depth: usize,
    ) -> Result<(), AgentError> {
        let failed = |path: &[u8], error: std::io::Error| {
            tree_error("list", Path::new(std::ffi::OsStr::from_bytes(path)), &error)
        };
        if depth >= DEPTH_LIMIT {
            return Err(failed(path, std::io::ErrorKind::InvalidInput.into()));
        }
        let entries = rustix::fs::Dir::read_from(directory);
        let entries = entries.map_err(|error| failed(path, error.into()))?;
        for entry in entries {
            let entry = entry.map_err(|error| failed(path, error.into()))?;
            let name = entry.file_name();
            if matches!(name.to_bytes(), b"." | b"..") {
                continue;
            }
            let length = path.len();
            if !path.is_empty() {
                path.push(b'/');
            }
            path.extend_from_slice(name.to_bytes());
            match rustix::fs::statat(directory, name, AtFlags::SYMLINK_NOFOLLOW) {
                Ok(stat) => {
                    self.record(&stat, path).map_err(|error| failed(path, error))?;
                    let is_directory = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
                    if is_directory
                        && !self.skip.iter().any(|skip| skip.as_bytes() == name.to_bytes())
                    {
                        self.descend(directory, name, path, depth)?;
                    }
                }
                // Gone since its directory was read.
                Err(rustix::io::Errno::NOENT) => {}
                Err(error) => return Err(failed(path, error.into())),
            }
            path.truncate(length);
        }
        Ok(())
    }

    fn descend(
        &mut self,
        parent: BorrowedFd<'_>,
        name: &std::ffi::CStr,
        path: &mut Vec<u8>,
        depth: usize,
    ) -> Result<(), AgentError> {
        use rustix::io::Errno;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let opened: Result<OwnedFd, Errno> = rustix::fs::openat(parent, name, flags, Mode::empty());
        match opened {
            Ok(directory) => self.children(directory.as_fd(), path, depth + 1),
            // Gone, or something else by now.
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Ok(()),
            Err(error) => {
                let path = Path::new(std::ffi::OsStr::from_bytes(path));
                Err(tree_error("list", path, &error.into()))
            }
        }
    }
}
