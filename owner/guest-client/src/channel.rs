//! The way to a guest's agent, whatever carries it.

use async_trait::async_trait;
use tokio::io::{AsyncRead, AsyncWrite};

/// A byte stream to the agent.
pub trait GuestStream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> GuestStream for T {}

/// A boxed byte stream to the agent; dropping it closes it in both directions.
pub type BoxedStream = Box<dyn GuestStream>;

/// Why the agent cannot be reached.
#[derive(Debug, thiserror::Error)]
pub enum ChannelError {
    /// A system call on the transport failed.
    #[error("{act} the guest's agent")]
    Io {
        /// The act, as a participle: `connecting to`.
        act: &'static str,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
    /// The VMM or the guest closed the transport.
    #[error("the channel to the guest's agent is closed")]
    Closed,
    /// The agent broke the protocol.
    #[error("the guest's agent broke the protocol: {problem}")]
    Protocol {
        /// How, in printable words.
        problem: String,
    },
    /// The agent did not answer in time.
    #[error("the guest's agent did not answer within {seconds} s")]
    Timeout {
        /// The deadline in seconds.
        seconds: u64,
    },
}

/// Opens byte streams to a guest's agent, one per call.
#[async_trait]
pub trait GuestChannel: Send + Sync {
    /// Opens a new stream. It does not wait for a guest that is still booting: see `wait_ready`.
    async fn open(&self) -> Result<BoxedStream, ChannelError>;

    /// Waits until the agent can be reached. Cancel safe.
    async fn wait_ready(&self) -> Result<(), ChannelError>;
}
