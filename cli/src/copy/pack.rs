//! A file or tree of this host as a tar stream.
//!
//! Files are opened below their directory without following links, so that a tree that changes while
//! it is read can at worst give strange content. Sockets and devices are left out, and counted.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, Stat};

use super::Arrival;
use super::endpoint::Ending;
use crate::beneath;
use crate::error::CliError;

/// Deepest directory that is packed; each level holds a descriptor.
const DEPTH_LIMIT: usize = 200;

/// What was copied.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Files, directories and links.
    pub entries: u64,
    /// Bytes of files.
    pub bytes: u64,
    /// What a copy cannot be made of: sockets, fifos, devices.
    pub left_out: u64,
}

/// A file, link or directory that is there.
#[derive(Debug)]
pub struct HostTree {
    parent: OwnedFd,
    name: PathBuf,
    /// The path as the user gave it, for messages.
    shown: PathBuf,
    /// Whether it is a directory.
    pub is_directory: bool,
    /// Whether only what the directory holds is meant.
    pub contents: bool,
    /// The permissions that it is to have there, where it is a file.
    file_mode: Option<u32>,
}

impl HostTree {
    /// Finds it; a link as the last component is the thing itself, or what it leads to with `follow`.
    pub fn open(path: &Path, follow: bool) -> Result<Self, CliError> {
        let failed = |error: &dyn std::error::Error| {
            CliError::new(format!("cannot read {}", path.display()))
                .because(&io::Error::other(error.to_string()))
        };
        let ending = Ending::of(path.as_os_str().as_bytes());
        let real = if follow || ending.directory || path.file_name().is_none() {
            path.canonicalize().map_err(|error| failed(&error))?
        } else {
            path.to_owned()
        };
        let (parent, name) = match (real.parent(), real.file_name()) {
            (Some(parent), Some(name)) if parent.as_os_str().is_empty() => (Path::new("."), name),
            (Some(parent), Some(name)) => (parent, name),
            _ => (Path::new("/"), OsStr::new(".")),
        };
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let directory =
            rustix::fs::open(parent, flags, Mode::empty()).map_err(|error| failed(&error))?;
        let stat = rustix::fs::statat(&directory, name, AtFlags::SYMLINK_NOFOLLOW)
            .map_err(|error| failed(&error))?;
        let kind = FileType::from_raw_mode(stat.st_mode);
        if ending.directory && kind != FileType::Directory {
            return Err(CliError::new(format!("{} is no directory", path.display())));
        }
        if !matches!(kind, FileType::RegularFile | FileType::Directory | FileType::Symlink) {
            return Err(CliError::new(format!("{} is no file, directory or link", path.display())));
        }
        Ok(Self {
            parent: directory,
            name: name.into(),
            shown: path.to_owned(),
            is_directory: kind == FileType::Directory,
            contents: ending.contents,
            file_mode: None,
        })
    }

    /// Gives it other permissions there, where it is a file.
    pub fn with_file_mode(mut self, mode: u32) -> Self {
        self.file_mode = Some(mode).filter(|_| !self.is_directory);
        self
    }

    /// The name that it has here; `None` of the root directory.
    pub fn name(&self) -> Option<&Path> {
        (self.name != Path::new(".")).then_some(&*self.name)
    }

    /// Writes it as a tar stream.
    pub fn write_tar<W: Write>(self, arrival: &Arrival, writer: W) -> Result<Tally, CliError> {
        let mut packer = Packer {
            builder: tar::Builder::new(writer),
            linked: HashMap::new(),
            tally: Tally::default(),
            file_mode: self.file_mode,
        };
        let root = match arrival {
            Arrival::Named(name) => name.clone(),
            Arrival::Contents => PathBuf::new(),
        };
        packer
            .entry(self.parent.as_fd(), &self.name, &root, 0)
            .and_then(|()| packer.builder.finish())
            .and_then(|()| packer.builder.get_mut().flush())
            .map_err(|error| {
                CliError::new(format!("cannot copy {}", self.shown.display())).because(&error)
            })?;
        Ok(packer.tally)
    }
}

struct Packer<W: Write> {
    builder: tar::Builder<W>,
    /// Files with more than one name, by device and inode, and a name each was packed under.
    linked: HashMap<(u64, u64), PathBuf>,
    tally: Tally,
    /// Permissions in place of a file's own.
    file_mode: Option<u32>,
}

impl<W: Write> Packer<W> {
    /// Packs `name` in `parent` as `path`, and what is below it; an empty path is not packed itself.
    fn entry(
        &mut self,
        parent: BorrowedFd<'_>,
        name: &Path,
        path: &Path,
        depth: usize,
    ) -> io::Result<()> {
        let stat = match rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => stat,
            // Gone since its directory was read.
            Err(rustix::io::Errno::NOENT) if depth > 0 => return Ok(()),
            Err(error) => return Err(named(path, error.into())),
        };
        let mut header = header(&stat);
        self.tally.entries += 1;
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile => {
                let earlier = (stat.st_nlink > 1)
                    .then(|| self.linked.insert((stat.st_dev, stat.st_ino), path.to_owned()))
                    .flatten();
                match earlier {
                    Some(earlier) => {
                        header.set_entry_type(tar::EntryType::Link);
                        self.link(&mut header, path, earlier.as_os_str().as_bytes())
                    }
                    None => self.file(parent, name, path, header),
                }
            }
            FileType::Symlink => rustix::fs::readlinkat(parent, name, Vec::new())
                .map_err(io::Error::from)
                .and_then(|target| {
                    header.set_entry_type(tar::EntryType::Symlink);
                    self.link(&mut header, path, target.as_bytes())
                }),
            FileType::Directory if depth >= DEPTH_LIMIT => {
                Err(io::Error::other(format!("it is over {DEPTH_LIMIT} directories deep")))
            }
            FileType::Directory => {
                if path.as_os_str().is_empty() {
                    self.tally.entries -= 1;
                } else {
                    header.set_entry_type(tar::EntryType::Directory);
                    self.builder
                        .append_data(&mut header, path, io::empty())
                        .map_err(|error| named(path, error))?;
                }
                return self.children(parent, name, path, depth);
            }
            _ => {
                self.tally.entries -= 1;
                self.tally.left_out += 1;
                Ok(())
            }
        }
        .map_err(|error| named(path, error))
    }

    fn file(
        &mut self,
        parent: BorrowedFd<'_>,
        name: &Path,
        path: &Path,
        mut header: tar::Header,
    ) -> io::Result<()> {
        let file = File::from(beneath::open(parent, name, OFlags::RDONLY)?);
        let metadata = file.metadata()?;
        if !metadata.is_file() {
            return Err(io::Error::other("it has changed while it was read"));
        }
        let size = metadata.len();
        header.set_size(size);
        self.file_mode.iter().for_each(|mode| header.set_mode(*mode));
        self.tally.bytes += size;
        // The size is written already: a file that shrinks meanwhile is filled up, one that grows cut.
        let content = file.take(size).chain(io::repeat(0)).take(size);
        self.builder.append_data(&mut header, path, content)
    }

    /// Packs a link whose target is kept byte for byte where it fits the header.
    fn link(&mut self, header: &mut tar::Header, path: &Path, target: &[u8]) -> io::Result<()> {
        match header.set_link_name_literal(target) {
            Ok(()) => self.builder.append_data(header, path, io::empty()),
            Err(_) => self.builder.append_link(header, path, OsStr::from_bytes(target)),
        }
    }

    fn children(
        &mut self,
        parent: BorrowedFd<'_>,
        name: &Path,
        path: &Path,
        depth: usize,
    ) -> io::Result<()> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY;
        let directory =
            beneath::open(parent, name, flags).map_err(|error| named(path, error.into()))?;
        let mut names = Vec::new();
        for entry in Dir::read_from(&directory)? {
            let name = PathBuf::from(OsStr::from_bytes(entry?.file_name().to_bytes()));
            if name != Path::new(".") && name != Path::new("..") {
                names.push(name);
            }
        }
        names.sort_unstable();
        for child in names {
            self.entry(directory.as_fd(), &child, &path.join(&child), depth + 1)?;
        }
        Ok(())
    }
}

/// Puts the path before what went wrong, once: nobody else knows which of many it was.
fn named(path: &Path, error: io::Error) -> io::Error {
    if error.kind() == io::ErrorKind::BrokenPipe || error.get_ref().is_some() {
        return error;
    }
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}

fn header(stat: &Stat) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(tar::EntryType::Regular);
    header.set_mode(stat.st_mode & 0o7777);
    header.set_uid(u64::from(stat.st_uid));
    header.set_gid(u64::from(stat.st_gid));
    header.set_mtime(u64::try_from(stat.st_mtime).unwrap_or(0));
    header.set_size(0);
    header
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{PermissionsExt, symlink};

    fn packed(tree: HostTree, arrival: &Arrival) -> (Vec<String>, Tally) {
        let mut bytes = Vec::new();
        let tally = tree.write_tar(arrival, &mut bytes).unwrap();
        let mut archive = tar::Archive::new(&bytes[..]);
        let entries = archive.entries().unwrap().map(|entry| {
            let entry = entry.unwrap();
            let (path, header) = (entry.path().unwrap().display().to_string(), entry.header());
            let link = entry.link_name_bytes().map(|name| {
                format!(
                    " -> {}",
                    String::from_utf8_lossy(&name).chars().take(20).collect::<String>()
                )
            });
            format!("{path} {:o}{}", header.mode().unwrap(), link.unwrap_or_default())
        });
        (entries.collect(), tally)
    }

    fn place() -> tempfile::TempDir {
        let place = tempfile::tempdir().unwrap();
        let top = place.path().join("top");
        std::fs::create_dir_all(top.join("d")).unwrap();
        std::fs::set_permissions(top.join("d"), PermissionsExt::from_mode(0o700)).unwrap();
        std::fs::set_permissions(&top, PermissionsExt::from_mode(0o755)).unwrap();
        std::fs::write(top.join("d/f"), "data").unwrap();
        std::fs::set_permissions(top.join("d/f"), PermissionsExt::from_mode(0o750)).unwrap();
        std::fs::hard_link(top.join("d/f"), top.join("h")).unwrap();
        symlink("./odd//../target", top.join("s")).unwrap();
        symlink("x".repeat(150), top.join("t")).unwrap();
        let _ = std::os::unix::net::UnixListener::bind(top.join("z")).unwrap();
        place
    }

    #[test]
    fn modes_links_and_what_is_left_out() {
        let place = place();
        let top = place.path().join("top");
        let (entries, tally) =
            packed(HostTree::open(&top, false).unwrap(), &Arrival::Named("new".into()));
        let long = format!("new/t 777 -> {}", "x".repeat(20));
        assert_eq!(
            entries,
            [
                "new 755",
                "new/d 700",
                "new/d/f 750",
                "new/h 750 -> new/d/f",
                "new/s 777 -> ./odd//../target",
                &long,
            ]
        );
        assert_eq!(tally, Tally { entries: 6, bytes: 4, left_out: 1 });
        let tree = HostTree::open(&top.join("."), false).unwrap();
        assert!(tree.contents);
        assert_eq!(packed(tree, &Arrival::Contents).0[0], "d 700");
    }

    #[test]
    fn a_link_is_itself_unless_it_is_to_be_followed() {
        let place = place();
        symlink("top/d/f", place.path().join("l")).unwrap();
        let of = |follow| {
            let tree = HostTree::open(&place.path().join("l"), follow).unwrap();
            packed(tree, &Arrival::Named("l".into())).0
        };
        assert_eq!(of(false), ["l 777 -> top/d/f"]);
        assert_eq!(of(true), ["l 750"]);
        for bad in ["top/d/f/", "top/d/f/.", "top/missing", "top/z"] {
            assert!(HostTree::open(&place.path().join(bad), false).is_err(), "{bad}");
        }
    }
}
