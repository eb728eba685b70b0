//! Packing a file or directory, or some of a directory's files, as a tar stream.
//!
//! Opened without following links, so that a tree that changes while it is read can at worst give
//! a strange archive. Sockets are left out, as tar(1) does.

use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use banger_agent_api::{AgentError, Empty, FrameWriter, GetEntriesCall, GetTreeCall, WireError};
use rustix::fs::{AtFlags, FileType, Mode, OFlags, Stat};
use tokio::io::{AsyncRead, AsyncWrite};

use super::calls::{begin, refuse};
use super::tree::{ChunkWriter, Tree, tree_error};
use super::tree_stream::{each_name, open_with_names, path_of, send};
use super::tree_walk::{self, Found, below, named};

/// Runs the call.
pub(super) async fn run<S>(call: GetTreeCall, mut stream: S) -> Result<(), WireError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let path = path_of(&call.path);
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
    send(FrameWriter::new(stream), move |out| {
        let mut packer = Packer::new(out);
        packer.tree(&tree, &name)?;
        packer.finish(&path)
    })
    .await
}

/// Runs the call that packs some files and links.
pub(super) async fn run_entries<S>(call: GetEntriesCall, stream: S) -> Result<(), WireError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let path = path_of(&call.path);
    let begun = open_with_names(&path, Empty {}, stream).await?;
    let Some((tree, names, writer)) = begun else { return Ok(()) };
    send(writer, move |out| {
        let mut packer = Packer::new(out);
        each_name(&names, |name| named("pack", &tree, name, |found| packer.file_or_link(found)))?;
        packer.finish(&path)
    })
    .await
}

struct Packer {
    builder: tar::Builder<ChunkWriter>,
    /// Files with more than one name, by device and inode, and the name each was packed under.
    linked: HashMap<(u64, u64), PathBuf>,
}

impl Packer {
    fn new(out: ChunkWriter) -> Self {
        Self { builder: tar::Builder::new(out), linked: HashMap::new() }
    }

    fn finish(self, path: &Path) -> Result<(), AgentError> {
        let finished = self.builder.into_inner().and_then(|mut out| out.flush());
        finished.map_err(|error| tree_error("pack", path, &error))
    }

    /// Packs a name of the tree, and what is below it.
    fn tree(&mut self, tree: &Tree, name: &Path) -> Result<(), AgentError> {
        let failed = |error: rustix::io::Errno| tree_error("pack", name, &error.into());
        let parent = tree.as_fd();
        let stat = rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW).map_err(failed)?;
        let found = Found { parent, name: name.as_os_str(), path: name, stat };
        self.found(&found)?;
        if found.kind() != FileType::Directory {
            return Ok(());
        }
        let directory = tree_walk::open(parent, found.name).map_err(failed)?;
        below("pack", directory.as_fd(), &mut name.to_owned(), &mut |found| {
            self.found(found).map(|()| true)
        })
    }

    /// Packs a file or link; another one is left out.
    fn file_or_link(&mut self, found: &Found<'_>) -> Result<(), AgentError> {
        if !matches!(found.kind(), FileType::RegularFile | FileType::Symlink) {
            return Ok(());
        }
        // Each with its content: who asks for names has no use for one that leads to another.
        self.linked.clear();
        self.found(found)
    }

    /// Packs what was found, a directory without what is in it.
    fn found(&mut self, found: &Found<'_>) -> Result<(), AgentError> {
        let (path, stat) = (found.path, &found.stat);
        let failed = |error: io::Error| tree_error("pack", path, &error);
        let mut header = header(stat);
        match found.kind() {
            FileType::RegularFile => {
                let earlier = (stat.st_nlink > 1)
                    .then(|| self.linked.insert((stat.st_dev, stat.st_ino), path.to_owned()))
                    .flatten();
                match earlier {
                    Some(earlier) => {
                        header.set_entry_type(tar::EntryType::Link);
                        self.link(&mut header, path, earlier.as_os_str().as_bytes())
                    }
                    None => self.file(found, header),
                }
            }
            FileType::Symlink => {
                let target = rustix::fs::readlinkat(found.parent, found.name, Vec::new())
                    .map_err(|error| failed(error.into()))?;
                header.set_entry_type(tar::EntryType::Symlink);
                self.link(&mut header, path, target.as_bytes())
            }
            FileType::Directory => {
                header.set_entry_type(tar::EntryType::Directory);
                self.builder.append_data(&mut header, path, io::empty())
            }
            FileType::Fifo => {
                header.set_entry_type(tar::EntryType::Fifo);
                self.builder.append_data(&mut header, path, io::empty())
            }
            _ => Ok(()),
        }
        .map_err(failed)
    }

    /// Packs a link whose target is kept byte for byte where it fits the header.
    fn link(&mut self, header: &mut tar::Header, path: &Path, target: &[u8]) -> io::Result<()> {
        match header.set_link_name_literal(target) {
            Ok(()) => self.builder.append_data(header, path, io::empty()),
            Err(_) => self.builder.append_link(header, path, std::ffi::OsStr::from_bytes(target)),
        }
    }

    fn file(&mut self, found: &Found<'_>, mut header: tar::Header) -> io::Result<()> {
        // Not blocking, in case it has become a fifo.
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let file = rustix::fs::openat(found.parent, found.name, flags, Mode::empty())?;
        let file = std::fs::File::from(file);
        let size = file.metadata()?.len();
        header.set_entry_type(tar::EntryType::Regular);
        header.set_size(size);
        // The size is written already: a file that shrinks meanwhile is filled up, one that grows cut.
        let content = file.take(size).chain(io::repeat(0)).take(size);
        self.builder.append_data(&mut header, found.path, content)
    }
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
