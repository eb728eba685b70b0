//! A tree on its way into a guest: its bytes in chunks, and the agent's answer.

use std::io::{self, Write};

use banger_agent_api::{Frame, FrameReader, MAX_FRAME_PAYLOAD, PutTreeReply};
use bytes::{Bytes, BytesMut};
use tokio::io::AsyncRead;

use crate::error::GuestError;

const REPLY_LIMIT: usize = 64 << 10;

/// Gathers small writes into chunks as large as a frame takes, and passes those on.
#[derive(Debug)]
pub struct ChunkWriter<P> {
    pass_on: P,
    buffer: BytesMut,
}

impl<P: FnMut(Bytes) -> io::Result<()>> ChunkWriter<P> {
    /// Passes chunks on by `pass_on`, which fails when nobody takes them any more.
    #[must_use]
    pub fn new(pass_on: P) -> Self {
        Self { pass_on, buffer: BytesMut::with_capacity(MAX_FRAME_PAYLOAD) }
    }
}

impl<P: FnMut(Bytes) -> io::Result<()>> Write for ChunkWriter<P> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = bytes.len().min(MAX_FRAME_PAYLOAD - self.buffer.len());
        self.buffer.extend_from_slice(&bytes[..count]);
        if self.buffer.len() == MAX_FRAME_PAYLOAD {
            self.flush()?;
        }
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        (self.pass_on)(self.buffer.split().freeze())
    }
}

/// Reads what the agent says once it has a tree, or what it has against it.
pub async fn put_reply(
    mut reader: FrameReader<impl AsyncRead + Unpin>,
) -> Result<PutTreeReply, GuestError> {
    let mut reply = Vec::new();
    loop {
        match reader.next().await.map_err(GuestError::other)? {
            Some(Frame::Data(bytes)) if reply.len() + bytes.len() <= REPLY_LIMIT => {
                reply.extend_from_slice(&bytes);
            }
            Some(Frame::DataEnd) => break,
            Some(Frame::Error(error)) => return Err(GuestError::other(error)),
            Some(Frame::Unknown(_)) => {}
            Some(_) | None => return Err(GuestError::other("the machine broke off")),
        }
    }
    serde_json::from_slice(&reply).map_err(GuestError::other)
}
