//! Unpacking a tar stream below a directory.
//!
//! The archive may come from anyone and the directory belongs to a guest that nobody trusts:
//! every path is resolved by the kernel beneath the directory, without following any symbolic
//! link. Files, directories, symbolic and hard links are made; anything else is refused. What is
//! in the way of a file or link is replaced; a directory is merged. Entries of the type
//! [`TAR_REMOVAL`] remove.

use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use banger_agent_api::{
    AgentError, Empty, ErrorCode, Frame, FrameReader, FrameWriter, PutTreeCall, PutTreeReply,
    TAR_REMOVAL, WireError,
};
use bytes::Bytes;
use rustix::fs::{AtFlags, Gid, Mode, OFlags, Timespec, Timestamps, Uid};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc;

use super::calls::{begin, refuse};
use super::tree::{CHUNKS, ChunkReader, Tree, plain_path, tree_error};
use super::users;

/// Longest path in an archive, and most entries: bounds for an enemy, not for a repository.
const PATH_LIMIT: usize = 4096;
const ENTRY_LIMIT: u64 = 10_000_000;

/// Runs the call.
pub(super) async fn run<S>(call: PutTreeCall, mut stream: S) -> Result<(), WireError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let opened = users::look_up(call.owner.as_ref()).and_then(|owner| {
        let path = Path::new(std::ffi::OsStr::from_bytes(call.path.as_bytes()));
        let open = || std::fs::create_dir_all(path).and_then(|()| Tree::open(path));
        let tree = open().map_err(|error| tree_error("open directory", path, &error))?;
        Ok(Unpacker::new(tree, owner.identity.uid, owner.identity.gid))
    });
    let mut unpacker = match opened {
        Ok(unpacker) => unpacker,
        Err(error) => return refuse(&mut stream, error).await,
    };
    begin(&mut stream, Empty {}).await?;
    let (reader, writer) = tokio::io::split(stream);
    let (sender, receiver) = mpsc::channel(CHUNKS);
    let complete = Arc::new(AtomicBool::new(false));
    let chunks = ChunkReader { receiver, current: Bytes::new(), complete: Arc::clone(&complete) };
    let unpack = tokio::task::spawn_blocking(move || unpacker.unpack(chunks));
    let fed = feed(FrameReader::new(reader), sender, &complete).await;
    let result = unpack.await.unwrap_or_else(|error| {
        Err(AgentError::new(ErrorCode::Failed, format!("unpacking ended: {error}")))
    });
    // Without the end of the data there is nobody to answer.
    fed?;
    let mut writer = FrameWriter::new(writer);
    match result {
        Ok(reply) => {
            let json = serde_json::to_vec(&reply).map_err(WireError::Json)?;
            writer.send(&Frame::Data(json.into())).await?;
            writer.send(&Frame::DataEnd).await?;
        }
        Err(error) => writer.send(&Frame::Error(error)).await?,
    }
    writer.shutdown().await
}

/// Passes data to the thread until it ends, or until the thread wants no more.
async fn feed(
    mut reader: FrameReader<impl AsyncRead + Unpin>,
    sender: mpsc::Sender<Bytes>,
    complete: &AtomicBool,
) -> Result<(), WireError> {
    loop {
        match reader.next().await? {
            Some(Frame::Data(bytes)) => {
                if sender.send(bytes).await.is_err() {
                    return Ok(());
                }
            }
            Some(Frame::DataEnd) => {
                complete.store(true, Ordering::Release);
                return Ok(());
            }
            Some(_) => {}
            None => return Err(WireError::Truncated),
        }
    }
}

struct Unpacker {
    tree: Tree,
    owner: (Uid, Gid),
    reply: PutTreeReply,
    /// Directories that entries still go into, with the time each gets when it is left: making an
    /// entry changes its directory's time.
    open: Vec<(PathBuf, i64)>,
}

impl Unpacker {
    fn new(tree: Tree, uid: u32, gid: u32) -> Self {
        Self {
            tree,
            owner: (Uid::from_raw(uid), Gid::from_raw(gid)),
            reply: PutTreeReply::default(),
            open: Vec::new(),
        }
    }

    fn unpack(&mut self, source: impl Read) -> Result<PutTreeReply, AgentError> {
        let bad = |error: &io::Error| {
            AgentError::new(ErrorCode::BadArchive, format!("the tar stream is bad: {error}"))
        };
        let mut archive = tar::Archive::new(source);
        for entry in archive.entries().map_err(|error| bad(&error))? {
            self.entry(entry.map_err(|error| bad(&error))?)?;
        }
        self.leave(None);
        Ok(self.reply)
    }

    fn entry(&mut self, mut entry: tar::Entry<'_, impl Read>) -> Result<(), AgentError> {
        let refused = |path: &Path, why: &str| {
            let text = format!("tar entry {}: {why}", path.display());
            AgentError::new(ErrorCode::BadArchive, text)
        };
        let raw = entry.path_bytes().into_owned();
        let raw = Path::new(std::ffi::OsStr::from_bytes(&raw));
        if raw.as_os_str().len() > PATH_LIMIT || self.reply.entries >= ENTRY_LIMIT {
            return Err(refused(raw, "the archive is over the limits"));
        }
        let path = plain_path(raw).ok_or_else(|| refused(raw, "the path leaves the tree"))?;
        let kind = entry.header().entry_type();
        if path.as_os_str().is_empty() && !kind.is_dir() {
            return Err(refused(raw, "the path names the tree itself"));
        }
        self.leave(Some(&path));
        let mode = Mode::from_raw_mode(entry.header().mode().unwrap_or(0o644) & 0o7777);
        let time = i64::try_from(entry.header().mtime().unwrap_or(0)).unwrap_or(0);
        let target = |entry: &tar::Entry<'_, _>| {
            let bytes = entry.link_name_bytes().map(|name| name.into_owned()).unwrap_or_default();
            PathBuf::from(std::ffi::OsString::from_vec(bytes))
        };
        use std::os::unix::ffi::OsStringExt;
        let result = match kind {
            tar::EntryType::Directory => self.directory(&path, mode, time),
            tar::EntryType::Regular | tar::EntryType::Continuous | tar::EntryType::GNUSparse => {
                self.file(&path, mode, time, &mut entry)
            }
            tar::EntryType::Symlink => self.symbolic_link(&path, &target(&entry), time),
            tar::EntryType::Link => match plain_path(&target(&entry)) {
                Some(target) => self.hard_link(&path, &target),
                None => return Err(refused(raw, "a hard link leaves the tree")),
            },
            tar::EntryType::XGlobalHeader => return Ok(()),
            kind if kind.as_byte() == TAR_REMOVAL => self.remove(&path),
            _ => return Err(refused(raw, "only files, directories and links are unpacked")),
        };
        self.reply.entries += 1;
        result.map_err(|error| {
            if error.kind() == io::ErrorKind::UnexpectedEof {
                return refused(raw, "the tar stream ends inside it");
            }
            tree_error("unpack", raw, &error)
        })
    }

    /// Sets the times of the directories that `next` does not lie in.
    fn leave(&mut self, next: Option<&Path>) {
        while let Some((path, time)) =
            self.open.pop_if(|(path, _)| !next.is_some_and(|next| next.starts_with(&*path)))
        {
            if let Ok(directory) = self.tree.directory(&path) {
                let _ = rustix::fs::futimens(&directory, &times(time));
            }
        }
    }

    fn directory(&mut self, path: &Path, mode: Mode, time: i64) -> io::Result<()> {
        let directory = match self.tree.make_directories(path) {
            Err(error) if in_the_way(&error) => {
                let (parent, name) = self.tree.parent(path, true)?;
                rustix::fs::unlinkat(&parent, name, AtFlags::empty())?;
                self.tree.make_directories(path)?
            }
            other => other?,
        };
        self.own(directory.as_fd())?;
        rustix::fs::fchmod(&directory, mode)?;
        self.open.push((path.to_path_buf(), time));
        Ok(())
    }

    fn file(
        &mut self,
        path: &Path,
        mode: Mode,
        time: i64,
        content: &mut impl Read,
    ) -> io::Result<()> {
        let (parent, name) = self.tree.parent(path, true)?;
        clear(&parent, name)?;
        let flags =
            OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        // Closed to others until it has its owner.
        let file = rustix::fs::openat(&parent, name, flags, Mode::from_raw_mode(0o600))?;
        let mut file = std::fs::File::from(file);
        self.reply.bytes += io::copy(content, &mut file)?;
        self.own(file.as_fd())?;
        // After the owner: a change of owner takes the set-user-id bit away.
        rustix::fs::fchmod(&file, mode)?;
        Ok(rustix::fs::futimens(&file, &times(time))?)
    }

    fn symbolic_link(&mut self, path: &Path, target: &Path, time: i64) -> io::Result<()> {
        let (parent, name) = self.tree.parent(path, true)?;
        clear(&parent, name)?;
        // Its target is only text here; whoever follows it later is in the guest anyway.
        rustix::fs::symlinkat(target, &parent, name)?;
        let (uid, gid) = self.owner;
        rustix::fs::chownat(&parent, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?;
        Ok(rustix::fs::utimensat(&parent, name, &times(time), AtFlags::SYMLINK_NOFOLLOW)?)
    }

    fn hard_link(&mut self, path: &Path, target: &Path) -> io::Result<()> {
        let (from, from_name) = self.tree.parent(target, false)?;
        let (parent, name) = self.tree.parent(path, true)?;
        if path == target {
            return Ok(());
        }
        clear(&parent, name)?;
        Ok(rustix::fs::linkat(&from, from_name, &parent, name, AtFlags::empty())?)
    }

    /// Removes a file, a link or an empty directory; anything else stays.
    fn remove(&self, path: &Path) -> io::Result<()> {
        use rustix::io::Errno;
        let (parent, name) = match self.tree.parent(path, false) {
            Ok(found) => found,
            // Its directory is gone, or is no directory any more.
            Err(error) if error.kind() == io::ErrorKind::NotFound || in_the_way(&error) => {
                return Ok(());
            }
            Err(error) => return Err(error),
        };
        let result = match rustix::fs::unlinkat(&parent, name, AtFlags::empty()) {
            Err(Errno::ISDIR) => rustix::fs::unlinkat(&parent, name, AtFlags::REMOVEDIR),
            other => other,
        };
        match result {
            Ok(()) | Err(Errno::NOENT | Errno::NOTEMPTY | Errno::EXIST) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    fn own(&self, fd: std::os::fd::BorrowedFd<'_>) -> io::Result<()> {
        let (uid, gid) = self.owner;
        Ok(rustix::fs::fchown(fd, Some(uid), Some(gid))?)
    }
}

fn in_the_way(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error().map(rustix::io::Errno::from_raw_os_error),
        Some(rustix::io::Errno::NOTDIR | rustix::io::Errno::LOOP)
    )
}

/// Removes a file or link that is in the way; a directory stays and makes the caller fail.
fn clear(parent: &OwnedFd, name: &std::ffi::OsStr) -> io::Result<()> {
    match rustix::fs::unlinkat(parent, name, AtFlags::empty()) {
        Ok(()) | Err(rustix::io::Errno::NOENT | rustix::io::Errno::ISDIR) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

fn times(seconds: i64) -> Timestamps {
    let time = Timespec { tv_sec: seconds, tv_nsec: 0 };
    Timestamps { last_access: time, last_modification: time }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{MetadataExt, PermissionsExt};

    fn unpack(directory: &Path, archive: &[u8]) -> Result<PutTreeReply, AgentError> {
        let (uid, gid) = (rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw());
        Unpacker::new(Tree::open(directory).unwrap(), uid, gid).unpack(archive)
    }

    /// Adds an entry whose path and link are written as they are, however wrong.
    fn add(out: &mut Vec<u8>, path: &str, kind: tar::EntryType, link: &str, data: &[u8]) {
        let mut header = tar::Header::new_gnu();
        header.as_old_mut().name[..path.len()].copy_from_slice(path.as_bytes());
        header.as_old_mut().linkname[..link.len()].copy_from_slice(link.as_bytes());
        header.set_entry_type(kind);
        header.set_size(data.len() as u64);
        header.set_mode(0o4751);
        header.set_mtime(1_000_000);
        header.set_cksum();
        out.extend_from_slice(header.as_bytes());
        out.extend_from_slice(data);
        out.resize(out.len().next_multiple_of(512), 0);
    }

    /// Path, kind, link target.
    type Entry<'a> = (&'a str, tar::EntryType, &'a str);

    fn archive(entries: &[Entry<'_>]) -> Vec<u8> {
        let mut out = Vec::new();
        for (path, kind, link) in entries {
            add(&mut out, path, *kind, link, if *kind == FILE { b"data" } else { b"" });
        }
        out.resize(out.len() + 1024, 0);
        out
    }

    const FILE: tar::EntryType = tar::EntryType::Regular;
    const LINK: tar::EntryType = tar::EntryType::Link;
    const SYMLINK: tar::EntryType = tar::EntryType::Symlink;

    #[test]
    fn hostile_archives_change_nothing_outside() {
        let outside = tempfile::tempdir().unwrap();
        let victim = outside.path().join("victim");
        std::fs::write(&victim, "safe").unwrap();
        let (out, file) = (outside.path().to_str().unwrap(), victim.to_str().unwrap());
        let hostile: [(&str, Vec<Entry>); 8] = [
            ("absolute", vec![("/victim", FILE, "")]),
            ("climbing", vec![("a/../../victim", FILE, "")]),
            ("through a link", vec![("l", SYMLINK, out), ("l/victim", FILE, "")]),
            ("directory through a link", vec![("l", SYMLINK, out), ("l/new/x", FILE, "")]),
            ("absolute hard link", vec![("h", LINK, file), ("h", FILE, "")]),
            ("climbing hard link", vec![("h", LINK, "../victim")]),
            ("hard link through a link", vec![("l", SYMLINK, out), ("h", LINK, "l/victim")]),
            ("device", vec![("d", tar::EntryType::Char, "")]),
        ];
        for (what, entries) in hostile {
            let inside = tempfile::tempdir().unwrap();
            assert!(unpack(inside.path(), &archive(&entries)).is_err(), "{what}");
            assert_eq!(std::fs::read_to_string(&victim).unwrap(), "safe", "{what}");
            assert_eq!(std::fs::read_dir(outside.path()).unwrap().count(), 1, "{what}");
        }
    }

    #[test]
    fn a_link_in_the_way_is_replaced_not_written_through() {
        let outside = tempfile::NamedTempFile::new().unwrap();
        let inside = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink(outside.path(), inside.path().join("f")).unwrap();
        std::os::unix::fs::symlink("/", inside.path().join("d")).unwrap();
        let entries = [("f", FILE, ""), ("d", tar::EntryType::Directory, ""), ("d/x", FILE, "")];
        unpack(inside.path(), &archive(&entries)).unwrap();
        assert_eq!(std::fs::metadata(outside.path()).unwrap().len(), 0);
        assert!(inside.path().join("f").symlink_metadata().unwrap().is_file());
        assert!(inside.path().join("d/x").is_file());
    }

    #[test]
    fn removals_take_files_links_and_empty_directories_only() {
        let outside = tempfile::tempdir().unwrap();
        std::fs::write(outside.path().join("victim"), "safe").unwrap();
        let inside = tempfile::tempdir().unwrap();
        let here = |name: &str| inside.path().join(name);
        std::fs::create_dir_all(here("full/empty")).unwrap();
        std::fs::write(here("full/kept"), "").unwrap();
        std::fs::write(here("file"), "").unwrap();
        std::os::unix::fs::symlink(outside.path(), here("link")).unwrap();
        let removal = tar::EntryType::new(TAR_REMOVAL);
        let names = ["file", "link/victim", "full", "full/empty", "none", "none/deep", "file/x"];
        let entries: Vec<Entry> = names.into_iter().map(|name| (name, removal, "")).collect();
        unpack(inside.path(), &archive(&entries)).unwrap();
        assert!(!here("file").exists() && !here("full/empty").exists());
        assert!(here("full/kept").exists() && outside.path().join("victim").exists());
        unpack(inside.path(), &archive(&[("link", removal, "")])).unwrap();
        assert!(here("link").symlink_metadata().is_err() && outside.path().exists());
        for bad in ["../victim", "/victim"] {
            assert!(unpack(inside.path(), &archive(&[(bad, removal, "")])).is_err(), "{bad}");
        }
    }

    #[test]
    fn truncated_archives_are_errors() {
        let full = archive(&[("a", FILE, ""), ("b", FILE, "")]);
        for length in [1, 100, 511, 514, 1024 + 512 + 2] {
            let inside = tempfile::tempdir().unwrap();
            assert!(unpack(inside.path(), &full[..length]).is_err(), "{length}");
        }
    }

    #[test]
    fn modes_times_and_links_are_kept() {
        let inside = tempfile::tempdir().unwrap();
        let entries = [
            ("d", tar::EntryType::Directory, ""),
            ("d/f", FILE, ""),
            ("d/h", LINK, "d/f"),
            ("d/s", SYMLINK, "../anywhere"),
            ("e/deep/f", FILE, ""),
        ];
        let reply = unpack(inside.path(), &archive(&entries)).unwrap();
        assert_eq!(reply, PutTreeReply { entries: 5, bytes: 8 });
        let file = std::fs::metadata(inside.path().join("d/f")).unwrap();
        assert_eq!((file.permissions().mode() & 0o7777, file.mtime()), (0o4751, 1_000_000));
        assert_eq!(file.ino(), std::fs::metadata(inside.path().join("d/h")).unwrap().ino());
        assert_eq!(std::fs::metadata(inside.path().join("d")).unwrap().mtime(), 1_000_000);
        let link = std::fs::read_link(inside.path().join("d/s")).unwrap();
        assert_eq!(link, Path::new("../anywhere"));
        // Unpacking again replaces.
        unpack(inside.path(), &archive(&entries)).unwrap();
    }
}
