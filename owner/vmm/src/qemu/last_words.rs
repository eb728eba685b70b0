//! What QEMU wrote to its standard error before it ended.
//!
//! A guest can make QEMU print, so what is kept must be bounded whether or not a daemon is there to
//! look after it, and it must never make QEMU wait. So QEMU's standard error is a FIFO that QEMU
//! itself holds open for reading and writing, non-blocking: without a reader the kernel keeps at
//! most one pipe buffer and drops the rest. The daemon that holds the VM drains it, keeps the last
//! [`KEPT`] bytes and mirrors them to a small file, from which a later daemon learns them; a daemon
//! that adopts the VM opens the FIFO again by name.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustix::fs::{CWD, FileType, Mode, OFlags, mknodat};
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;
use tokio::time::{Instant, sleep_until};

use super::files::RuntimeFiles;
use crate::task::Task;

/// How many bytes of the end are kept.
const KEPT: usize = 4096;
/// The longest reason made of them, in characters.
const REASON_LIMIT: usize = 400;
/// A flood is read at most this many times, of [`KEPT`] bytes, in each [`WINDOW`].
const READS_IN_WINDOW: u32 = 20;
const WINDOW: Duration = Duration::from_secs(1);

/// The end of QEMU's standard error, kept up to date by a task of its own, which ends with this.
#[derive(Debug)]
pub(crate) struct LastWords {
    kept: Arc<Kept>,
    task: Task,
}

#[derive(Debug, Default)]
struct Kept(Mutex<Vec<u8>>);

/// Makes the FIFO and returns QEMU's end of it.
pub(crate) fn make_fifo(files: &RuntimeFiles) -> io::Result<File> {
    mknodat(CWD, &files.stderr, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0)?;
    let nonblocking = i32::try_from(OFlags::NONBLOCK.bits()).unwrap_or_default();
    OpenOptions::new().read(true).write(true).custom_flags(nonblocking).open(&files.stderr)
}

impl LastWords {
    /// Begins to follow the FIFO, with what an earlier daemon kept as the beginning. The task ends
    /// with QEMU, which is the last to hold the FIFO open for writing.
    pub(crate) fn follow(files: &RuntimeFiles) -> io::Result<Self> {
        let receiver = pipe::OpenOptions::new().open_receiver(&files.stderr)?;
        let kept = Arc::new(Kept(Mutex::new(remembered(&files.last_words))));
        let drain = drain(receiver, Arc::clone(&kept), files.last_words.clone());
        Ok(Self { kept, task: Task::spawn(drain) })
    }

    /// Waits until QEMU's end of the FIFO is closed and all it wrote has been read.
    pub(crate) async fn complete(&self) {
        self.task.finished().await;
    }

    /// Returns the last message in printable words, if there are any.
    pub(crate) fn reason(&self) -> Option<String> {
        printable_reason(&self.kept.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Kept {
    fn push(&self, bytes: &[u8]) -> Vec<u8> {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        kept.extend_from_slice(bytes);
        keep_the_end(&mut kept);
        kept.clone()
    }
}

async fn drain(mut receiver: pipe::Receiver, words: Arc<Kept>, mirror: PathBuf) {
    let mut chunk = vec![0; KEPT];
    let mut window_start = Instant::now();
    let mut window_reads = 0;
    while let Ok(length @ 1..) = receiver.read(&mut chunk).await {
        let kept = words.push(&chunk[..length]);
        mirror_to(&mirror, &kept);
        window_reads += 1;
        if window_start.elapsed() >= WINDOW {
            window_start = Instant::now();
            window_reads = 0;
        } else if window_reads >= READS_IN_WINDOW {
            sleep_until(window_start + WINDOW).await;
        }
    }
}

/// Reads what an earlier daemon kept.
fn remembered(mirror: &Path) -> Vec<u8> {
    let mut kept = std::fs::read(mirror).unwrap_or_default();
    keep_the_end(&mut kept);
    kept
}

/// Writes the mirror anew. It is a memory aid: where it cannot be written, the words in memory
/// still serve this daemon.
fn mirror_to(mirror: &Path, kept: &[u8]) {
    let written = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(mirror)
        .and_then(|mut file| io::Write::write_all(&mut file, kept));
    if let Err(error) = written {
        tracing::debug!(path = %mirror.display(), %error, "QEMU's last words were not kept");
    }
}

fn keep_the_end(bytes: &mut Vec<u8>) {
    let excess = bytes.len().saturating_sub(KEPT);
    bytes.drain(..excess);
}

/// Returns the last message on one line, without control characters and without QEMU's own name
/// before it. A message begins with that name and may have more lines.
fn printable_reason(bytes: &[u8]) -> Option<String> {
    const NAME: &str = "qemu-system-x86_64: ";
    let text = String::from_utf8_lossy(bytes);
    let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    let first = lines.iter().rposition(|line| line.starts_with(NAME));
    let message = lines.get(first.unwrap_or(lines.len().saturating_sub(1))..)?;
    let message = message.join(" ");
    let message = message.strip_prefix(NAME).unwrap_or(&message);
    let printable: String = message
        .chars()
        .map(|character| if character.is_control() { ' ' } else { character })
        .take(REASON_LIMIT)
        .collect();
    (!printable.is_empty()).then_some(printable)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn a_reason_is_one_short_printable_line() {
        assert_eq!(printable_reason(b""), None);
        assert_eq!(printable_reason(b"\n \n"), None);
        let text = b"warning: x\nqemu-system-x86_64: -blockdev {}: no such file\n\n";
        assert_eq!(printable_reason(text).unwrap(), "-blockdev {}: no such file");
        let text = b"qemu-system-x86_64: old\nqemu-system-x86_64: Failed to lock\nIs it in use?\n";
        assert_eq!(printable_reason(text).unwrap(), "Failed to lock Is it in use?");
        assert_eq!(printable_reason(b"one\ntwo\n").unwrap(), "two");
        assert_eq!(printable_reason(b"\x1b[31mred\xff").unwrap(), " [31mred\u{fffd}");
        assert_eq!(printable_reason(&[b'x'; 5000]).unwrap().len(), REASON_LIMIT);
    }

    #[tokio::test]
    async fn nobody_reading_never_blocks_the_writer_and_the_end_is_kept() {
        let directory = tempfile::tempdir().unwrap();
        let files = RuntimeFiles::below(directory.path());
        let mut stderr = make_fifo(&files).unwrap();
        // More than any pipe buffer holds, with nobody reading: dropped, not waited for.
        let mut dropped = 0;
        for _ in 0..64 {
            if stderr.write(&[b'x'; 65536]).is_err() {
                dropped += 1;
            }
        }
        assert!(dropped > 0);

        let words = LastWords::follow(&files).unwrap();
        loop {
            if stderr.write_all(b"\nthe last word\n").is_ok() {
                break;
            }
            tokio::task::yield_now().await;
        }
        while words.reason().as_deref() != Some("the last word") {
            tokio::task::yield_now().await;
        }
        drop(stderr);
        words.complete().await;
        let remembered = remembered(&files.last_words);
        assert_eq!(printable_reason(&remembered).unwrap(), "the last word");
        assert!(std::fs::metadata(&files.last_words).unwrap().len() <= KEPT as u64);
    }
}
