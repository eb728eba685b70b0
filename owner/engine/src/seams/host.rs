//! What the host has left: memory and disk.

use std::path::Path;
use std::time::Duration;

/// Memory of the host, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HostMemory {
    /// All there is.
    pub total: u64,
    /// What could be taken without swapping (`MemAvailable`, proc_meminfo(5)), or less where a
    /// control group limits the daemon.
    pub available: u64,
}

/// Why a fact about the host is not known.
#[derive(Debug, thiserror::Error)]
#[error("reading {what}")]
pub struct HostError {
    /// The file or system call.
    pub what: String,
    /// The cause.
    #[source]
    pub source: std::io::Error,
}

/// Tells the engine what the host has left. The calls are quick and never wait for a device.
pub trait HostFacts: Send + Sync {
    /// Returns the host's memory.
    fn memory(&self) -> Result<HostMemory, HostError>;

    /// Returns how many bytes of memory a process has in use; 0 where there is none of that id.
    fn resident(&self, pid: u32) -> u64;

    /// Returns the CPU time that a process has taken, in user and kernel mode; `None` where there is
    /// none of that id.
    fn cpu_time(&self, pid: u32) -> Option<Duration>;

    /// Returns how many bytes the daemon could still write below `path`.
    fn free_disk(&self, path: &Path) -> Result<u64, HostError>;
}
