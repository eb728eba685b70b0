//! Processes, held and not named: a pidfd first, then the evidence, then the act on that pidfd. What
//! /proc said of a pid is believed only if the pidfd shows afterwards that the process still runs:
//! until it has ended nobody else has its pid.

use std::collections::BTreeMap;
use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::{MutexGuard, PoisonError};
use std::time::Duration;

use banger_gates::request::Running;
use banger_gates::{JailId, ManagedPath, Name, Pid, Refusal, Runtime, Signal, api_sockets};
use banger_helper_api::ErrorCode;
use banger_privileged_sys::as_file_user;
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use rustix::process::PidfdFlags;

use super::cgroup;
use super::jail::Jail;
use super::record::Identity;
use crate::{Host, HostError, Result};

/// A process that is held.
#[derive(Debug)]
pub(crate) struct Process {
    pub(super) pid: i32,
    /// The pidfd.
    pub(super) descriptor: OwnedFd,
    /// In clock ticks since the host's start.
    pub(super) start_time: u64,
    pub(super) parent: i32,
}

/// Waits until there is something to read; a pidfd is readable when its process has ended
/// (pidfd_open(2)).
pub(super) fn is_readable(descriptor: &impl AsFd, limit: Duration) -> bool {
    let limit = Timespec::try_from(limit).ok();
    let mut events = [PollFd::new(descriptor, PollFlags::IN)];
    matches!(rustix::event::poll(&mut events, limit.as_ref()), Ok(1))
}

/// What a process executes.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Executed {
    /// Its device and inode.
    pub(super) file: (u64, u64),
    name: String,
}

impl Process {
    /// Holds a process, ended or not; none if there is none.
    pub(super) fn hold(pid: i32) -> Option<Self> {
        let raw = rustix::process::Pid::from_raw(pid.max(0))?;
        let descriptor = rustix::process::pidfd_open(raw, PidfdFlags::empty()).ok()?;
        // proc_pid_stat(5): the name in brackets may hold anything, so count from its end.
        let stat = fs::read(format!("/proc/{pid}/stat")).ok()?;
        let end = stat.iter().rposition(|byte| *byte == b')')?;
        let rest = String::from_utf8_lossy(&stat[end + 1..]);
        let mut fields = rest.split_ascii_whitespace();
        let parent = fields.nth(1)?.parse().ok()?;
        let start_time = fields.nth(17)?.parse().ok()?;
        Some(Self { pid, descriptor, start_time, parent })
    }

    /// Whether it has not ended; a zombie has.
    pub(super) fn is_running(&self) -> bool {
        !self.ends_within(Duration::ZERO)
    }

    /// Waits for its end.
    pub(super) fn ends_within(&self, limit: Duration) -> bool {
        is_readable(&self.descriptor, limit)
    }

    pub(super) fn signal(&self, signal: rustix::process::Signal) -> Result<()> {
        match rustix::process::pidfd_send_signal(&self.descriptor, signal) {
            // It ended first.
            Ok(()) | Err(Errno::SRCH) => Ok(()),
            Err(errno) => Err(HostError::of("signal process", self.pid)(errno)),
        }
    }

    /// Whether it has a thread whose name begins so.
    pub(super) fn has_thread(&self, name: &str) -> bool {
        let tasks = fs::read_dir(format!("/proc/{}/task", self.pid)).into_iter().flatten();
        let mut names =
            tasks.flatten().filter_map(|task| fs::read_to_string(task.path().join("comm")).ok());
        names.any(|found| found.starts_with(name))
    }

    /// Whether all its user ids (real, effective, saved, file) are this one.
    pub(super) fn is_of(&self, uid: u32) -> bool {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid)).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("Uid:")).unwrap_or_default();
        let ids: Vec<_> = line.split_ascii_whitespace().map(str::parse::<u32>).collect();
        ids.len() == 4 && ids.into_iter().all(|id| id == Ok(uid))
    }

    /// What it executes, as far as a user may see that.
    pub(super) fn executed(&self, uid: u32, gid: u32) -> Option<Executed> {
        let link = format!("/proc/{}/exe", self.pid);
        as_file_user(uid, gid, || {
            let stat = rustix::fs::stat(&link).ok()?;
            let path = fs::read_link(&link).ok()?;
            // It has none where it was moved out of what can be seen.
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            // The kernel adds this once the file has no name any more; another file may be called so.
            let is_gone = stat.st_nlink == 0;
            let plain = name.strip_suffix(" (deleted)").filter(|_| is_gone).unwrap_or(name);
            Some(Executed { file: (stat.st_dev, stat.st_ino), name: plain.to_owned() })
        })
    }
}

fn no(reason: &str) -> HostError {
    Refusal::new("pid", reason).with_code(ErrorCode::InvalidPid).into()
}

impl Host {
    /// Ends a Firecracker of the owner's at once (SIGKILL).
    ///
    /// # Errors
    /// A process that is none (refused with `invalid_pid`).
    pub fn kill_process(&self, pid: &Pid) -> Result<()> {
        self.prove(pid)?.signal(rustix::process::Signal::KILL)
    }

    /// Sends a signal to a Firecracker of the owner's.
    ///
    /// # Errors
    /// A process that is none (refused with `invalid_pid`).
    pub fn signal_process(&self, (pid, signal): &(Pid, Signal)) -> Result<()> {
        let sent = rustix::process::Signal::from_named_raw(*signal as i32);
        let sent = sent.ok_or_else(|| no("no signal of this system"))?;
        self.prove(pid)?.signal(sent)
    }

    /// Whether the Firecracker with an API socket runs and has this pid.
    ///
    /// # Errors
    /// A link on the way to the socket's directory (refused).
    pub fn process_running(&self, asked: &Running) -> Result<bool> {
        let (parameter, pid) = ("api_sock", asked.pid.get());
        let raw = rustix::process::Pid::from_raw(pid);
        // Nobody's pid; the path is refused as ever.
        if raw.is_some_and(|raw| rustix::process::test_kill_process(raw) == Err(Errno::SRCH)) {
            return self.runtime.open_parent(parameter, &asked.api_socket).map(|_| false);
        }
        Ok(self.behind(parameter, &asked.api_socket)? == Some(pid))
    }

    /// The pid of the Firecracker with an API socket.
    ///
    /// # Errors
    /// A link on the way to the socket's directory (refused); none that runs.
    pub fn find_firecracker_pid(&self, socket: &ManagedPath<Runtime>) -> Result<u32> {
        let found = self.behind("api_sock", socket)?;
        found.and_then(|pid| u32::try_from(pid).ok()).ok_or_else(|| {
            let name = socket.relative().display();
            HostError::of("find the Firecracker behind", name)("none runs with that API socket")
        })
    }

    /// The pid of the running Firecracker with an API socket: the last one that this helper gave a
    /// link there; or by the record of the jail that the link at that path leads to, or of the jail
    /// that ever had a link there; where the records are lost, whoever executes what lies in that
    /// jail.
    fn behind(&self, parameter: Name, socket: &ManagedPath<Runtime>) -> Result<Option<i32>> {
        let at = socket.relative();
        if let Some(held) = self.machines().get(at).filter(|held| held.is_running()) {
            return Ok(Some(held.pid));
        }
        let id = self.jail_behind(parameter, socket)?;
        let named = id.as_ref().and_then(|id| self.launched(id));
        let named = named.filter(|launched| launched.has_link(at));
        let launched = named
            .or_else(|| self.all_launched().into_iter().find(|launched| launched.has_link(at)));
        let found = match launched {
            Some(launched) => launched.running(),
            None => id.and_then(|id| self.in_jail(&id)),
        };
        Ok(found.map(|process| process.pid))
    }

    /// The machines that this helper launched and that are not cleaned up, by the links to their API
    /// sockets.
    pub(crate) fn machines(&self) -> MutexGuard<'_, BTreeMap<PathBuf, Process>> {
        self.machines.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whoever executes what lies in a jail.
    pub(super) fn in_jail(&self, id: &JailId) -> Option<Process> {
        let copy = Jail::executable(&self.policy, id)?;
        let pids = fs::read_dir("/proc").ok()?.flatten();
        let pids = pids.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        let owner = self.policy.owner;
        pids.filter_map(Process::hold).find(|process| {
            let executed = || process.executed(owner.uid(), owner.gid());
            process.is_of(owner.uid())
                && executed().is_some_and(|executed| executed.file == copy)
                && process.is_running()
        })
    }

    /// Holds a pid that is proven to be a Firecracker of the owner's by one of: the record of its
    /// launch; its cgroup below the machines' unit; its API socket. A jailed Firecracker names its
    /// socket by a path of its jail, so for it the last means that it executes what lies in the jail
    /// of its `--id`, whose socket the runtime directory links to.
    fn prove(&self, pid: &Pid) -> Result<Process> {
        let process = Process::hold(pid.get()).ok_or_else(|| no("no such process"))?;
        let owner = self.policy.owner;
        if !process.is_of(owner.uid()) {
            return Err(no("a process of another user"));
        }
        let is_proven = process.executed(owner.uid(), owner.gid()).is_some_and(|executed| {
            let (pid, start_time, file) = (process.pid, process.start_time, executed.file);
            let own = Some(Identity { pid, start_time, file });
            self.all_launched().iter().any(|launched| launched.process == own)
                || self.is_machine(&process, &executed)
        });
        if !is_proven {
            return Err(no("not a Firecracker of the owner's"));
        }
        process.is_running().then_some(process).ok_or_else(|| no("it has ended"))
    }

    fn is_machine(&self, process: &Process, executed: &Executed) -> bool {
        if executed.name != "firecracker" {
            return false;
        }
        let words = fs::read(format!("/proc/{}/cmdline", process.pid)).unwrap_or_default();
        let is_below = |path: &PathBuf| {
            let text = path.to_str().unwrap_or_default();
            ManagedPath::<Runtime>::parse("api_sock", text, &self.policy).is_ok()
        };
        let mut values = words.split(|byte| *byte == 0).skip_while(|word| *word != b"--id");
        let id = values.nth(1).and_then(|id| std::str::from_utf8(id).ok());
        let id = id.and_then(|id| JailId::parse("vm_id", id).ok());
        let copy = id.and_then(|id| Jail::executable(&self.policy, &id));
        cgroup::holds(process.pid)
            || copy == Some(executed.file)
            || api_sockets(&words).iter().any(is_below)
    }
}
