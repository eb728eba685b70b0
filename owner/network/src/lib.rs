//! The guests' network over the root helper: one bridge, a tap for each VM, and the names of those
//! behind them; and ports of guests on the host, which need no helper.
//!
//! The helper makes and checks everything; here it is decided which subnet the bridge has
//! ([`subnet`]), and when.
#![forbid(unsafe_code)]
#![deny(missing_docs)]

mod helper_network;
mod pool;
mod ports;
mod record;
mod routes;
pub mod subnet;

pub use helper_network::{Collision, HelperNetwork, Status};
pub use ports::PublishedPorts;
