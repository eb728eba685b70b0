//! Looks at processes through `/proc`.

use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// One process of this machine.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Process {
    /// Its process id.
    pub pid: u32,
    /// Its command line, words separated by spaces.
    pub command: String,
}

impl Process {
    fn folder(&self) -> PathBuf {
        PathBuf::from(format!("/proc/{}", self.pid))
    }

    /// One field of `/proc/PID/status`, such as `Uid`.
    #[must_use]
    pub fn status(&self, field: &str) -> Option<String> {
        let text = std::fs::read_to_string(self.folder().join("status")).ok()?;
        let line = text.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'))?;
        Some(line.trim().to_owned())
    }

    /// Resident memory in bytes (`VmRSS`).
    #[must_use]
    pub fn resident(&self) -> Option<u64> {
        let kib: u64 = self.status("VmRSS")?.split_whitespace().next()?.parse().ok()?;
        Some(kib * 1024)
    }

    /// Highest resident memory so far in bytes (`VmHWM`).
    #[must_use]
    pub fn peak_resident(&self) -> Option<u64> {
        let kib: u64 = self.status("VmHWM")?.split_whitespace().next()?.parse().ok()?;
        Some(kib * 1024)
    }

    /// Whether it is still there and no zombie.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        let Some(state) = self.status("State") else { return false };
        if !state.starts_with(['Z', 'X']) {
            return true;
        }
        // The first thread has ended; what the process has open it keeps until the last one has.
        std::fs::read_dir(format!("/proc/{}/task", self.pid)).is_ok_and(|tasks| tasks.count() > 1)
    }

    /// The name of its executable file, from its own command line.
    #[must_use]
    pub fn program(&self) -> &str {
        let first = self.command.split(' ').next().unwrap_or_default();
        first.rsplit('/').next().unwrap_or(first)
    }

    /// Sends it a signal; a process that is gone is no error.
    pub fn signal(&self, signal: rustix::process::Signal) {
        let pid = i32::try_from(self.pid).ok().and_then(rustix::process::Pid::from_raw);
        if let Some(pid) = pid {
            let _ = rustix::process::kill_process(pid, signal);
        }
    }
}

fn contains(haystack: &[u8], needle: &[u8]) -> bool {
    haystack.windows(needle.len()).any(|window| window == needle)
}

fn mentions(pid: u32, needle: &[u8]) -> bool {
    let folder = PathBuf::from(format!("/proc/{pid}"));
    if ["cmdline", "environ"]
        .iter()
        .any(|file| contains(&std::fs::read(folder.join(file)).unwrap_or_default(), needle))
    {
        return true;
    }
    let names = |link: PathBuf| {
        std::fs::read_link(link).is_ok_and(|target| contains(target.as_os_str().as_bytes(), needle))
    };
    if ["cwd", "root", "exe"].iter().any(|link| names(folder.join(link))) {
        return true;
    }
    let files = std::fs::read_dir(folder.join("fd")).into_iter().flatten().flatten();
    files.into_iter().any(|file| names(file.path()))
}

/// Living processes, this one excepted, that have `folder` in their command
/// line or environment, stand in it, or hold a file of it open, deleted or not.
#[must_use]
pub fn processes_mentioning(folder: &Path) -> Vec<Process> {
    let needle = folder.as_os_str().as_bytes();
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        if pid == std::process::id() || !mentions(pid, needle) {
            continue;
        }
        let command = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let words: Vec<_> = command.split(|byte| *byte == 0).map(String::from_utf8_lossy).collect();
        let process = Process { pid, command: words.join(" ").trim_end().to_owned() };
        if process.is_alive() {
            found.push(process);
        }
    }
    found.sort();
    found
}
