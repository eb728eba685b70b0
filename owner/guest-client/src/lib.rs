//! Client of the guest agent.
#![forbid(unsafe_code)]

mod channel;

pub use channel::{BoxedStream, ChannelError, GuestChannel, GuestStream};
