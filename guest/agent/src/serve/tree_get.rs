//! Packing a file or directory, or some of a directory's files, as a tar stream.
//!
//! Opened without following links, so that a tree that changes while it is read can at worst give
//! a strange archive. Sockets are left out, as tar(1) does.

use std::collections::HashMap;
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use banger_agent_api::{
    AgentError, Empty, ErrorCode, Frame, FrameReader, FrameWriter, GetEntriesCall, GetTreeCall,
    WireError,
};
use rustix::fs::{AtFlags, FileType, Mode, OFlags, Stat};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc;

use super::calls::{begin, refuse};
use super::tree::{CHUNKS, ChunkWriter, Tree, plain_path, tree_error};

/// Deepest directory that is packed; each level holds a descriptor.
const DEPTH_LIMIT: usize = 200;

/// Runs the call.
pub(super) async fn run<S>(call: GetTreeCall, mut stream: S) -> Result<(), WireError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let path = PathBuf::from(std::ffi::OsStr::from_bytes(call.path.as_bytes()));
    let (parent, name) = match (path.parent(), path.file_name()) {
        (Some(parent), Some(name)) => (parent, PathBuf::from(name)),
        _ => (Path::new("/"), PathBuf::from(".")),
    };
    let opened = Tree::open(parent).and_then(|tree| {
        rustix::fs::statat(tree.as_fd(), &name, AtFlags::SYMLINK_NOFOLLOW)?;
        Ok(tree)
    });
    let tree = match opened {
        Ok(tree) => tree,
        Err(error) => {
            let error = tree_error("open", &path, &error);
            return refuse(&mut stream, error).await;
        }
    };
    begin(&mut stream, Empty {}).await?;
    send(FrameWriter::new(stream), path, move |packer| packer.entry(tree.as_fd(), &name, &name, 0))
        .await
}

/// Most bytes of names in one call.
const NAMES_LIMIT: usize = 256 << 20;

/// Runs the call that packs some files and links.
pub(super) async fn run_entries<S>(call: GetEntriesCall, mut stream: S) -> Result<(), WireError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let path = PathBuf::from(std::ffi::OsStr::from_bytes(call.path.as_bytes()));
    let tree = match Tree::open(&path) {
        Ok(tree) => tree,
        Err(error) => {
            let error = tree_error("open", &path, &error);
            return refuse(&mut stream, error).await;
        }
    };
    begin(&mut stream, Empty {}).await?;
    let (reader, writer) = tokio::io::split(stream);
    let mut writer = FrameWriter::new(writer);
    let names = match read_names(reader).await? {
        Ok(names) => names,
        Err(error) => {
            writer.send(&Frame::Error(error)).await?;
            return writer.shutdown().await;
        }
    };
    send(writer, path, move |packer| each_name(&names, |name| packer.named(&tree, name))).await
}

/// Reads the names that a call is about, each ended by a NUL.
pub(super) async fn read_names(
    reader: impl AsyncRead + Unpin,
) -> Result<Result<Vec<u8>, AgentError>, WireError> {
    let mut reader = FrameReader::new(reader);
    let mut names: Vec<u8> = Vec::new();
    loop {
        match reader.next().await? {
            Some(Frame::Data(bytes)) if names.len() + bytes.len() <= NAMES_LIMIT => {
                names.extend_from_slice(&bytes);
            }
            Some(Frame::Data(_)) => {
                let text = "too many names are asked for";
                return Ok(Err(AgentError::new(ErrorCode::BadRequest, text)));
            }
            Some(Frame::DataEnd) => return Ok(Ok(names)),
            Some(_) => {}
            None => return Err(WireError::Truncated),
        }
    }
}

/// Calls `act` with each of the names, up to the first that fails.
pub(super) fn each_name(
    names: &[u8],
    mut act: impl FnMut(&Path) -> Result<(), AgentError>,
) -> Result<(), AgentError> {
    let names = names.split(|&byte| byte == 0).filter(|name| !name.is_empty());
    for name in names {
        act(Path::new(std::ffi::OsStr::from_bytes(name)))?;
    }
    Ok(())
}

/// Sends the tar that `fill` makes on a thread of its own, and its end.
async fn send<W: AsyncWrite + Unpin>(
    mut writer: FrameWriter<W>,
    path: PathBuf,
    fill: impl FnOnce(&mut Packer) -> Result<(), AgentError> + Send + 'static,
) -> Result<(), WireError> {
    let (sender, mut receiver) = mpsc::channel(CHUNKS);
    let pack = tokio::task::spawn_blocking(move || {
        let writer = ChunkWriter { sender, buffer: Vec::new() };
        let mut packer = Packer { builder: tar::Builder::new(writer), linked: HashMap::new() };
        fill(&mut packer)?;
        let finished =
            packer.builder.into_inner().and_then(|mut writer| io::Write::flush(&mut writer));
        finished.map_err(|error| tree_error("pack", &path, &error))
    });
    while let Some(chunk) = receiver.recv().await {
        // An early return closes the channel, which ends the thread.
        writer.send(&Frame::Data(chunk)).await?;
    }
    let end = match pack.await {
        Ok(Ok(())) => Frame::DataEnd,
        Ok(Err(error)) => Frame::Error(error),
        Err(error) => {
            Frame::Error(AgentError::new(ErrorCode::Failed, format!("packing ended: {error}")))
        }
    };
    writer.send(&end).await?;
    writer.shutdown().await
}

struct Packer {
    builder: tar::Builder<ChunkWriter>,
    /// Files with more than one name, by device and inode, and the name each was packed under.
    linked: HashMap<(u64, u64), PathBuf>,
}

impl Packer {
    /// Packs a file or link of the tree; one that is gone, or is neither, is left out.
    fn named(&mut self, tree: &Tree, name: &Path) -> Result<(), AgentError> {
        let failed = |error: io::Error| tree_error("pack", name, &error);
        let plain = plain_path(name).filter(|plain| plain.file_name().is_some());
        let plain = plain.ok_or_else(|| failed(io::ErrorKind::InvalidInput.into()))?;
        let (parent, last) = match tree.parent(&plain, false) {
            Ok(found) => found,
            Err(error) if is_gone(&error) => return Ok(()),
            Err(error) => return Err(failed(error)),
        };
        let last = Path::new(last);
        match rustix::fs::statat(&parent, last, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat)
                if matches!(
                    FileType::from_raw_mode(stat.st_mode),
                    FileType::RegularFile | FileType::Symlink
                ) =>
            {
                // Each with its content: who asks for names has no use for one that leads to another.
                self.linked.clear();
                self.entry(parent.as_fd(), last, &plain, 0)
            }
            Ok(_) | Err(rustix::io::Errno::NOENT) => Ok(()),
            Err(error) => Err(failed(error.into())),
        }
    }

    /// Packs `name` in `parent` as `path`, and what is below it.
    fn entry(
        &mut self,
        parent: std::os::fd::BorrowedFd<'_>,
        name: &Path,
        path: &Path,
        depth: usize,
    ) -> Result<(), AgentError> {
        let failed = |error: io::Error| tree_error("pack", path, &error);
        let stat = match rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => stat,
            // Gone since its directory was read.
            Err(rustix::io::Errno::NOENT) if depth > 0 => return Ok(()),
            Err(error) => return Err(failed(error.into())),
        };
        let mut header = header(&stat);
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile => {
                let earlier = (stat.st_nlink > 1)
                    .then(|| self.linked.insert((stat.st_dev, stat.st_ino), path.to_owned()))
                    .flatten();
                match earlier {
                    Some(earlier) => {
                        header.set_entry_type(tar::EntryType::Link);
                        self.link(&mut header, path, earlier.as_os_str().as_bytes()).map_err(failed)
                    }
                    None => self.file(parent, name, path, header).map_err(failed),
                }
            }
            FileType::Symlink => {
                let target = rustix::fs::readlinkat(parent, name, Vec::new())
                    .map_err(|error| failed(error.into()))?;
                header.set_entry_type(tar::EntryType::Symlink);
                self.link(&mut header, path, target.as_bytes()).map_err(failed)
            }
            FileType::Directory if depth >= DEPTH_LIMIT => {
                Err(failed(io::ErrorKind::InvalidInput.into()))
            }
            FileType::Directory => {
                header.set_entry_type(tar::EntryType::Directory);
                self.builder.append_data(&mut header, path, io::empty()).map_err(failed)?;
                self.children(parent, name, path, depth)
            }
            FileType::Fifo => {
                header.set_entry_type(tar::EntryType::Fifo);
                self.builder.append_data(&mut header, path, io::empty()).map_err(failed)
            }
            _ => Ok(()),
        }
    }

    /// Packs a link whose target is kept byte for byte where it fits the header.
    fn link(&mut self, header: &mut tar::Header, path: &Path, target: &[u8]) -> io::Result<()> {
        match header.set_link_name_literal(target) {
            Ok(()) => self.builder.append_data(header, path, io::empty()),
            Err(_) => self.builder.append_link(header, path, std::ffi::OsStr::from_bytes(target)),
        }
    }

    fn file(
        &mut self,
        parent: std::os::fd::BorrowedFd<'_>,
        name: &Path,
        path: &Path,
        mut header: tar::Header,
    ) -> io::Result<()> {
        // Not blocking, in case it has become a fifo.
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let file = std::fs::File::from(rustix::fs::openat(parent, name, flags, Mode::empty())?);
        let size = file.metadata()?.len();
        header.set_entry_type(tar::EntryType::Regular);
        header.set_size(size);
        // The size is written already: a file that shrinks meanwhile is filled up, one that grows cut.
        let content = file.take(size).chain(io::repeat(0)).take(size);
        self.builder.append_data(&mut header, path, content)
    }

    fn children(
        &mut self,
        parent: std::os::fd::BorrowedFd<'_>,
        name: &Path,
        path: &Path,
        depth: usize,
    ) -> Result<(), AgentError> {
        let failed = |error: rustix::io::Errno| tree_error("pack", path, &error.into());
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let directory: OwnedFd =
            rustix::fs::openat(parent, name, flags, Mode::empty()).map_err(failed)?;
        for entry in rustix::fs::Dir::read_from(&directory).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let child = Path::new(std::ffi::OsStr::from_bytes(entry.file_name().to_bytes()));
            if child != Path::new(".") && child != Path::new("..") {
                self.entry(directory.as_fd(), child, &path.join(child), depth + 1)?;
            }
        }
        Ok(())
    }
}

/// Whether a directory on the way is gone, or is a file or a link now.
pub(super) fn is_gone(error: &io::Error) -> bool {
    use rustix::io::Errno;
    matches!(
        error.raw_os_error().map(Errno::from_raw_os_error),
        Some(Errno::NOENT | Errno::NOTDIR | Errno::LOOP)
    )
}

fn header(stat: &Stat) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_mode(stat.st_mode & 0o7777);
    header.set_uid(u64::from(stat.st_uid));
    header.set_gid(u64::from(stat.st_gid));
    header.set_mtime(u64::try_from(stat.st_mtime).unwrap_or(0));
    header.set_size(0);
    header
}
