//! The guest's serial console: a log that cannot grow past its cap, and whoever is attached.
//!
//! ```text
//!   QEMU ──► log ──► attached consoles, each with a bounded queue
//!   QEMU ◄── keys ── one queue for all of them
//! ```
//! The log comes first and waits for no console, so it is whole whoever is attached. QEMU offers the console on a unix socket and throws output away while nobody is connected, so the
//! guest never waits for the daemon. The log's files are those of [`crate::console_log`].

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use tokio::fs::{File, OpenOptions};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::time::sleep;

use crate::console_log::{LOG_CAP, older_half};
use crate::console_port::{GuestSide, Printed};

/// The most bytes taken from the console at once.
const CHUNK: usize = 2 * 1024;
/// The least time from one read to the next: a guest costs the daemon no more than 1000 reads and
/// 2 MiB a second. What is beyond slows the guest down and is then lost, in QEMU. It must not be
/// much longer: QEMU writes what the guest does, byte by byte, and of single bytes the socket holds
/// some 300.
const PACE: Duration = Duration::from_millis(1);

/// Copies the console to the log and to whoever is attached, and what they type to the guest, until
/// QEMU closes it.
pub(crate) async fn follow(console: UnixStream, log: PathBuf, guest: GuestSide) {
    let GuestSide { printed, mut typed } = guest;
    let (output, mut input) = console.into_split();
    let keys = async {
        while let Some(keys) = typed.recv().await {
            // A guest that takes no keys holds up those who type and nothing else.
            if input.write_all(&keys).await.is_err() {
                break;
            }
        }
        std::future::pending().await
    };
    tokio::select! {
        () = keep(output, log, &printed) => {}
        () = keys => {}
    }
}

async fn keep(mut console: impl AsyncRead + Unpin, log: PathBuf, printed: &Printed) {
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
        printed.send(&chunk[..length]);
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
    use crate::console_port::ConsolePort;

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
        let task = tokio::spawn(follow(ours, log.clone(), ConsolePort::new().1));
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
        let task = tokio::spawn(follow(ours, log, ConsolePort::new().1));
        theirs.write_all(&vec![b'x'; 300_000]).await.unwrap();
        drop(theirs);
        task.await.unwrap();
    }

    #[tokio::test]
    async fn who_is_attached_reads_and_types_and_the_log_is_whole_beside_one_that_does_not_read() {
        let directory = tempfile::tempdir().unwrap();
        let log = directory.path().join("console.log");
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let (port, guest) = ConsolePort::new();
        let task = tokio::spawn(follow(ours, log.clone(), guest));
        let (mut one, mut two) = (port.attach().unwrap(), port.attach().unwrap());
        let never_reads = port.attach().unwrap();
        theirs.write_all(b"login: ").await.unwrap();
        for console in [&mut one, &mut two] {
            let mut text = [0; 7];
            console.read_exact(&mut text).await.unwrap();
            assert_eq!(&text, b"login: ");
        }
        one.write_all(b"ro").await.unwrap();
        one.flush().await.unwrap();
        let mut keys = [0; 2];
        theirs.read_exact(&mut keys).await.unwrap();
        assert_eq!(&keys, b"ro");
        two.write_all(b"ot\r").await.unwrap();
        two.flush().await.unwrap();
        let mut keys = [0; 3];
        theirs.read_exact(&mut keys).await.unwrap();
        assert_eq!(&keys, b"ot\r");
        let flood: Vec<u8> =
            (0..200_000_u32).flat_map(|n| format!("{n:06}\n").into_bytes()).collect();
        theirs.write_all(&flood).await.unwrap();
        drop(theirs);
        task.await.unwrap();
        let mut logged = b"login: ".to_vec();
        logged.extend(&flood);
        assert!(std::fs::read(&log).unwrap() == logged);
        let mut rest = Vec::new();
        one.read_to_end(&mut rest).await.unwrap();
        assert!(rest.ends_with(b"199999\n"));
        assert!(port.attach().is_none(), "it has ended");
        drop(never_reads);
    }
}
