//! Where people attach to a guest's serial console.
//!
//! What the guest prints goes to each of them by a queue of its own place in one ring: who does not
//! read for long misses the oldest, is told so, and holds up neither the guest nor the others. What
//! they type goes by one bounded queue: a guest that takes no keys holds up those who type.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use banger_guest_client::BoxedStream;
use bytes::Bytes;
use futures::{SinkExt, Stream};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::{broadcast, mpsc};
use tokio_util::io::{CopyToBytes, SinkWriter, StreamReader};
use tokio_util::sync::PollSender;

/// Pieces of output that wait for a slow reader, each what was read at once (2 KiB at most).
const PRINTED: usize = 256;
/// Pieces of input that wait for a slow guest.
const TYPED: usize = 16;
/// What is shown in the place of output that a reader was too slow for.
pub(crate) const LEFT_OUT: &[u8] =
    b"\r\n[banger: output was left out here; banger vm logs has it]\r\n";

/// The place to attach to.
#[derive(Debug)]
pub(crate) struct ConsolePort {
    printed: broadcast::WeakSender<Bytes>,
    typed: mpsc::Sender<Bytes>,
}

/// The guest's side of it; when that is dropped, every attached stream ends.
#[derive(Debug)]
pub(crate) struct GuestSide {
    pub(crate) printed: Printed,
    pub(crate) typed: mpsc::Receiver<Bytes>,
}

/// Hands on what the guest prints.
#[derive(Debug)]
pub(crate) struct Printed(broadcast::Sender<Bytes>);

impl Printed {
    /// Never waits.
    pub(crate) fn send(&self, bytes: &[u8]) {
        if self.0.receiver_count() > 0 {
            let _ = self.0.send(Bytes::copy_from_slice(bytes));
        }
    }
}

impl ConsolePort {
    pub(crate) fn new() -> (Self, GuestSide) {
        let (printed, _) = broadcast::channel(PRINTED);
        let (keys, typed) = mpsc::channel(TYPED);
        let port = Self { printed: printed.downgrade(), typed: keys };
        (port, GuestSide { printed: Printed(printed), typed })
    }

    /// Attaches; `None` where the guest's side has ended.
    pub(crate) fn attach(&self) -> Option<BoxedStream> {
        let receiver = self.printed.upgrade()?.subscribe();
        let pieces = futures::stream::unfold(receiver, |mut receiver| async move {
            match receiver.recv().await {
                Ok(piece) => Some((io::Result::Ok(piece), receiver)),
                Err(broadcast::error::RecvError::Lagged(_)) => {
                    Some((Ok(Bytes::from_static(LEFT_OUT)), receiver))
                }
                Err(broadcast::error::RecvError::Closed) => None,
            }
        });
        let ended = |_| io::Error::from(io::ErrorKind::BrokenPipe);
        let keys = PollSender::new(self.typed.clone()).sink_map_err(ended);
        Some(console_stream(pieces, SinkWriter::new(CopyToBytes::new(keys))))
    }
}

/// Somebody who is attached.
struct Console {
    output: Pin<Box<dyn AsyncRead + Send>>,
    input: Pin<Box<dyn AsyncWrite + Send>>,
}

/// Makes one stream of what is printed and of where to type.
pub(crate) fn console_stream(
    printed: impl Stream<Item = io::Result<Bytes>> + Send + 'static,
    input: impl AsyncWrite + Send + 'static,
) -> BoxedStream {
    let output = Box::pin(StreamReader::new(Box::pin(printed)));
    Box::new(Console { output, input: Box::pin(input) })
}

impl std::fmt::Debug for Console {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Console").finish_non_exhaustive()
    }
}

impl AsyncRead for Console {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.output.as_mut().poll_read(context, buffer)
    }
}

impl AsyncWrite for Console {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.input.as_mut().poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.input.as_mut().poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.input.as_mut().poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    #[tokio::test]
    async fn a_slow_reader_is_told_that_it_missed_something() {
        let (port, guest) = ConsolePort::new();
        let mut slow = port.attach().unwrap();
        for number in 0..2 * PRINTED {
            guest.printed.send(format!("{number}\n").as_bytes());
        }
        drop(guest);
        let mut text = Vec::new();
        slow.read_to_end(&mut text).await.unwrap();
        assert!(text.starts_with(LEFT_OUT), "{}", String::from_utf8_lossy(&text));
        assert!(text.ends_with(b"511\n"));
    }

    #[tokio::test]
    async fn keys_wait_for_a_guest_that_takes_none() {
        let (port, mut guest) = ConsolePort::new();
        let mut console = port.attach().unwrap();
        let typing = tokio::spawn(async move {
            for _ in 0..2 * TYPED {
                console.write_all(b"x").await.unwrap();
            }
            console.flush().await.unwrap();
            console
        });
        tokio::task::yield_now().await;
        assert!(!typing.is_finished());
        for _ in 0..2 * TYPED {
            assert_eq!(guest.typed.recv().await.unwrap(), "x");
        }
        let mut console = typing.await.unwrap();
        drop(guest);
        assert!(console.write_all(b"x").await.is_err());
    }
}
