//! Messages and frames on an asynchronous stream.

use bytes::BytesMut;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use crate::frame::{Frame, FrameDecoder, FrameError, MAX_FRAME_PAYLOAD};

/// Most bytes of a request: argv and environment of a reasonable command.
pub const MAX_REQUEST: usize = 1024 * 1024;

/// Most bytes of an answer.
pub const MAX_RESPONSE: usize = 1024 * 1024;

/// Bytes added to a reader's buffer at a time.
const READ_STEP: usize = 16 * 1024;

/// Why a message or frame could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum WireError {
    /// The stream failed.
    #[error("{operation} failed")]
    Io {
        /// What was being done.
        operation: &'static str,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
    /// The stream ended inside a message.
    #[error("the stream ended inside a message")]
    Truncated,
    /// The announced length is over the cap.
    #[error("message of {length} bytes is over the limit of {limit}")]
    TooLong {
        /// Announced.
        length: usize,
        /// Allowed.
        limit: usize,
    },
    /// Not the JSON that was expected.
    #[error("message is not valid")]
    Json(#[source] serde_json::Error),
    /// Not a frame.
    #[error("frame is not valid")]
    Frame(#[from] FrameError),
}

fn io_error(operation: &'static str) -> impl FnOnce(std::io::Error) -> WireError {
    move |source| WireError::Io { operation, source }
}

/// Reads one length-delimited JSON message of at most `limit` bytes, byte-exact: nothing beyond
/// it is consumed.
pub async fn read_message<T: DeserializeOwned>(
    reader: &mut (impl AsyncRead + Unpin),
    limit: usize,
) -> Result<T, WireError> {
    let mut length = [0; 4];
    reader.read_exact(&mut length).await.map_err(short_read)?;
    let length = usize::try_from(u32::from_be_bytes(length)).unwrap_or(usize::MAX);
    if length > limit {
        return Err(WireError::TooLong { length, limit });
    }
    // The buffer grows with what arrives, not with what was announced.
    let mut body = BytesMut::new();
    while body.len() < length {
        let step = (length - body.len()).min(READ_STEP);
        let start = body.len();
        body.resize(start + step, 0);
        reader.read_exact(&mut body[start..]).await.map_err(short_read)?;
    }
    serde_json::from_slice(&body).map_err(WireError::Json)
}

fn short_read(source: std::io::Error) -> WireError {
    if source.kind() == std::io::ErrorKind::UnexpectedEof {
        WireError::Truncated
    } else {
        WireError::Io { operation: "reading a message", source }
    }
}

/// Encodes a length-delimited JSON message of at most `limit` bytes.
pub fn encode_message<T: Serialize>(
    message: &T,
    limit: usize,
    out: &mut BytesMut,
) -> Result<(), WireError> {
    let body = serde_json::to_vec(message).map_err(WireError::Json)?;
    let length = match u32::try_from(body.len()) {
        Ok(length) if body.len() <= limit => length,
        _ => return Err(WireError::TooLong { length: body.len(), limit }),
    };
    out.extend_from_slice(&length.to_be_bytes());
    out.extend_from_slice(&body);
    Ok(())
}

/// Writes one length-delimited JSON message in one piece.
pub async fn write_message<T: Serialize>(
    writer: &mut (impl AsyncWrite + Unpin),
    message: &T,
    limit: usize,
) -> Result<(), WireError> {
    let mut out = BytesMut::new();
    encode_message(message, limit, &mut out)?;
    writer.write_all(&out).await.map_err(io_error("writing a message"))
}

/// Reads frames from a stream. Holds at most one frame and one read's worth of bytes.
#[derive(Debug)]
pub struct FrameReader<R> {
    reader: R,
    buffer: BytesMut,
}

impl<R: AsyncRead + Unpin> FrameReader<R> {
    /// Reads frames from `reader`.
    pub fn new(reader: R) -> Self {
        Self { reader, buffer: BytesMut::new() }
    }

    /// Returns the next frame, or `None` where the stream ended between frames.
    ///
    /// Cancel safe: a dropped call loses nothing.
    pub async fn next(&mut self) -> Result<Option<Frame>, WireError> {
        loop {
            if let Some(frame) = FrameDecoder.decode(&mut self.buffer)? {
                return Ok(Some(frame));
            }
            self.buffer.reserve(READ_STEP);
            let count = self
                .reader
                .read_buf(&mut self.buffer)
                .await
                .map_err(io_error("reading a frame"))?;
            if count == 0 {
                return if self.buffer.is_empty() { Ok(None) } else { Err(WireError::Truncated) };
            }
        }
    }

    /// Gives the stream back, with bytes that were read and not yet decoded.
    pub fn into_parts(self) -> (R, BytesMut) {
        (self.reader, self.buffer)
    }
}

/// Writes frames to a stream.
#[derive(Debug)]
pub struct FrameWriter<W> {
    writer: W,
    buffer: BytesMut,
}

impl<W: AsyncWrite + Unpin> FrameWriter<W> {
    /// Writes frames to `writer`.
    pub fn new(writer: W) -> Self {
        Self { writer, buffer: BytesMut::new() }
    }

    /// Writes one frame and flushes it.
    pub async fn send(&mut self, frame: &Frame) -> Result<(), WireError> {
        self.buffer.clear();
        frame.encode(&mut self.buffer);
        self.writer.write_all(&self.buffer).await.map_err(io_error("writing a frame"))?;
        if self.buffer.capacity() > 2 * MAX_FRAME_PAYLOAD {
            self.buffer = BytesMut::new();
        }
        self.writer.flush().await.map_err(io_error("writing a frame"))
    }

    /// Sends all that `source` has in data frames, and a data end after it; `false`, without that
    /// end, where it broke off.
    pub async fn send_all_of(
        &mut self,
        source: &mut (impl AsyncRead + Unpin),
    ) -> Result<bool, WireError> {
        let mut buffer = BytesMut::new();
        loop {
            buffer.reserve(MAX_FRAME_PAYLOAD);
            match (&mut *source).take(MAX_FRAME_PAYLOAD as u64).read_buf(&mut buffer).await {
                Ok(0) => return self.send(&Frame::DataEnd).await.map(|()| true),
                Ok(_) => self.send(&Frame::Data(buffer.split().freeze())).await?,
                Err(_) => return Ok(false),
            }
        }
    }

    /// Ends the stream's writing side.
    pub async fn shutdown(&mut self) -> Result<(), WireError> {
        self.writer.shutdown().await.map_err(io_error("ending a stream"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;

    #[tokio::test]
    async fn a_message_over_the_limit_is_refused_by_both_sides() {
        let mut hostile: &[u8] = &[0xff, 0xff, 0xff, 0xff, 0];
        let result = read_message::<serde_json::Value>(&mut hostile, 100).await;
        assert!(matches!(result, Err(WireError::TooLong { .. })));
        let result = write_message(&mut Vec::new(), &"x".repeat(200), 100).await;
        assert!(matches!(result, Err(WireError::TooLong { .. })));
    }

    #[tokio::test]
    async fn a_cut_message_is_truncated_not_hung() {
        let mut bytes = Vec::new();
        write_message(&mut bytes, &"hello", 100).await.unwrap();
        for end in 0..bytes.len() {
            let result = read_message::<String>(&mut &bytes[..end], 100).await;
            assert!(matches!(result, Err(WireError::Truncated)), "{end}");
        }
        assert_eq!(read_message::<String>(&mut &bytes[..], 100).await.unwrap(), "hello");
    }

    #[tokio::test]
    async fn frames_travel_and_a_cut_frame_is_an_error() {
        let mut bytes = Vec::new();
        let mut writer = FrameWriter::new(&mut bytes);
        writer.send(&Frame::Data(Bytes::from_static(b"abc"))).await.unwrap();
        writer.send(&Frame::DataEnd).await.unwrap();
        let mut reader = FrameReader::new(&bytes[..]);
        assert_eq!(reader.next().await.unwrap(), Some(Frame::Data(Bytes::from_static(b"abc"))));
        assert_eq!(reader.next().await.unwrap(), Some(Frame::DataEnd));
        assert_eq!(reader.next().await.unwrap(), None);
        let mut reader = FrameReader::new(&bytes[..4]);
        assert!(matches!(reader.next().await, Err(WireError::Truncated)));
    }
}
