//! A machine's serial console: its log, kept within its cap, and whoever is attached.
//!
//! Who is attached reads the log from its end on, each at its own pace, and types into the pipe that
//! is Firecracker's standard input (`console` in the jail's root, which is root's).
//! Firecracker writes the serial console, and its own words, to
//! the file that the helper opened for it, at its end; what is too much is moved to the older half
//! here, by a copy, because Firecracker keeps the file it has. While no daemon runs, the helper cuts
//! the file.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use banger_guest_client::BoxedStream;
use bytes::Bytes;
use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::net::unix::pipe;

use crate::console_log::{LOG_CAP, older_half};
use crate::console_port::console_stream;
use crate::held::HeldProcess;

/// The least time between two looks at a log that is written to.
const PACE: Duration = Duration::from_millis(200);
/// The most that a reader takes at once, and the least time from one read to the next.
const CHUNK: usize = 16 * 1024;
const READ_PACE: Duration = Duration::from_millis(1);

/// Watches the log until dropped.
pub(super) async fn follow(log: PathBuf) {
    if let Err(error) = watch(&log).await {
        // The helper's own bound, which is larger, still holds.
        tracing::warn!(path = %log.display(), %error, "a console log is not kept small");
    }
}

async fn watch(log: &Path) -> io::Result<()> {
    let events = changes_of(log)?;
    loop {
        let path = log.to_owned();
        let moved = tokio::task::spawn_blocking(move || move_older_half(&path, LOG_CAP / 2)).await;
        moved.map_err(io::Error::other)??;
        tokio::time::sleep(PACE).await;
        change(&events).await?;
    }
}

/// Begins to listen for writes to a log.
fn changes_of(log: &Path) -> io::Result<AsyncFd<OwnedFd>> {
    let descriptor = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
    inotify::add_watch(&descriptor, log, WatchFlags::MODIFY)?;
    #[expect(
        deprecated,
        reason = "its successor is unsafe because a type could change its descriptor; OwnedFd keeps \
                  one and the same until it is dropped"
    )]
    AsyncFd::with_interest(descriptor, Interest::READABLE)
}

/// Waits for a write since the last call.
async fn change(events: &AsyncFd<OwnedFd>) -> io::Result<()> {
    // Events that are alike are one while nobody has read them (inotify(7)).
    events.readable().await?.clear_ready();
    let mut buffer = [0; 4096];
    while matches!(rustix::io::read(events.get_ref(), &mut buffer), Ok(1..)) {}
    Ok(())
}

/// What somebody reads of a log.
struct Reader {
    file: File,
    position: u64,
    changes: AsyncFd<OwnedFd>,
    held: Arc<HeldProcess>,
}

impl Reader {
    fn at_end_of(log: &Path, held: Arc<HeldProcess>) -> io::Result<Self> {
        let changes = changes_of(log)?;
        let file = File::open(log)?;
        Ok(Self { position: file.metadata()?.len(), file, changes, held })
    }

    /// Returns what was written since the last call, waiting for it; `None` once Firecracker has ended.
    async fn next(&mut self) -> io::Result<Option<Bytes>> {
        loop {
            // Asked first: what was written before the end is then read after it.
            let has_ended = self.held.has_ended();
            let mut chunk = vec![0; CHUNK];
            let count = self.file.read_at(&mut chunk, self.position)?;
            if count > 0 {
                self.position += count as u64;
                chunk.truncate(count);
                tokio::time::sleep(READ_PACE).await;
                return Ok(Some(chunk.into()));
            }
            if self.file.metadata()?.len() < self.position {
                // What was too much was moved to the older half.
                self.position = 0;
            } else if has_ended {
                return Ok(None);
            } else {
                tokio::select! {
                    changed = change(&self.changes) => changed?,
                    () = self.held.ended() => {}
                }
            }
        }
    }
}

/// Attaches to the console of the machine whose API socket `api` leads to.
pub(super) fn attach(log: &Path, api: &Path, held: Arc<HeldProcess>) -> io::Result<BoxedStream> {
    let socket = std::fs::canonicalize(api)?;
    let root = socket.parent().and_then(Path::parent).ok_or(io::ErrorKind::NotFound)?;
    let keys = pipe::OpenOptions::new().open_sender(root.join("console"));
    let keys = keys.map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => io::Error::other(
            "an earlier banger started this machine; it has a console from its next start on",
        ),
        _ => error,
    })?;
    let reader = Reader::at_end_of(log, held)?;
    let pieces = futures::stream::try_unfold(reader, |mut reader| async move {
        Ok::<_, io::Error>(reader.next().await?.map(|piece| (piece, reader)))
    });
    Ok(console_stream(pieces, keys))
}

/// Moves what a log holds to its older half if it is more than `most` bytes. What is written between
/// the copy and the cut is lost.
fn move_older_half(log: &Path, most: u64) -> io::Result<()> {
    if log.metadata()?.len() <= most {
        return Ok(());
    }
    let older = older_half(log);
    let mut staged = older.clone().into_os_string();
    staged.push(".new");
    let staged = PathBuf::from(staged);
    let copied = copy_end(log, &staged, most);
    let moved = copied.and_then(|()| std::fs::rename(&staged, &older));
    // A full disk must not let the log grow further: then what it held is lost.
    let cut = OpenOptions::new().write(true).open(log)?.set_len(0);
    if moved.is_err() {
        let _ = std::fs::remove_file(&staged);
    }
    moved.and(cut)
}

/// Copies at most the last `most` bytes.
fn copy_end(log: &Path, to: &Path, most: u64) -> io::Result<()> {
    use std::io::Seek;
    let mut from = File::open(log)?;
    let length = from.metadata()?.len();
    from.seek(io::SeekFrom::Start(length.saturating_sub(most)))?;
    let mut options = OpenOptions::new();
    let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(to)?;
    io::copy(&mut from.take(most), &mut file)?;
    file.flush()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_output_stays_and_the_file_too() {
        use std::os::unix::fs::MetadataExt;
        let directory = tempfile::tempdir().unwrap();
        let log = directory.path().join("console.log");
        let mut writer = OpenOptions::new().append(true).create(true).open(&log).unwrap();
        let inode = log.metadata().unwrap().ino();
        for line in 0..1000 {
            writer.write_all(format!("{line:08}\n").as_bytes()).unwrap();
            move_older_half(&log, 900).unwrap();
        }
        assert_eq!(log.metadata().unwrap().ino(), inode);
        let mut text = std::fs::read_to_string(older_half(&log)).unwrap();
        text.push_str(&std::fs::read_to_string(&log).unwrap());
        assert!(text.len() <= 2 * 909, "{}", text.len());
        assert!(text.ends_with("00000998\n00000999\n"), "{text}");
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 2);
    }

    #[test]
    fn of_one_that_grew_meanwhile_the_end_is_kept() {
        let directory = tempfile::tempdir().unwrap();
        let log = directory.path().join("console.log");
        std::fs::write(&log, "x".repeat(10_000) + "end").unwrap();
        move_older_half(&log, 100).unwrap();
        let older = std::fs::read_to_string(older_half(&log)).unwrap();
        assert!(older.len() == 100 && older.ends_with("xend"));
        assert_eq!(log.metadata().unwrap().len(), 0);
    }

    #[tokio::test]
    async fn a_log_is_followed_and_an_idle_one_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        let log = directory.path().join("console.log");
        let mut writer = OpenOptions::new().append(true).create(true).open(&log).unwrap();
        let following = tokio::spawn(follow(log.clone()));
        writer.write_all(&vec![b'x'; 3 << 20]).unwrap();
        let deadline = tokio::time::Instant::now() + Duration::from_secs(60);
        while !older_half(&log).exists() {
            assert!(tokio::time::Instant::now() < deadline && !following.is_finished());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        following.abort();
    }

    #[tokio::test]
    async fn who_is_attached_reads_on_when_the_log_is_cut_and_until_the_end() {
        let directory = tempfile::tempdir().unwrap();
        let log = directory.path().join("console.log");
        let mut writer = OpenOptions::new().append(true).create(true).open(&log).unwrap();
        writer.write_all(b"before\n").unwrap();
        let mut child = std::process::Command::new("/bin/sleep").arg("600").spawn().unwrap();
        let held = Arc::new(HeldProcess::open(child.id()).unwrap().unwrap());
        let mut reader = Reader::at_end_of(&log, held).unwrap();
        writer.write_all(b"one\n").unwrap();
        assert_eq!(reader.next().await.unwrap().unwrap(), "one\n");
        let waiting = tokio::spawn(async move { (reader.next().await.unwrap().unwrap(), reader) });
        move_older_half(&log, 1).unwrap();
        writer.write_all(b"two\n").unwrap();
        let (text, mut reader) = waiting.await.unwrap();
        assert_eq!(text, "two\n");
        writer.write_all(b"last").unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(reader.next().await.unwrap().unwrap(), "last");
        assert!(reader.next().await.unwrap().is_none());
    }
}
