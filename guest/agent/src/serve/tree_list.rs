//! Listing a directory tree, or some names of it: kinds, sizes and times, without the content.

use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use banger_agent_api::{
    AgentError, FrameWriter, ListEntriesCall, ListTreeCall, ListTreeReply, Listed, ListedKind,
    WireError,
};
use rustix::fs::{FileType, Stat};
use tokio::io::{AsyncRead, AsyncWrite};

use super::tree::{ChunkWriter, tree_error};
use super::tree_stream::{each_name, open, open_with_names, path_of, send};
use super::tree_walk::{Found, below, named};

/// Runs the call.
pub(super) async fn run<S>(call: ListTreeCall, mut stream: S) -> Result<(), WireError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let path = path_of(&call.path);
    let reply = ListTreeReply { now_nanos: now() };
    let Some(tree) = open(&path, reply, &mut stream).await? else { return Ok(()) };
    send(FrameWriter::new(stream), move |out| {
        let mut lister = Lister { out, record: Vec::new() };
        let failed = |error: std::io::Error| tree_error("list", &path, &error);
        let stat = rustix::fs::fstat(tree.as_fd()).map_err(|error| failed(error.into()))?;
        lister.record(&stat, Path::new("")).map_err(failed)?;
        below("list", tree.as_fd(), &mut PathBuf::new(), &mut |found| {
            lister.found(found)?;
            Ok(!call.skip.iter().any(|skip| skip.as_bytes() == found.name.as_bytes()))
        })?;
        lister.out.flush().map_err(failed)
    })
    .await
}

/// Runs the call that lists some names.
pub(super) async fn run_entries<S>(call: ListEntriesCall, stream: S) -> Result<(), WireError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let path = path_of(&call.path);
    let reply = ListTreeReply { now_nanos: now() };
    let begun = open_with_names(&path, reply, stream).await?;
    let Some((tree, names, writer)) = begun else { return Ok(()) };
    send(writer, move |out| {
        let mut lister = Lister { out, record: Vec::new() };
        each_name(&names, |name| named("list", &tree, name, |found| lister.found(found)))?;
        lister.out.flush().map_err(|error| tree_error("list", &path, &error))
    })
    .await
}

/// The guest's clock, nanoseconds since 1970 UTC.
fn now() -> i64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
}

struct Lister {
    out: ChunkWriter,
    record: Vec<u8>,
}

impl Lister {
    fn found(&mut self, found: &Found<'_>) -> Result<(), AgentError> {
        let failed = |error| tree_error("list", found.path, &error);
        self.record(&found.stat, found.path).map_err(failed)
    }

    fn record(&mut self, stat: &Stat, path: &Path) -> std::io::Result<()> {
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
            name: path.as_os_str().as_bytes().to_vec(),
        };
        self.record.clear();
        listed.encode(&mut self.record);
        self.out.write_all(&self.record)
    }
}

#[cfg(test)]
mod tests {
    use banger_agent_api::ListingDecoder;
    use tokio::sync::mpsc;

    use super::*;
    use crate::serve::tree::{CHUNKS, Tree};

    fn listed(top: &Path, names: &[&str]) -> Result<Vec<(Vec<u8>, ListedKind)>, AgentError> {
        let (sender, mut receiver) = mpsc::channel(CHUNKS);
        let out = ChunkWriter { sender, buffer: Vec::new() };
        let mut lister = Lister { out, record: Vec::new() };
        let tree = Tree::open(top).unwrap();
        each_name(names.join("\0").as_bytes(), |name| {
            named("list", &tree, name, |found| lister.found(found))
        })?;
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
