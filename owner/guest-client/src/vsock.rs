//! Firecracker's vsock socket: `CONNECT port\n` on a unix socket, `OK number\n` back, then bytes
//! (<https://github.com/firecracker-microvm/firecracker/blob/main/docs/vsock.md>).

use std::path::{Path, PathBuf};
use std::time::Duration;

use async_trait::async_trait;
use banger_agent_api::{VSOCK_PORT, printable_excerpt};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

use crate::channel::{BoxedStream, ChannelError, GuestChannel};

/// The answer's line is short; a longer one is not the protocol.
const LINE_LIMIT: usize = 32;

/// What a VMM that is there may take to answer.
const HANDSHAKE_PATIENCE: Duration = Duration::from_secs(5);

/// Between two tries while the guest boots.
const RETRY_PAUSE: Duration = Duration::from_millis(20);

/// The channel over a Firecracker vsock device.
#[derive(Debug)]
pub struct VsockUdsChannel {
    path: PathBuf,
}

impl VsockUdsChannel {
    /// Uses the socket at `path`; nothing is connected yet.
    #[must_use]
    pub fn new(path: &Path) -> Self {
        Self { path: path.to_path_buf() }
    }

    async fn connect(&self) -> Result<UnixStream, ChannelError> {
        let path = || self.path.clone();
        let failed = |source| ChannelError::Connect { path: path(), source };
        let mut stream = UnixStream::connect(&self.path).await.map_err(failed)?;
        stream.write_all(format!("CONNECT {VSOCK_PORT}\n").as_bytes()).await.map_err(failed)?;
        // Byte by byte: what follows the line belongs to the agent.
        let mut line = Vec::new();
        while line.last() != Some(&b'\n') && line.len() < LINE_LIMIT {
            match stream.read_u8().await {
                Ok(byte) => line.push(byte),
                // Firecracker closes the connection while nobody listens in the guest.
                Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => {
                    return Err(ChannelError::Detached);
                }
                Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => {
                    return Err(ChannelError::Detached);
                }
                Err(error) => return Err(failed(error)),
            }
        }
        let accepted = line.strip_prefix(b"OK ").and_then(|rest| rest.strip_suffix(b"\n"));
        if accepted.is_some_and(|n| !n.is_empty() && n.iter().all(u8::is_ascii_digit)) {
            Ok(stream)
        } else {
            let answer = printable_excerpt(&String::from_utf8_lossy(&line), LINE_LIMIT);
            Err(ChannelError::Handshake { path: path(), answer })
        }
    }
}

#[async_trait]
impl GuestChannel for VsockUdsChannel {
    async fn open(&self) -> Result<BoxedStream, ChannelError> {
        let timeout = ChannelError::Timeout { seconds: HANDSHAKE_PATIENCE.as_secs() };
        let stream = tokio::time::timeout(HANDSHAKE_PATIENCE, self.connect());
        Ok(Box::new(stream.await.map_err(|_| timeout)??))
    }

    async fn wait_ready(&self) -> Result<(), ChannelError> {
        loop {
            match self.open().await {
                // The agent sees a stream that ends before its request, and ignores it.
                Ok(_) => return Ok(()),
                Err(ChannelError::Detached | ChannelError::Timeout { .. }) => {
                    tokio::time::sleep(RETRY_PAUSE).await;
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// The socket vanishes with its VMM.
    async fn closed(&self) {
        while UnixStream::connect(&self.path).await.is_ok() {
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    }
}
