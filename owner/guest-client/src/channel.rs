//! What every way into a guest has in common.

use async_trait::async_trait;
use tokio::io::{AsyncRead, AsyncWrite};

/// A stream to the guest agent. Shutting it down ends the host's direction; dropping it before
/// the call is over tells the agent that the client is gone.
pub trait GuestStream: AsyncRead + AsyncWrite + Send + Unpin + std::fmt::Debug {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin + std::fmt::Debug> GuestStream for T {}

/// A stream of any channel.
pub type BoxedStream = Box<dyn GuestStream>;

/// Why there is no stream.
#[derive(Debug, thiserror::Error)]
pub enum ChannelError {
    /// The agent has not answered yet, or its session was lost; trying again may help.
    #[error("the guest agent is not attached")]
    Detached,
    /// The machine or its VMM is gone; there will be no other stream.
    #[error("the guest channel is closed")]
    Closed,
    /// Too many streams at once.
    #[error("too many calls to the guest agent at once")]
    TooMany,
    /// The VMM's socket refused.
    #[error("connect to the guest channel {path}")]
    Connect {
        /// The socket.
        path: std::path::PathBuf,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
    /// The VMM's socket answered something else than its protocol allows.
    #[error("the guest channel {path} did not open a connection: {answer:?}")]
    Handshake {
        /// The socket.
        path: std::path::PathBuf,
        /// The answer, cut and made harmless.
        answer: String,
    },
    /// Nothing within the time given.
    #[error("the guest agent did not answer within {seconds} s")]
    Timeout {
        /// The time given.
        seconds: u64,
    },
}

/// A way into one guest. Every implementation passes [`crate::contract`].
#[async_trait]
pub trait GuestChannel: std::fmt::Debug + Send + Sync {
    /// Opens a stream; does not wait for an agent that is not there.
    async fn open(&self) -> Result<BoxedStream, ChannelError>;

    /// Waits until the agent has answered for the first time.
    async fn wait_ready(&self) -> Result<(), ChannelError>;

    /// Resolves when the channel can never open a stream again.
    async fn closed(&self);
}
