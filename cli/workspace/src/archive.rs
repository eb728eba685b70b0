//! Writes the tar that the agent unpacks.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use banger_agent_api::TAR_REMOVAL;

use crate::error::WorkspaceError;

/// A tar under way.
pub(crate) struct Archive<W: Write> {
    builder: tar::Builder<W>,
    /// Directories that are in it.
    directories: HashSet<PathBuf>,
}

impl<W: Write> Archive<W> {
    pub fn new(writer: W) -> Self {
        let mut builder = tar::Builder::new(writer);
        builder.mode(tar::HeaderMode::Complete);
        Self { builder, directories: HashSet::new() }
    }

    /// Has the guest remove a name, a directory only where it is empty.
    pub fn removal(&mut self, path: &Path) -> Result<(), WorkspaceError> {
        let mut header = header(tar::EntryType::new(TAR_REMOVAL), 0o644, 0, now());
        self.append(path, &mut header, io::empty())
    }

    /// Adds a directory and those that it lies in.
    pub fn directory(&mut self, path: &Path) -> Result<(), WorkspaceError> {
        if path.as_os_str().is_empty() || self.directories.contains(path) {
            return Ok(());
        }
        if let Some(parent) = path.parent() {
            self.directory(parent)?;
        }
        self.directories.insert(path.to_owned());
        let mut header = header(tar::EntryType::Directory, 0o755, 0, now());
        self.append(path, &mut header, io::empty())
    }

    /// Adds a file of exactly `size` bytes, whatever happens to `content` meanwhile.
    pub fn file(
        &mut self,
        path: &Path,
        mode: u32,
        size: u64,
        modified: u64,
        content: impl Read,
    ) -> Result<(), WorkspaceError> {
        self.directory(path.parent().unwrap_or(Path::new("")))?;
        let mut header = header(tar::EntryType::Regular, mode, size, modified);
        let exact = content.take(size).chain(io::repeat(0)).take(size);
        self.append(path, &mut header, exact)
    }

    /// Adds a file whose content is at hand.
    pub fn text(&mut self, path: &Path, content: &[u8]) -> Result<(), WorkspaceError> {
        self.file(path, 0o644, content.len() as u64, now(), content)
    }

    /// Adds a symbolic link.
    pub fn link(
        &mut self,
        path: &Path,
        modified: u64,
        target: &[u8],
    ) -> Result<(), WorkspaceError> {
        self.directory(path.parent().unwrap_or(Path::new("")))?;
        let mut header = header(tar::EntryType::Symlink, 0o777, 0, modified);
        // Byte for byte where it fits the header; append_link would tidy the target up.
        if header.set_link_name_literal(target).is_ok() {
            return self.append(path, &mut header, io::empty());
        }
        self.builder
            .append_link(&mut header, path, Path::new(OsStr::from_bytes(target)))
            .map_err(|source| WorkspaceError::Pack { path: path.to_owned(), source })
    }

    fn append(
        &mut self,
        path: &Path,
        header: &mut tar::Header,
        content: impl Read,
    ) -> Result<(), WorkspaceError> {
        self.builder
            .append_data(header, path, content)
            .map_err(|source| WorkspaceError::Pack { path: path.to_owned(), source })
    }

    /// Ends it.
    pub fn finish(self) -> Result<W, WorkspaceError> {
        let failed = |source| WorkspaceError::Pack { path: PathBuf::from("."), source };
        let mut writer = self.builder.into_inner().map_err(failed)?;
        writer.flush().map_err(failed)?;
        Ok(writer)
    }
}

/// The time of directories and links, which git does not keep and a checkout makes anew, in seconds
/// since the epoch.
pub(crate) fn now() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    since.map_or(0, |since| since.as_secs())
}

fn header(kind: tar::EntryType, mode: u32, size: u64, modified: u64) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(size);
    header.set_mtime(modified);
    header.set_uid(0);
    header.set_gid(0);
    header
}
