//! The user's repository on its way into a machine, and the machine's work on its way back.
//!
//! ```text
//!   prepare   repository ──► Snapshot ──► tar ──► guest      kept: what was carried (Kept)
//!   export    guest's listing, changed files ──► throw-away tree ──► diff with what was carried
//! ```
//! Git runs on the host only, in repositories of this crate's own making, so a guest needs none and
//! nothing of a guest's repository is ever executed here. The user's own repository may be hostile,
//! too: git is asked only for names and objects, with everything off that would run a program or
//! reach the network on its behalf, and its files are opened beneath the working tree without
//! following any symbolic link. The guest is hostile in any case: names, counts and sizes that come
//! from it are bounded, and its files go into a git object store, never under their names into a
//! directory.
//!
//! Everything here blocks; [`AgentGuest`] leads to the agent's streams.
#![forbid(unsafe_code)]
#![deny(missing_docs)]

mod agent;
mod archive;
mod base;
mod branch_room;
mod chunks;
mod clearing;
mod error;
mod fast_import;
mod files;
mod follow;
mod git;
mod guest_git;
mod identity;
mod kept;
mod layout;
mod prepare;
mod pruning;
mod repository;
mod snapshot;
mod sync;
mod taking;
mod tip;
mod watch;
mod work;

pub use agent::{AgentGuest, Dial, Stream};
pub use chunks::{ChunkWriter, put_reply};
pub use error::{GuestError, WorkspaceError};
pub use follow::{Told, follow};
pub use git::current_head;
pub use identity::GitIdentity;
pub use kept::{Keeping, Kept, Wanted};
pub use prepare::{Newer, Plan, Prepared, prepare};
pub use repository::{Options, Start, Workspace};
pub use snapshot::Snapshot;
pub use sync::{Mirror, Round};
pub use watch::{Seen, Stop, Watch};
pub use work::{Change, ChangeKind, Work};

/// Where a repository is put in the guest.
pub const GUEST_PATH: &str = "/root/repo";

/// How many commits deep the history goes that is carried.
pub const HISTORY_DEPTH: u32 = 10;
