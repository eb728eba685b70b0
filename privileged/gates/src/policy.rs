//! What the gates compare with: fixed when the helper starts, never from a request.

use std::path::PathBuf;

/// The user that the helper works for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Owner {
    uid: u32,
    gid: u32,
}

/// The owner would be root, for whom no wall would stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the owner must not be root: uid and gid 0 are refused")]
pub struct OwnerIsRoot;

impl Owner {
    /// Takes any user but root, whose group is not root's either.
    ///
    /// # Errors
    /// Uid or gid 0, or the reserved `-1`.
    pub fn new(uid: u32, gid: u32) -> Result<Self, OwnerIsRoot> {
        let is_none = |id| id == 0 || id == u32::MAX;
        if is_none(uid) || is_none(gid) { Err(OwnerIsRoot) } else { Ok(Self { uid, gid }) }
    }

    /// The user id.
    #[must_use]
    pub fn uid(self) -> u32 {
        self.uid
    }

    /// The group id.
    #[must_use]
    pub fn gid(self) -> u32 {
        self.gid
    }
}

/// The helper's fixed surroundings.
#[derive(Clone, Debug)]
pub struct Policy {
    /// The user that it works for.
    pub owner: Owner,
    /// The state directory: absolute and clean.
    pub state: PathBuf,
    /// The runtime directory of `bangerd`: absolute and clean.
    pub runtime: PathBuf,
    /// The directory of the jails, root's own: absolute and clean.
    pub jails: PathBuf,
    /// Where firecracker and jailer may lie.
    pub vmm_directories: Vec<PathBuf>,
    /// Files that may be executed besides, from install.toml.
    pub vmm_files: Vec<PathBuf>,
    /// The host's memory.
    pub host_memory_mib: u64,
    /// The helper itself.
    pub own_pid: u32,
}

impl Policy {
    /// The directories where firecracker and jailer are looked for, in this order.
    pub const VMM_DIRECTORIES: [&str; 5] = [
        "/usr/bin",
        "/usr/local/bin",
        "/usr/lib/banger",
        "/usr/local/lib/banger",
        "/opt/firecracker",
    ];
}
