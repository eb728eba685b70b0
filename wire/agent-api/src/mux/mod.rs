//! Many streams over one byte pipe, for transports on which a connection has no meaning of its own.
//!
//! A virtio-serial port is one pipe for the VM's life: bytes of a dead daemon linger in it, a
//! second client would be mixed with the first, and neither end sees the other restart. So there is
//! one session at a time, named by a nonce that the host chooses:
//!
//! ```text
//!  host                                        guest
//!   attach: MAX_FRAME zero bytes, HELLO(n) ──▶  whatever frame it was in the middle of completes
//!                                               within the zeros; its trailer is not a nonce, so it
//!                                               is dropped unseen; scan for HELLO; reset all streams
//!   discard bytes until ACK(n)            ◀──   ACK(n)
//!   frames, each ending in n              ◀─▶   frames, each ending in n
//!   attach again with a new nonce         ◀──   MAX_FRAME zero bytes, BOOT   (the agent was restarted)
//! ```
//!
//! A frame is delivered only when its last eight bytes are the session's nonce. Streams are opened
//! by the host, numbered upwards and never reused within a session. Each direction of each stream
//! has a credit window, so neither side holds more than a window per stream, a slow reader stalls
//! only its own stream, and a peer that ignores the window ends the session.
//!
//! [`Session`] is the protocol without any I/O; [`Multiplexer`] drives it over a tokio stream.

mod codec;
mod driver;
mod session;
#[cfg(test)]
mod session_tests;

pub use codec::{MAX_FRAME, MAX_PAYLOAD};
pub use driver::{Driver, Multiplexer, MuxStream, SessionState};
pub use session::{OpenError, Role, Session, SessionConfig, SessionError, StreamKey};
