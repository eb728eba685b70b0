//! Names of VMs: the zone `vm`, and the server that answers for it on the bridge's address.
//!
//! ```text
//! host (systemd-resolved) ── NAME.vm ──► zone
//! guest ── NAME.vm of its group ───────► zone
//!       ── any other name, with NAT ───► the host's own resolvers
//! ```
//! What a packet comes to is decided in [`answer()`], which is pure; [`Server`] moves bytes.
#![forbid(unsafe_code)]
#![deny(missing_docs)]

mod answer;
mod forward;
mod rebinding;
mod server;
mod zone;

pub use answer::{Outcome, answer};
pub use forward::Upstreams;
pub use rebinding::leads_inside;
pub use server::{Server, ServerError};
pub use zone::{Asker, Host, Zone};
