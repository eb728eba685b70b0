//! Answers to what never becomes a request: strangers, one connection too many, broken HTTP.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use banger_daemon_api::error::{ApiError, ErrorCode};
use banger_daemon_api::routes::OP_ID_HEADER;
use banger_types::OperationId;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::UnixStream;

/// How long a refused peer may take to read its answer.
const DEADLINE: Duration = Duration::from_secs(2);

/// Answers one error to whatever the peer sends, and closes the connection.
pub async fn refuse(mut stream: UnixStream, error: ApiError) {
    let answer = response(error);
    let talk = async {
        stream.write_all(&answer).await?;
        stream.shutdown().await?;
        // Closing a socket with unread bytes resets it (unix(7)), which could overtake the answer.
        let mut sink = [0; 4096];
        let mut taken = 0;
        while taken < 64 << 10 {
            match stream.read(&mut sink).await? {
                0 => break,
                count => taken += count,
            }
        }
        io::Result::Ok(())
    };
    // The peer may be gone or silent; either way the connection ends here.
    let _ = tokio::time::timeout(DEADLINE, talk).await;
}

fn response(mut error: ApiError) -> Vec<u8> {
    let op_id = error.op_id.get_or_insert_with(OperationId::random).clone();
    let status = axum::http::StatusCode::from_u16(error.code.http_status())
        .unwrap_or(axum::http::StatusCode::INTERNAL_SERVER_ERROR);
    let body = serde_json::to_string(&error).unwrap_or_default();
    format!(
        "HTTP/1.1 {} {}\r\ncontent-type: application/json\r\ncontent-length: {}\r\n{OP_ID_HEADER}: {op_id}\r\nconnection: close\r\n\r\n{body}",
        status.as_u16(),
        status.canonical_reason().unwrap_or(""),
        body.len(),
    )
    .into_bytes()
}

/// A connection whose first words, where they are the HTTP library's own bare refusal, become an
/// API error.
///
/// hyper answers what it cannot parse with a status line alone and offers no hook. As long as no
/// request has reached the router, all that it can write is such a refusal.
#[derive(Debug)]
pub struct ExplainedRefusals {
    stream: UnixStream,
    routed: Arc<AtomicBool>,
    refusal: Option<(Vec<u8>, usize)>,
}

impl ExplainedRefusals {
    /// Wraps a new connection; whoever routes its first request sets the flag.
    pub fn new(stream: UnixStream) -> (Self, Arc<AtomicBool>) {
        let routed = Arc::new(AtomicBool::new(false));
        (Self { stream, routed: Arc::clone(&routed), refusal: None }, routed)
    }

    /// Returns the connection itself.
    pub fn into_inner(self) -> UnixStream {
        self.stream
    }
}

/// Returns the API error for hyper's refusal `head`.
fn explain(head: &[u8]) -> ApiError {
    let message = match head.get(9..12) {
        Some(b"414") => "the request's address is too long",
        Some(b"431") => "the request's headers are too many or too long",
        Some(b"408") => "the request's headers took too long",
        _ => "this is not an HTTP/1.1 request",
    };
    ApiError::new(ErrorCode::BadRequest, message)
}

impl AsyncRead for ExplainedRefusals {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for ExplainedRefusals {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if this.routed.load(Ordering::Relaxed) {
            return Pin::new(&mut this.stream).poll_write(context, bytes);
        }
        let (refusal, written) = this.refusal.get_or_insert_with(|| (response(explain(bytes)), 0));
        while let Some(rest) = refusal.get(*written..).filter(|rest| !rest.is_empty()) {
            match ready!(Pin::new(&mut this.stream).poll_write(context, rest))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                count => *written += count,
            }
        }
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
