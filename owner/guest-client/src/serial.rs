//! A virtio-serial port of QEMU: a unix socket that carries one pipe for the VM's life.

use std::path::Path;

use async_trait::async_trait;
use banger_agent_api::mux::{Multiplexer, OpenError, SessionConfig, SessionState};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::UnixStream;
use tokio::task::JoinHandle;

use crate::channel::{BoxedStream, ChannelError, GuestChannel};

/// Limits of the host's end, per VM.
pub const HOST_SESSION: SessionConfig = SessionConfig { window: 256 * 1024, max_streams: 256 };

/// The channel over a virtio-serial port. Dropping it detaches from the guest, whose agent ends
/// what its calls left open.
#[derive(Debug)]
pub struct SerialChannel {
    multiplexer: Multiplexer,
    driver: JoinHandle<()>,
}

impl SerialChannel {
    /// Connects to QEMU's chardev socket at `path`. The guest may not have started: bytes are held
    /// by QEMU until the agent opens its port.
    pub async fn attach(path: &Path) -> Result<Self, ChannelError> {
        let connect = |source| ChannelError::Connect { path: path.to_path_buf(), source };
        Ok(Self::over(UnixStream::connect(path).await.map_err(connect)?))
    }

    /// Runs the channel over any byte pipe whose other end is an agent's port.
    pub fn over<T>(pipe: T) -> Self
    where
        T: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        // Version 4 UUIDs come from the kernel's random numbers.
        let nonce = || uuid::Uuid::new_v4().as_u64_pair().1;
        let (multiplexer, driver) = Multiplexer::host(pipe, HOST_SESSION, nonce);
        let driver = tokio::spawn(async move {
            if let Err(error) = driver.await {
                tracing::debug!(error = &error as &dyn std::error::Error, "guest channel ended");
            }
        });
        Self { multiplexer, driver }
    }
}

impl Drop for SerialChannel {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

#[async_trait]
impl GuestChannel for SerialChannel {
    async fn open(&self) -> Result<BoxedStream, ChannelError> {
        match self.multiplexer.open() {
            Ok(stream) => Ok(Box::new(stream)),
            Err(OpenError::TooMany) => Err(ChannelError::TooMany),
            Err(OpenError::Detached) if self.multiplexer.state() == SessionState::Closed => {
                Err(ChannelError::Closed)
            }
            Err(OpenError::Detached) => Err(ChannelError::Detached),
        }
    }

    async fn wait_ready(&self) -> Result<(), ChannelError> {
        match self.multiplexer.state_changed(SessionState::Detached).await {
            SessionState::Closed => Err(ChannelError::Closed),
            SessionState::Attached | SessionState::Detached => Ok(()),
        }
    }

    async fn closed(&self) {
        let mut state = self.multiplexer.state();
        while state != SessionState::Closed {
            state = self.multiplexer.state_changed(state).await;
        }
    }
}
