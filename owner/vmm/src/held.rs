//! A process held by pidfd, so that no act on it can ever reach another process.
//!
//! A pid alone names nothing for long: it is reused. So the pidfd is opened first and the start time
//! (proc_pid_stat(5), field 22) is compared afterwards; from then on every signal goes through the
//! pidfd and the question "is it still there" is a poll of it (pidfd_open(2): readable once the
//! process has ended, a zombie that nobody has reaped included).

use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use banger_engine::seams::{VmmError, VmmIdentity, VmmKind};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use rustix::time::Timespec;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::time::timeout;

/// How long the kernel may take to end a killed VMM (it may have to write out a disk first).
const KILL_DEADLINE: Duration = Duration::from_secs(30);

/// A process, held.
#[derive(Debug)]
pub(crate) struct HeldProcess {
    pidfd: AsyncFd<OwnedFd>,
    start_time: u64,
}

impl HeldProcess {
    /// Takes hold of the process that has `pid` now; `None` where there is none.
    ///
    /// The caller must know that the pid is the right process (it has just spawned it and not
    /// reaped it yet), or compare [`Self::start_time`] with what it remembers.
    pub(crate) fn open(pid: u32) -> io::Result<Option<Self>> {
        let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) else {
            return Ok(None);
        };
        let pidfd = match pidfd_open(pid, PidfdFlags::NONBLOCK) {
            Ok(pidfd) => pidfd,
            Err(Errno::SRCH | Errno::INVAL) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let Some(start_time) = start_time(pid)? else {
            return Ok(None);
        };
        #[expect(
            deprecated,
            reason = "its successor is unsafe because a type could change its descriptor; OwnedFd \
                      keeps one and the same until it is dropped"
        )]
        let pidfd = AsyncFd::with_interest(pidfd, Interest::READABLE)?;
        Ok(Some(Self { pidfd, start_time }))
    }

    /// Returns the start time in clock ticks since the host's boot.
    pub(crate) fn start_time(&self) -> u64 {
        self.start_time
    }

    /// Returns whether the process has ended; a zombie has.
    pub(crate) fn has_ended(&self) -> bool {
        let mut fds = [PollFd::new(self.pidfd.get_ref(), PollFlags::IN)];
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        // An interrupted or failed poll tells nothing; the process is then taken to be there, which
        // is the answer that never makes anyone forget a live one.
        poll(&mut fds, Some(&now)).is_ok_and(|ready| ready > 0)
    }

    /// Waits until the process has ended. Cancel safe.
    pub(crate) async fn ended(&self) {
        while !self.has_ended() {
            // The readiness is kept (never cleared): a pidfd that became readable stays so.
            if self.pidfd.readable().await.is_err() {
                // The runtime's driver is shutting down, and this task with it.
                std::future::pending::<()>().await;
            }
        }
    }

    /// Sends a signal; returns `false` where the process had ended already.
    pub(crate) fn signal(&self, signal: Signal) -> io::Result<bool> {
        if self.has_ended() {
            return Ok(false);
        }
        match pidfd_send_signal(self.pidfd.get_ref(), signal) {
            Ok(()) => Ok(true),
            Err(Errno::SRCH) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }
}

/// Takes hold of exactly the process that `identity` names; `None` where it has ended. An identity of
/// another kind than the driver's is an error.
pub(crate) fn hold_named(
    identity: &VmmIdentity,
    kind: VmmKind,
) -> Result<Option<HeldProcess>, VmmError> {
    let failed = |source| {
        let act = format!("looking for {}, process {}", name(kind), identity.pid);
        VmmError::Io { act, source }
    };
    if identity.kind != kind {
        let why = format!("that VMM is {}", name(identity.kind));
        return Err(failed(io::Error::new(io::ErrorKind::InvalidInput, why)));
    }
    if host_boot_id().map_err(failed)? != identity.host_boot_id {
        return Ok(None);
    }
    let held = HeldProcess::open(identity.pid).map_err(failed)?;
    Ok(held.filter(|held| held.start_time() == identity.start_time && !held.has_ended()))
}

/// Kills a VMM and waits until it is gone; returns `false` where it had ended already.
pub(crate) async fn kill(held: &HeldProcess, pid: u32, kind: VmmKind) -> Result<bool, VmmError> {
    let act = || format!("killing {}, process {pid}", name(kind));
    let sent = held.signal(Signal::KILL).map_err(|source| VmmError::Io { act: act(), source })?;
    if timeout(KILL_DEADLINE, held.ended()).await.is_err() {
        return Err(VmmError::Timeout { act: act(), seconds: KILL_DEADLINE.as_secs() });
    }
    Ok(sent)
}

/// What people call a VMM.
pub(crate) fn name(kind: VmmKind) -> &'static str {
    match kind {
        VmmKind::Firecracker => "Firecracker",
        VmmKind::Qemu => "QEMU",
    }
}

/// Returns when the process with `pid` started, in clock ticks since boot; `None` where it is gone.
fn start_time(pid: Pid) -> io::Result<Option<u64>> {
    match std::fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero())) {
        Ok(stat) => parse_start_time(&stat)
            .map(Some)
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "/proc/PID/stat: field 22")),
        Err(error) if gone(&error) => Ok(None),
        Err(error) => Err(error),
    }
}

fn gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound
        || error.raw_os_error() == Some(Errno::SRCH.raw_os_error())
}

/// Field 2 (the command's name) is in parentheses and may itself hold blanks and parentheses, so
/// the fields are counted from the last one.
fn parse_start_time(stat: &str) -> Option<u64> {
    let (_, after_name) = stat.rsplit_once(')')?;
    // After the name come field 3 (state) and on; field 22 is the twentieth of these.
    after_name.split_ascii_whitespace().nth(19)?.parse().ok()
}

/// Returns the host's boot id, which changes with each boot of the host.
pub(crate) fn host_boot_id() -> io::Result<String> {
    let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
    Ok(text.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use banger_engine::seams::Acceleration;

    use super::*;

    #[test]
    fn a_name_with_blanks_and_parentheses_does_not_shift_the_fields() {
        let rest = (3..=52).map(|n| n.to_string()).collect::<Vec<_>>().join(" ");
        for name in ["qemu", "a b", ") R 1 1", "((", ")"] {
            let stat = format!("17 ({name}) {rest}");
            assert_eq!(parse_start_time(&stat), Some(22), "{name}");
        }
        for bad in ["", "1 (x", "1 (x) R 2 3", "1 (x) R 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 z 1"] {
            assert_eq!(parse_start_time(bad), None, "{bad}");
        }
    }

    #[tokio::test]
    async fn a_zombie_has_ended() {
        let mut child = std::process::Command::new("/bin/true").spawn().unwrap();
        let held = HeldProcess::open(child.id()).unwrap().unwrap();
        held.ended().await;
        assert!(held.has_ended());
        assert!(!held.signal(Signal::KILL).unwrap());
        // Still a zombie: it can be taken hold of and is seen to have ended.
        let again = HeldProcess::open(child.id()).unwrap().unwrap();
        assert_eq!(again.start_time(), held.start_time());
        assert!(again.has_ended());
        child.wait().unwrap();
        assert!(HeldProcess::open(child.id()).unwrap().is_none());
    }

    #[tokio::test]
    async fn pids_that_name_nothing_are_refused() {
        for pid in [0, u32::MAX, i32::MAX.unsigned_abs()] {
            assert!(HeldProcess::open(pid).unwrap().is_none(), "{pid}");
        }
    }

    #[tokio::test]
    async fn only_what_an_identity_names_is_held_and_killed() {
        let mut child = std::process::Command::new("/bin/sleep").arg("600").spawn().unwrap();
        let held = HeldProcess::open(child.id()).unwrap().unwrap();
        let identity = VmmIdentity {
            kind: VmmKind::Qemu,
            acceleration: Acceleration::Tcg,
            pid: child.id(),
            start_time: held.start_time(),
            host_boot_id: host_boot_id().unwrap(),
        };
        let hold = |identity: &VmmIdentity| hold_named(identity, VmmKind::Qemu);
        let earlier = VmmIdentity { start_time: held.start_time() - 1, ..identity.clone() };
        assert!(hold(&earlier).unwrap().is_none());
        let of_another_boot = VmmIdentity { host_boot_id: String::new(), ..identity.clone() };
        assert!(hold(&of_another_boot).unwrap().is_none());
        let error = hold_named(&identity, VmmKind::Firecracker).unwrap_err().to_string();
        assert!(error.contains("looking for Firecracker"), "{error}");
        assert!(!held.has_ended());
        let held = hold(&identity).unwrap().unwrap();
        assert!(kill(&held, child.id(), VmmKind::Qemu).await.unwrap());
        assert!(!kill(&held, child.id(), VmmKind::Qemu).await.unwrap());
        assert!(hold(&identity).unwrap().is_none());
        child.wait().unwrap();
    }

    #[tokio::test]
    async fn a_signal_ends_what_is_held() {
        let mut child = std::process::Command::new("/bin/sleep").arg("600").spawn().unwrap();
        let held = HeldProcess::open(child.id()).unwrap().unwrap();
        assert!(!held.has_ended());
        assert!(held.signal(Signal::KILL).unwrap());
        held.ended().await;
        child.wait().unwrap();
    }
}
