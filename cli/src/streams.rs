//! Standard streams as queues of chunks, a thread to each, so that any kind of file works and memory
//! stays flat however much flows.

use std::io;
use std::os::fd::AsFd;
use std::thread;

use banger_agent_api::MAX_FRAME_PAYLOAD;
use bytes::Bytes;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use tokio::sync::{mpsc, oneshot};

/// Chunks that wait between a stream and its thread.
pub const QUEUE: usize = 8;

/// Reads standard input in a thread; the queue ends with it.
pub fn read_stdin() -> mpsc::Receiver<Bytes> {
    let (queue, receiver) = mpsc::channel(QUEUE);
    thread::spawn(move || {
        let stdin = io::stdin();
        let mut buffer = vec![0; MAX_FRAME_PAYLOAD];
        loop {
            match rustix::io::read(stdin.as_fd(), &mut buffer) {
                Ok(0) => return,
                Ok(count) => {
                    if queue.blocking_send(Bytes::copy_from_slice(&buffer[..count])).is_err() {
                        return;
                    }
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => wait_for(stdin.as_fd(), PollFlags::IN),
                // As at the end: there is nothing more to pass on.
                Err(_) => return,
            }
        }
    });
    receiver
}

/// Writes a stream in a thread, which ends with the queue or with the first error.
pub fn write_stream(
    stream: impl AsFd + Send + 'static,
) -> (mpsc::Sender<Bytes>, oneshot::Receiver<io::Result<()>>) {
    let (queue, mut receiver) = mpsc::channel::<Bytes>(QUEUE);
    let (report, end) = oneshot::channel();
    thread::spawn(move || {
        let mut result = Ok(());
        while let Some(bytes) = receiver.blocking_recv() {
            result = write_all(&stream, &bytes);
            if result.is_err() {
                break;
            }
        }
        // Whoever hears of the end finds the queue closed.
        drop(receiver);
        let _ = report.send(result);
    });
    (queue, end)
}

/// Writes all of `bytes`, also to a stream that somebody made non-blocking.
pub fn write_all(stream: impl AsFd, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match rustix::io::write(&stream, bytes) {
            Ok(count) => bytes = &bytes[count..],
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => wait_for(stream.as_fd(), PollFlags::OUT),
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Waits for a stream that somebody made non-blocking.
fn wait_for(stream: std::os::fd::BorrowedFd<'_>, flags: PollFlags) {
    let _ = poll(&mut [PollFd::from_borrowed_fd(stream, flags)], None);
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    #[tokio::test]
    async fn output_is_written_whole_and_in_order() {
        let (mut reader, writer) = io::pipe().unwrap();
        let (queue, end) = write_stream(writer);
        let collected = thread::spawn(move || {
            let mut bytes = Vec::new();
            reader.read_to_end(&mut bytes).unwrap();
            bytes
        });
        let mut expected = Vec::new();
        for step in 0..50u8 {
            let chunk = vec![step; 5000];
            expected.extend_from_slice(&chunk);
            queue.send(Bytes::from(chunk)).await.unwrap();
        }
        drop(queue);
        end.await.unwrap().unwrap();
        assert_eq!(collected.join().unwrap(), expected);
    }

    #[tokio::test]
    async fn a_closed_reader_is_reported() {
        let (reader, writer) = io::pipe().unwrap();
        drop(reader);
        let (queue, end) = write_stream(writer);
        queue.send(Bytes::from_static(b"x")).await.unwrap();
        let error = end.await.unwrap().unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
        assert!(queue.send(Bytes::from_static(b"x")).await.is_err());
    }
}
