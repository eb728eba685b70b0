//! Images from registries: which manifest a reference means, and its layers as they arrive.
//!
//! It speaks the distribution API (<https://github.com/opencontainers/distribution-spec>) to
//! whatever calls itself a registry, so everything that is received is hostile until its digest
//! has been compared: sizes are capped, every wait has a deadline, redirects are few, never from
//! HTTPS to HTTP, and never carry credentials to another host.
//!
//! ```text
//! Registry ── resolve ──> Resolution ── pull ──> Pull ── layers ──> LayerReader
//!   (per request: credentials,   (what the tag     (downloads under way;  (follows a download;
//!    proxy, authorities)          means now)        ends when dropped)     any thread)
//!                          BlobStore: what was fetched, shared by all pulls
//! ```
//! Credentials live in a [`Registry`] as long as a request does. They are not written anywhere,
//! and their `Debug` form has no secret.
#![forbid(unsafe_code)]

mod auth;
mod client;
mod connect;
mod credentials;
mod download;
mod error;
mod headers;
pub mod manifest;
mod pull;
mod reader;
mod settings;
mod store;
mod trust;
mod writer;

pub use client::Registry;
pub use credentials::{Credentials, Secret};
pub use error::RegistryError;
pub use pull::{Layer, Pull, PullProgress, Resolution};
pub use reader::LayerReader;
pub use settings::{Access, Deadlines, Proxies, ProxyError, Settings};
pub use store::{BlobStore, BlobUsage, Pruned};
