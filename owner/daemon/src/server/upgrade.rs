//! Connections that leave HTTP: byte streams of a client after `101 Switching Protocols`.

use std::time::Duration;

use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use banger_daemon_api::error::ErrorCode;
use bytes::Bytes;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use rustix::event::{PollFd, PollFlags};
use tokio::io::{AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::UnixStream;

use super::failure::Failure;
use super::refusal::ExplainedRefusals;

/// How long a guest has to take what a client sent that is gone.
const LAST_BYTES: Duration = Duration::from_secs(2);

/// A request that asks for another protocol.
#[derive(Debug)]
pub struct Upgrade {
    protocol: Vec<u8>,
    on_upgrade: OnUpgrade,
}

impl<S: Send + Sync> FromRequestParts<S> for Upgrade {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self, Failure> {
        let protocol = parts.headers.get(header::UPGRADE).map(|value| value.as_bytes().to_vec());
        match (protocol, parts.extensions.remove::<OnUpgrade>()) {
            (Some(protocol), Some(on_upgrade)) => Ok(Self { protocol, on_upgrade }),
            _ => Err(Failure::new(
                ErrorCode::BadRequest,
                "this path needs the headers `connection: upgrade` and `upgrade`",
            )),
        }
    }
}

impl Upgrade {
    /// Checks that the client asks for `protocol`.
    pub fn expect(&self, protocol: &'static str) -> Result<(), Failure> {
        if self.protocol.eq_ignore_ascii_case(protocol.as_bytes()) {
            return Ok(());
        }
        Err(Failure::new(
            ErrorCode::BadRequest,
            format!("this path upgrades to {protocol} and nothing else"),
        ))
    }

    /// Returns the answer that switches protocols.
    pub fn answer(protocol: &'static str) -> Response {
        let mut response = StatusCode::SWITCHING_PROTOCOLS.into_response();
        let headers = response.headers_mut();
        headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
        headers.insert(header::UPGRADE, HeaderValue::from_static(protocol));
        response
    }

    /// Waits until the answer is sent and returns the bare connection; `None` where the client was
    /// gone by then.
    pub async fn connection(self) -> Option<Connection> {
        let upgraded = self.on_upgrade.await.ok()?;
        let parts = upgraded.downcast::<TokioIo<ExplainedRefusals>>().ok()?;
        Some(Connection { stream: parts.io.into_inner().into_inner(), early: parts.read_buf })
    }
}

/// A client's connection after the upgrade.
#[derive(Debug)]
pub struct Connection {
    /// The socket.
    pub stream: UnixStream,
    /// What the client sent right behind its request.
    pub early: Bytes,
}

impl Connection {
    /// Waits until the client has closed the connection; what it sends is thrown away.
    pub async fn closed(mut self) {
        let mut sink = [0; 512];
        while !matches!(self.stream.read(&mut sink).await, Ok(0) | Err(_)) {}
    }

    /// Copies bytes between the client and `guest`, in both directions, until one side is gone.
    /// Memory is two buffers; the slower side holds the faster one back.
    ///
    /// A client's half-close (shutdown(2)) is passed on and the other direction goes on; a client
    /// that closed the whole connection, as the kernel does for one that was killed, ends both.
    pub async fn splice(self, guest: banger_guest_client::BoxedStream) -> std::io::Result<()> {
        let Self { mut stream, early } = self;
        let (mut from_guest, mut to_guest) = tokio::io::split(guest);
        let hangup = Hangup::of(&stream)?;
        let (mut from_client, mut to_client) = stream.split();
        let upward = async {
            // A guest that takes nothing more, because its command has ended, may have said its
            // last words just now: they are still to be read, so only the client's end counts here.
            let carried = async {
                to_guest.write_all(&early).await?;
                copy(&mut from_client, &mut to_guest).await?;
                if !hangup.happened() {
                    to_guest.shutdown().await?;
                }
                std::io::Result::Ok(())
            };
            tokio::pin!(carried);
            tokio::select! {
                _ = &mut carried => hangup.wait().await,
                // Nobody reads any more. What was sent before may still be taken, but not for ever.
                () = hangup.wait() => {
                    let _ = tokio::time::timeout(LAST_BYTES, carried).await;
                }
            }
            std::io::Result::Ok(())
        };
        let downward = async {
            copy(&mut from_guest, &mut to_client).await?;
            to_client.shutdown().await
        };
        // The guest's end is the end: what it says last is what the client waits for. A client that
        // still sends then gets a closed pipe, as from any program that has ended.
        tokio::select! {
            ended = upward => ended,
            ended = downward => ended,
        }
    }
}

async fn copy(
    from: &mut (impl tokio::io::AsyncRead + Unpin),
    to: &mut (impl AsyncWrite + Unpin),
) -> std::io::Result<()> {
    let mut buffer = vec![0; 64 << 10];
    loop {
        let count = from.read(&mut buffer).await?;
        if count == 0 {
            return Ok(());
        }
        to.write_all(&buffer[..count]).await?;
        to.flush().await?;
    }
}

/// Tells a client that closed the connection from one that only has nothing more to send: a socket
/// whose peer is gone is readable to its end and hung up (poll(2), POLLHUP).
struct Hangup(std::os::fd::OwnedFd);

impl Hangup {
    fn of(stream: &UnixStream) -> std::io::Result<Self> {
        use std::os::fd::AsFd;
        stream.as_fd().try_clone_to_owned().map(Self)
    }

    fn happened(&self) -> bool {
        let mut fds = [PollFd::new(&self.0, PollFlags::empty())];
        let now = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };
        rustix::event::poll(&mut fds, Some(&now)).is_ok()
            && fds[0].revents().intersects(PollFlags::HUP | PollFlags::ERR)
    }

    /// Looks now and then: nothing else tells of it while a guest takes nothing.
    async fn wait(&self) {
        let mut ticks = tokio::time::interval(Duration::from_millis(500));
        while !self.happened() {
            ticks.tick().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A client and a guest with the splice between them.
    fn spliced() -> (UnixStream, UnixStream, tokio::task::JoinHandle<std::io::Result<()>>) {
        let (client, stream) = UnixStream::pair().unwrap();
        let (guest, inner) = UnixStream::pair().unwrap();
        let connection = Connection { stream, early: Bytes::from_static(b"early ") };
        (client, guest, tokio::spawn(connection.splice(Box::new(inner))))
    }

    #[tokio::test]
    async fn a_half_close_is_passed_on_and_the_answer_still_comes() {
        let (mut client, mut guest, splice) = spliced();
        client.write_all(b"request").await.unwrap();
        client.shutdown().await.unwrap();
        let mut text = Vec::new();
        guest.read_to_end(&mut text).await.unwrap();
        assert_eq!(text, b"early request");
        guest.write_all(b"answer").await.unwrap();
        drop(guest);
        text.clear();
        client.read_to_end(&mut text).await.unwrap();
        assert_eq!(text, b"answer");
        splice.await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn a_killed_client_ends_the_stream_of_a_silent_guest() {
        let (client, mut guest, splice) = spliced();
        drop(client);
        splice.await.unwrap().unwrap();
        let mut text = Vec::new();
        guest.read_to_end(&mut text).await.unwrap();
    }

    #[tokio::test]
    async fn a_killed_client_is_noticed_behind_what_the_guest_does_not_take() {
        let (mut client, guest, splice) = spliced();
        let sending = tokio::spawn(async move {
            let bytes = vec![0; 64 << 10];
            // Until both sockets are full.
            while tokio::time::timeout(Duration::from_millis(200), client.write_all(&bytes))
                .await
                .is_ok()
            {}
        });
        sending.await.unwrap();
        splice.await.unwrap().unwrap();
        drop(guest);
    }

    #[tokio::test]
    async fn a_client_that_half_closes_and_then_dies_is_noticed() {
        let (mut client, mut guest, splice) = spliced();
        client.shutdown().await.unwrap();
        let mut text = Vec::new();
        guest.read_to_end(&mut text).await.unwrap();
        drop(client);
        splice.await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn a_guest_that_ends_ends_the_stream_of_a_sending_client() {
        let (mut client, guest, splice) = spliced();
        drop(guest);
        let _ = splice.await.unwrap();
        let mut text = Vec::new();
        // The end, or a reset because of what was never read.
        let _ = client.read_to_end(&mut text).await;
        assert!(text.is_empty());
    }

    /// A guest whose last words wait to be read while it takes nothing more.
    #[derive(Debug)]
    struct EndedGuest(Option<&'static [u8]>);

    impl tokio::io::AsyncRead for EndedGuest {
        fn poll_read(
            mut self: std::pin::Pin<&mut Self>,
            _: &mut std::task::Context<'_>,
            buffer: &mut tokio::io::ReadBuf<'_>,
        ) -> std::task::Poll<std::io::Result<()>> {
            buffer.put_slice(self.0.take().unwrap_or_default());
            std::task::Poll::Ready(Ok(()))
        }
    }

    impl AsyncWrite for EndedGuest {
        fn poll_write(
            self: std::pin::Pin<&mut Self>,
            _: &mut std::task::Context<'_>,
            _: &[u8],
        ) -> std::task::Poll<std::io::Result<usize>> {
            std::task::Poll::Ready(Err(std::io::ErrorKind::BrokenPipe.into()))
        }

        fn poll_flush(
            self: std::pin::Pin<&mut Self>,
            _: &mut std::task::Context<'_>,
        ) -> std::task::Poll<std::io::Result<()>> {
            std::task::Poll::Ready(Ok(()))
        }

        fn poll_shutdown(
            self: std::pin::Pin<&mut Self>,
            _: &mut std::task::Context<'_>,
        ) -> std::task::Poll<std::io::Result<()>> {
            std::task::Poll::Ready(Ok(()))
        }
    }

    #[tokio::test]
    async fn last_words_arrive_from_a_guest_that_takes_nothing_more() {
        // Which direction is looked at first is chance, so once would prove little.
        for _ in 0..50 {
            let (mut client, stream) = UnixStream::pair().unwrap();
            client.write_all(b"more input").await.unwrap();
            let connection = Connection { stream, early: Bytes::new() };
            let splice = tokio::spawn(connection.splice(Box::new(EndedGuest(Some(b"exit")))));
            let mut text = [0; 4];
            client.read_exact(&mut text).await.unwrap();
            assert_eq!(&text, b"exit");
            splice.await.unwrap().unwrap();
        }
    }

    #[tokio::test]
    async fn nothing_is_lost_between_sides_of_different_speed() {
        let (client, guest, splice) = spliced();
        let (mut from_client, mut to_client) = client.into_split();
        let sent: Vec<u8> = (0..3_000_000_u32).map(|number| number.to_le_bytes()[1]).collect();
        let expected = sent.clone();
        let sender = tokio::spawn(async move {
            to_client.write_all(&sent).await.unwrap();
            to_client.shutdown().await.unwrap();
        });
        let (mut from_guest, mut to_guest) = guest.into_split();
        let echo = tokio::spawn(async move {
            let mut buffer = [0; 1000];
            loop {
                match from_guest.read(&mut buffer).await.unwrap() {
                    0 => break,
                    count => to_guest.write_all(&buffer[..count]).await.unwrap(),
                }
            }
        });
        let mut back = Vec::new();
        from_client.read_to_end(&mut back).await.unwrap();
        assert_eq!(&back[..6], b"early ");
        assert!(back[6..] == expected[..]);
        sender.await.unwrap();
        echo.await.unwrap();
        splice.await.unwrap().unwrap();
    }
}
