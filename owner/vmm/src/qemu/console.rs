//! The guest's serial console, written to a log that cannot grow past its cap.
//!
//! QEMU offers the console on a unix socket and throws output away while nobody is connected, so the
//! guest never waits for the daemon. The log's files are those of [`crate::console_log`].

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use tokio::fs::{File, OpenOptions};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::time::sleep;

use crate::console_log::{LOG_CAP, older_half};

/// The most bytes taken from the console at once.
const CHUNK: usize = 2 * 1024;
/// The least time from one read to the next: a guest costs the daemon no more than 1000 reads and
/// 2 MiB a second. What is beyond slows the guest down and is then lost, in QEMU. It must not be
/// much longer: QEMU writes what the guest does, byte by byte, and of single bytes the socket holds
/// some 300.
const PACE: Duration = Duration::from_millis(1);

/// Copies the console to the log until QEMU closes it.
pub(crate) async fn follow(mut console: UnixStream, log: PathBuf) {
    let mut chunk = vec![0; CHUNK];
    let mut writer = LogWriter::new(log, LOG_CAP / 2);
    let mut complained = false;
    while let Ok(length @ 1..) = console.read(&mut chunk).await {
        if let Err(error) = writer.write(&chunk[..length]).await {
            // A full disk must not stop the guest: the output is lost, the console stays drained.
            // Said once, or a noisy guest would fill the daemon's own log as well.
            if !complained {
                tracing::warn!(path = %writer.path.display(), %error, "console output was lost");
                complained = true;
            }
            writer.file = None;
        }
        sleep(PACE).await;
    }
}

struct LogWriter {
    path: PathBuf,
    /// When the current file reaches this many bytes it becomes the older half.
    half: u64,
    /// The current file and its length.
    file: Option<(File, u64)>,
}

impl LogWriter {
    fn new(path: PathBuf, half: u64) -> Self {
        Self { path, half, file: None }
    }

    async fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        if self.file.as_ref().is_some_and(|(_, length)| *length >= self.half) {
            self.file = None;
            tokio::fs::rename(&self.path, older_half(&self.path)).await?;
        }
        if self.file.is_none() {
            let mut options = OpenOptions::new();
            let file = options.append(true).create(true).mode(0o600).open(&self.path).await?;
            let length = file.metadata().await?.len();
            self.file = Some((file, length));
        }
        if let Some((file, length)) = &mut self.file {
            file.write_all(bytes).await?;
            file.flush().await?;
            *length += bytes.len() as u64;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_log_keeps_the_newest_output_below_its_cap() {
        let directory = tempfile::tempdir().unwrap();
        let log = directory.path().join("console.log");
        let mut writer = LogWriter::new(log.clone(), 1000);
        for line in 0..10_000 {
            writer.write(format!("{line:08}\n").as_bytes()).await.unwrap();
        }
        let mut text = std::fs::read_to_string(older_half(&log)).unwrap();
        text.push_str(&std::fs::read_to_string(&log).unwrap());
        assert!(text.len() <= 2 * (1000 + 9), "{}", text.len());
        let lines: Vec<u32> = text.lines().map(|line| line.parse().unwrap()).collect();
        assert_eq!(*lines.last().unwrap(), 9_999);
        assert!(lines.windows(2).all(|pair| pair[1] == pair[0] + 1), "in order, nothing lost");
    }

    #[tokio::test]
    async fn a_log_of_an_earlier_start_is_continued() {
        let directory = tempfile::tempdir().unwrap();
        let log = directory.path().join("console.log");
        std::fs::write(&log, "before\n").unwrap();
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let task = tokio::spawn(follow(ours, log.clone()));
        theirs.write_all(b"after\n").await.unwrap();
        drop(theirs);
        task.await.unwrap();
        assert_eq!(std::fs::read_to_string(&log).unwrap(), "before\nafter\n");
    }

    #[tokio::test]
    async fn a_log_that_cannot_be_written_does_not_stop_the_console() {
        let directory = tempfile::tempdir().unwrap();
        let log = directory.path().join("no-such-directory/console.log");
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let task = tokio::spawn(follow(ours, log));
        theirs.write_all(&vec![b'x'; 300_000]).await.unwrap();
        drop(theirs);
        task.await.unwrap();
    }
}
