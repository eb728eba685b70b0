//! Listing a directory tree, or some names of it: kinds, sizes and times, without the content.

use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use banger_agent_api::{
    AgentError, Argument, ErrorCode, Frame, FrameWriter, ListEntriesCall, ListTreeCall,
    ListTreeReply, Listed, ListedKind, WireError,
};
use rustix::fs::{AtFlags, FileType, Mode, OFlags, Stat};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc;

use super::calls::{begin, refuse};
use super::tree::{CHUNKS, ChunkWriter, Tree, plain_path, tree_error};
use super::tree_get::{each_name, is_gone, read_names};

/// Deepest directory that is listed; each level holds a descriptor.
const DEPTH_LIMIT: usize = 200;

/// Runs the call.
pub(super) async fn run<S>(call: ListTreeCall, mut stream: S) -> Result<(), WireError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let path = Path::new(std::ffi::OsStr::from_bytes(call.path.as_bytes())).to_owned();
    let now_nanos = now();
    let tree = match Tree::open(&path) {
        Ok(tree) => tree,
        Err(error) => {
            let error = tree_error("open", &path, &error);
            return refuse(&mut stream, error).await;
        }
    };
    begin(&mut stream, ListTreeReply { now_nanos }).await?;
    send(FrameWriter::new(stream), path.clone(), call.skip, move |lister| {
        let failed = |error: std::io::Error| tree_error("list", &path, &error);
        let stat = rustix::fs::fstat(tree.as_fd()).map_err(|error| failed(error.into()))?;
        lister.record(&stat, b"").map_err(failed)?;
        lister.children(tree.as_fd(), &mut Vec::new(), 0)
    })
    .await
}

/// Runs the call that lists some names.
pub(super) async fn run_entries<S>(call: ListEntriesCall, mut stream: S) -> Result<(), WireError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let path = Path::new(std::ffi::OsStr::from_bytes(call.path.as_bytes())).to_owned();
    let now_nanos = now();
    let tree = match Tree::open(&path) {
        Ok(tree) => tree,
        Err(error) => {
            let error = tree_error("open", &path, &error);
            return refuse(&mut stream, error).await;
        }
    };
    begin(&mut stream, ListTreeReply { now_nanos }).await?;
    let (reader, writer) = tokio::io::split(stream);
    let mut writer = FrameWriter::new(writer);
    let names = match read_names(reader).await? {
        Ok(names) => names,
        Err(error) => {
            writer.send(&Frame::Error(error)).await?;
            return writer.shutdown().await;
        }
    };
    send(writer, path, Vec::new(), move |lister| {
        each_name(&names, |name| lister.named(&tree, name))
    })
    .await
}

/// The guest's clock, nanoseconds since 1970 UTC.
fn now() -> i64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
}

/// Sends the records that `fill` makes on a thread of its own, and their end.
async fn send<W: AsyncWrite + Unpin>(
    mut writer: FrameWriter<W>,
    path: PathBuf,
    skip: Vec<Argument>,
    fill: impl FnOnce(&mut Lister) -> Result<(), AgentError> + Send + 'static,
) -> Result<(), WireError> {
    let (sender, mut receiver) = mpsc::channel(CHUNKS);
    let list = tokio::task::spawn_blocking(move || {
        let out = ChunkWriter { sender, buffer: Vec::new() };
        let mut lister = Lister { out, skip, record: Vec::new() };
        fill(&mut lister)?;
        lister.out.flush().map_err(|error| tree_error("list", &path, &error))
    });
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

    /// Lists a name of the tree; one that is not there is left out.
    fn named(&mut self, tree: &Tree, name: &Path) -> Result<(), AgentError> {
        let failed = |error: std::io::Error| tree_error("list", name, &error);
        let plain = plain_path(name).filter(|plain| plain.file_name().is_some());
        let plain = plain.ok_or_else(|| failed(std::io::ErrorKind::InvalidInput.into()))?;
        let (parent, last) = match tree.parent(&plain, false) {
            Ok(found) => found,
            Err(error) if is_gone(&error) => return Ok(()),
            Err(error) => return Err(failed(error)),
        };
        match rustix::fs::statat(&parent, last, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => self.record(&stat, plain.as_os_str().as_bytes()).map_err(failed),
            Err(rustix::io::Errno::NOENT) => Ok(()),
            Err(error) => Err(failed(error.into())),
        }
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

#[cfg(test)]
mod tests {
    use banger_agent_api::ListingDecoder;

    use super::*;

    fn listed(top: &Path, names: &[&str]) -> Result<Vec<(Vec<u8>, ListedKind)>, AgentError> {
        let (sender, mut receiver) = mpsc::channel(CHUNKS);
        let out = ChunkWriter { sender, buffer: Vec::new() };
        let mut lister = Lister { out, skip: Vec::new(), record: Vec::new() };
        let tree = Tree::open(top).unwrap();
        each_name(names.join("\0").as_bytes(), |name| lister.named(&tree, name))?;
        lister.out.flush().unwrap();
        let mut decoder = ListingDecoder::default();
        while let Ok(chunk) = receiver.try_recv() {
            decoder.push(&chunk);
        }
        let mut found = Vec::new();
        while let Some(listed) = decoder.next_record().unwrap() {
            found.push((listed.name, listed.kind));
        }
        Ok(found)
    }

    #[test]
    fn names_are_listed_and_no_link_is_followed() {
        let outside = tempfile::tempdir().unwrap();
        std::fs::write(outside.path().join("victim"), "").unwrap();
        let inside = tempfile::tempdir().unwrap();
        std::fs::create_dir(inside.path().join("d")).unwrap();
        std::fs::write(inside.path().join("d/f"), "").unwrap();
        std::os::unix::fs::symlink(outside.path(), inside.path().join("link")).unwrap();
        let names = ["d", "d/f", "link", "link/victim", "none", "none/x", "d/f/x"];
        let expected: [(&[u8], ListedKind); 3] = [
            (b"d", ListedKind::Directory),
            (b"d/f", ListedKind::File),
            (b"link", ListedKind::Link),
        ];
        let found = listed(inside.path(), &names).unwrap();
        let found: Vec<_> = found.iter().map(|(name, kind)| (&name[..], *kind)).collect();
        assert_eq!(found, expected);
        for bad in ["..", "../x", "/etc/passwd", "d/../../x", "."] {
            assert!(listed(inside.path(), &[bad]).is_err(), "{bad}");
        }
    }
}
