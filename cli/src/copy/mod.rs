//! Copying files and trees between this host and a machine, as `docker cp` and cp(1) do.
//!
//! ```text
//!   host ──pack──► tar ──frames──► agent, which unpacks beneath a directory of the guest
//!   host ◄─land── tar ◄──frames── agent, whose every word is a stranger's
//! ```

mod endpoint;
mod land;
mod pack;
mod transfer;

use std::path::PathBuf;

pub use endpoint::{Ending, Endpoint, as_guest, as_path};
pub use land::{Into, Landing, Target, There};
pub use pack::{HostTree, Tally};
pub use transfer::{fetch, fetch_tar, send, send_tar};

/// What a source is called where it arrives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Arrival {
    /// As this, below the target directory.
    Named(PathBuf),
    /// Not at all: what a directory holds goes into the target directory.
    Contents,
}
