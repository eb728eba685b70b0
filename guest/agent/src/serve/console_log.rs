//! The main process's output on the machine's console, which the host keeps as the VM's log.
//!
//! A console is slow (a serial port) and may stand still, so a thread of its own writes. Whoever has
//! no other reader of the output waits for it; with a client attached, what the console cannot take
//! in time is left out, and said to be.

use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};

use crate::console;

/// Chunks of output that wait for the console.
const QUEUE: usize = 16;

/// How long the console may take for the last of it.
const FLUSH_PATIENCE: Duration = Duration::from_secs(5);

enum Entry {
    Output(Vec<u8>),
    Flush(oneshot::Sender<()>),
}

/// Where the main process's output goes.
#[derive(Debug)]
pub(super) struct ConsoleLog {
    queue: Option<mpsc::Sender<Entry>>,
    left_out: u64,
}

impl ConsoleLog {
    /// Opens the console; a machine without one has no log, and says so in the kernel's.
    pub fn open() -> Self {
        let nowait = i32::try_from(rustix::fs::OFlags::NOCTTY.bits()).unwrap_or(0);
        let opened =
            std::fs::OpenOptions::new().write(true).custom_flags(nowait).open("/dev/console");
        match opened {
            Ok(console) => Self::over(console),
            Err(error) => {
                console::error(&format!("the main process has no log: /dev/console: {error}"));
                Self { queue: None, left_out: 0 }
            }
        }
    }

    fn over(mut console: impl Write + Send + 'static) -> Self {
        let (queue, mut entries) = mpsc::channel(QUEUE);
        let write = move || {
            while let Some(entry) = entries.blocking_recv() {
                match entry {
                    // A console that cannot be written to is no reason to end a program.
                    Entry::Output(bytes) => drop(console.write_all(&bytes)),
                    Entry::Flush(done) => drop(done.send(())),
                }
            }
        };
        let thread = std::thread::Builder::new().stack_size(64 * 1024).spawn(write);
        Self { queue: thread.is_ok().then_some(queue), left_out: 0 }
    }

    /// Adds output. With `others`, who have it too, it never waits.
    pub async fn write(&mut self, bytes: &[u8], others: bool) {
        let Some(queue) = &self.queue else { return };
        if !others {
            self.tell_left_out(true).await;
            let Some(queue) = &self.queue else { return };
            let _ = queue.send(Entry::Output(bytes.to_vec())).await;
            return;
        }
        // Room for the note of what was left out, too.
        if queue.capacity() < 2 {
            self.left_out += u64::try_from(bytes.len()).unwrap_or(u64::MAX);
            return;
        }
        self.tell_left_out(false).await;
        if let Some(queue) = &self.queue {
            let _ = queue.try_send(Entry::Output(bytes.to_vec()));
        }
    }

    async fn tell_left_out(&mut self, wait: bool) {
        let Some(queue) = self.queue.as_ref().filter(|_| self.left_out > 0) else { return };
        let note = format!("\n[banger: {} bytes of output are not in this log]\n", self.left_out);
        self.left_out = 0;
        let entry = Entry::Output(note.into_bytes());
        if wait {
            let _ = queue.send(entry).await;
        } else {
            let _ = queue.try_send(entry);
        }
    }

    /// Waits until the console has everything, or takes too long.
    pub async fn flush(&mut self) {
        let flushed = async {
            self.tell_left_out(true).await;
            let (done, wait) = oneshot::channel();
            if let Some(queue) = &self.queue
                && queue.send(Entry::Flush(done)).await.is_ok()
            {
                let _ = wait.await;
            }
        };
        let _ = tokio::time::timeout(FLUSH_PATIENCE, flushed).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{Arc, Mutex, mpsc as blocking};

    /// A console that writes a chunk each time it is told to.
    struct Slow {
        written: Arc<Mutex<Vec<u8>>>,
        go: blocking::Receiver<()>,
    }

    impl Write for Slow {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            let _ = self.go.recv();
            self.written.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[tokio::test]
    async fn a_slow_console_holds_up_nobody_who_has_another_reader() {
        let (written, (go, wait)) = (Arc::default(), blocking::channel());
        let mut log = ConsoleLog::over(Slow { written: Arc::clone(&written), go: wait });
        let chunks = QUEUE * 4;
        for _ in 0..chunks {
            log.write(b"0123456789", true).await;
        }
        drop(go);
        log.flush().await;
        let text = String::from_utf8(written.lock().unwrap().clone()).unwrap();
        let whole = text.matches("0123456789").count();
        assert!((QUEUE - 2..chunks).contains(&whole), "{text}");
        let note = format!("{} bytes of output are not in this log", (chunks - whole) * 10);
        assert!(text.contains(&note), "{text}");
    }

    #[tokio::test]
    async fn without_another_reader_nothing_is_lost() {
        let (written, (go, wait)) = (Arc::default(), blocking::channel());
        let mut log = ConsoleLog::over(Slow { written: Arc::clone(&written), go: wait });
        std::thread::spawn(move || while go.send(()).is_ok() {});
        for number in 0..100_u8 {
            log.write(&[number], false).await;
        }
        log.flush().await;
        assert_eq!(*written.lock().unwrap(), (0..100).collect::<Vec<u8>>());
    }
}
