//! What the root helper does to the host. Every function takes a grant of the gates, works on what
//! it opened itself, undoes its own half-done work, and says in its error what failed on what.
#![forbid(unsafe_code)]
#![deny(missing_docs)]

mod beneath;
mod disk;
mod error;
mod guarded;
mod network;
mod records;
mod tool;
mod vmm;

use std::os::fd::{AsFd, AsRawFd};
use std::path::{Path, PathBuf};

use banger_gates::{Policy, Runtime, State};
use rustix::fs::{OFlags, ResolveFlags};
use rustix::path::Arg;

/// For who has handled what is large.
pub use banger_privileged_sys::give_memory_back;
pub use beneath::Directory;
pub(crate) use error::{During, check_room};
pub use error::{HostError, chain};
pub use guarded::open_guarded;
pub use network::Resolver;
use records::Records;

/// What an act came to.
pub type Result<T, E = HostError> = std::result::Result<T, E>;

/// The host as the helper has it: its roots opened, its records beside.
#[derive(Debug)]
pub struct Host {
    policy: Policy,
    state: Directory<State>,
    runtime: Directory<Runtime>,
    records: Records,
    /// The files and devices that a request has for itself.
    changing: std::sync::Mutex<std::collections::BTreeSet<(u64, u64)>>,
    /// The machines that this helper launched and that are not cleaned up, by the links to their API
    /// sockets.
    machines: std::sync::Mutex<std::collections::BTreeMap<PathBuf, vmm::Process>>,
    /// The firewall as it was read last, with its generation.
    firewall: std::sync::Mutex<(Vec<u8>, network::firewall::Found)>,
}

impl Host {
    /// Opens the roots. `own` is the helper's own directory, root's alone, for records that outlive
    /// a restart of the helper.
    ///
    /// # Errors
    /// A root that is no directory of the owner's, or behind a link.
    pub fn open(policy: Policy, own: &Path) -> Result<Self> {
        Ok(Self {
            state: Directory::open(&policy)?,
            runtime: Directory::open(&policy)?,
            records: Records::open(own)?,
            changing: std::sync::Mutex::default(),
            machines: std::sync::Mutex::default(),
            firewall: std::sync::Mutex::default(),
            policy,
        })
    }

    /// What the gates compare with.
    #[must_use]
    pub fn policy(&self) -> &Policy {
        &self.policy
    }
}

/// Names a file without touching it, and is no link's target.
pub(crate) const LOOK: OFlags = OFlags::PATH.union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);
/// Reads a directory.
pub(crate) const LIST: OFlags = OFlags::DIRECTORY.union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);
/// No link of any kind on the way, and no way out.
pub(crate) const BENEATH: ResolveFlags =
    ResolveFlags::BENEATH.union(ResolveFlags::NO_SYMLINKS).union(ResolveFlags::NO_MAGICLINKS);

/// A path of an open file, good as long as it is open, for what takes nothing but paths.
pub(crate) fn descriptor_path(descriptor: &impl AsFd) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", descriptor.as_fd().as_raw_fd()))
}

/// Removes a file, which need not be there.
pub(crate) fn unlink(directory: impl AsFd, name: impl Arg) -> rustix::io::Result<()> {
    match rustix::fs::unlinkat(directory, name, rustix::fs::AtFlags::empty()) {
        Err(rustix::io::Errno::NOENT) => Ok(()),
        done => done,
    }
}

/// What kind of file something is.
pub(crate) fn kind(stat: &rustix::fs::Stat) -> rustix::fs::FileType {
    rustix::fs::FileType::from_raw_mode(stat.st_mode)
}
