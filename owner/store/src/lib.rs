//! The daemon's store: one SQLite database per state directory.
//!
//! It owns `banger.db` (and its journal), the lock `bangerd.lock`, and one mirror per VM,
//! `vms/<id>/vm.json`. SQLite is the truth; the mirrors exist so that a database that was damaged
//! or deleted can be rebuilt without losing a VM. What a VM's row says is the engine's business:
//! the store keeps it as a JSON document and types it on read.
//!
//! ```text
//!  open:  banger.db healthy ---------------------------> migrate, serve
//!         missing or empty -----> new database --------> import mirrors, warn if there were any
//!         damaged --------------> moved aside, new ----> import mirrors, warn
//!         newer than this build -> refused
//! ```
//!
//! Only `owner/engine` and `owner/daemon` use this crate.
#![forbid(unsafe_code)]

mod database;
mod error;
mod lock;
mod migrate;
mod mirror;

pub use database::{Durability, Intent, Store, UnreadableRow, VmRow, VmRows};
pub use error::StoreError;
pub use lock::{LOCK_NAME, LockError, StateLock, lock_directory};
pub use migrate::{SCHEMA_VERSION, recorded_version};

/// Name of the database in the state directory.
pub const DATABASE_NAME: &str = "banger.db";
