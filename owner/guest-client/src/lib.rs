//! The host's side of the guest agent: channels that open streams into a guest, and a client that
//! makes calls on them.
//!
//! ```text
//!  AgentClient ── GuestChannel::open ──▶ stream ──▶ the agent, one call per stream
//!                  ├ SerialChannel      one virtio-serial port, multiplexed for the VM's life
//!                  └ VsockUdsChannel    one connection per stream (CONNECT port / OK)
//! ```
//!
//! Everything that comes out of a stream was written by the guest: caps, deadlines, bounded memory.
#![forbid(unsafe_code)]

mod channel;
mod client;
pub mod contract;
mod exec;
mod serial;
mod vsock;

pub use channel::{BoxedStream, ChannelError, GuestChannel, GuestStream};
pub use client::{AgentClient, ClientError, Deadlines};
pub use exec::{ExecControl, ExecEvent, ExecEvents, ExecStdin, ExecStream};
pub use serial::{HOST_SESSION, SerialChannel};
pub use vsock::VsockUdsChannel;
