//! The guest agent, carried inside the daemon.

/// The static executable that the initrd has as `/init`; `build.rs` builds it.
pub const AGENT: &[u8] = include_bytes!(env!("BANGER_AGENT_BINARY"));
