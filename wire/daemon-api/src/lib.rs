//! HTTP types of `bangerd`: what `banger` sends and receives over the daemon's unix socket.
//!
//! HTTP/1.1, JSON bodies; see [`routes`] for the paths. Long work is an [`operation::Operation`]:
//! the request answers 202 with its snapshot, `GET /v1/operations/{id}?wait_ms=N` waits for a
//! change, `GET /v1/operations/{id}/events` streams snapshots as one JSON object a line, and
//! `DELETE` cancels it. Byte streams (the guest agent, a lease) are HTTP upgrades.
#![forbid(unsafe_code)]
#![deny(missing_docs)]

pub mod artifact;
pub mod config;
pub mod daemon;
pub mod error;
mod main_process;
pub mod operation;
pub mod orphan;
pub mod pull;
pub mod routes;
pub mod stats;
pub mod vm;

/// The version of this API; both sides must agree on it exactly.
pub const API_VERSION: u32 = 1;
