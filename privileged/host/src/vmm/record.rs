//! What the helper remembers of a launch, so that a later helper knows its machines.

use std::path::{Path, PathBuf};

use banger_gates::{JailId, Name, Refusal};
use serde::{Deserialize, Serialize};

use super::process::Process;
use crate::{Host, Result};

const KIND: &str = "launch";

/// A launch: written before anything of it is made, and forgotten after the last of it is gone.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct Launched {
    /// Links to the jail's sockets, below the runtime directory.
    pub(super) links: Vec<Link>,
    /// Its kernel, initrd, disks and log, whatever they are called.
    #[serde(default)]
    pub(super) disks: Vec<Use>,
    /// Firecracker, once there is one.
    pub(super) process: Option<Identity>,
}

/// A file's device and inode, or a device's number and 0; and whether it is only read.
pub(crate) type Use = ((u64, u64), bool);

/// A link in the runtime directory.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Link {
    /// Where it is, relative to the runtime directory.
    pub(super) at: PathBuf,
    /// Where it leads to.
    pub(super) target: PathBuf,
}

/// What tells a process from every other since the host's start.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Identity {
    /// Its id, which another may have later.
    pub(super) pid: i32,
    /// When it was started, in clock ticks since the host's start.
    pub(super) start_time: u64,
    /// The device and inode of what it executes.
    #[serde(default)]
    pub(super) file: (u64, u64),
}

impl Launched {
    /// Its Firecracker, if that still runs.
    pub(super) fn running(&self) -> Option<Process> {
        let identity = self.process?;
        let process = Process::hold(identity.pid)?;
        (process.start_time == identity.start_time && process.is_running()).then_some(process)
    }

    pub(super) fn has_link(&self, at: &Path) -> bool {
        self.links.iter().any(|link| link.at == at)
    }
}

impl Host {
    pub(super) fn launched(&self, id: &JailId) -> Option<Launched> {
        self.records.get(KIND, id.as_str())
    }

    pub(super) fn all_launched(&self) -> Vec<Launched> {
        self.records.all(KIND).into_iter().map(|(_, launched)| launched).collect()
    }

    pub(super) fn remember(&self, id: &JailId, launched: &Launched) -> Result<()> {
        self.records.put(KIND, id.as_str(), launched)
    }

    /// That no request changes a file or device, and that no machine that is not cleaned up, and
    /// none of `more` but itself, uses it where one of the two writes.
    pub(crate) fn check_unused(&self, name: Name, it: Use, more: &[Use]) -> Result<(), Refusal> {
        let changing = self.changing.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        Refusal::when(changing.contains(&it.0), name, "another request has it")?;
        let known = self.all_launched().into_iter().flat_map(|it| it.disks);
        let uses = known.chain(more.iter().copied());
        let uses = uses.filter(|other| other.0 == it.0 && !(other.1 && it.1)).count();
        let rule = "in another jail, or here twice, and written to in one place";
        let own = usize::from(!it.1 && more.contains(&it));
        Refusal::when(uses > own, name, rule)
    }

    pub(super) fn forget_launch(&self, id: &JailId) -> Result<()> {
        self.records.remove(KIND, id.as_str())
    }
}
