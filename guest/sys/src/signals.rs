//! Waiting for signals one at a time, as a supervisor does: blocked, then taken with a timeout.

use std::io;
use std::time::Duration;

/// A set of signals that this thread blocks and waits for.
#[derive(Clone, Copy)]
pub struct SignalSet(libc::sigset_t);

impl std::fmt::Debug for SignalSet {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("SignalSet")
    }
}

/// A signal that arrived.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WaitedSignal {
    /// Its number.
    pub number: i32,
    /// The process that sent it; 0 if the kernel did, or a process outside this pid namespace.
    pub sender: i32,
}

/// Returns SIGRTMIN; systemd counts its own signals from it.
#[must_use]
pub fn first_realtime_signal() -> i32 {
    libc::SIGRTMIN()
}

/// kill(2) with any signal number, real-time ones included, which rustix cannot name safely.
pub fn send_signal(pid: i32, number: i32) -> io::Result<()> {
    // SAFETY: kill takes no pointers, and no memory of this process depends on another's life.
    if unsafe { libc::kill(pid, number) } == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

impl SignalSet {
    /// Blocks `numbers` for the calling thread, which must be the only one.
    pub fn block(numbers: &[i32]) -> io::Result<Self> {
        // SAFETY: sigset_t is plain data, and sigemptyset initialises it before any use.
        let mut set: libc::sigset_t = unsafe { std::mem::zeroed() };
        // SAFETY: `set` is live; sigaddset refuses a number that is no signal.
        unsafe {
            libc::sigemptyset(&raw mut set);
            for &number in numbers {
                libc::sigaddset(&raw mut set, number);
            }
        }
        // SAFETY: `set` is initialised, and the old mask is not asked for.
        let result =
            unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut()) };
        if result == 0 { Ok(Self(set)) } else { Err(io::Error::from_raw_os_error(result)) }
    }

    /// Waits for one of the signals, `None` after `timeout` or where another signal interrupted.
    pub fn wait(&self, timeout: Duration) -> io::Result<Option<WaitedSignal>> {
        let time = libc::timespec {
            tv_sec: libc::time_t::try_from(timeout.as_secs()).unwrap_or(libc::time_t::MAX),
            tv_nsec: libc::c_long::from(timeout.subsec_nanos()),
        };
        // SAFETY: siginfo_t is plain data that the kernel fills in.
        let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
        // SAFETY: all three are live for the whole call.
        let number =
            unsafe { libc::sigtimedwait(&raw const self.0, &raw mut info, &raw const time) };
        if number < 0 {
            let error = io::Error::last_os_error();
            return match error.raw_os_error() {
                Some(libc::EAGAIN | libc::EINTR) => Ok(None),
                _ => Err(error),
            };
        }
        // SAFETY: si_pid is set for SI_USER, SI_QUEUE and SIGCHLD; elsewhere it is zero from the
        // initialisation or a part of the union that is plain data as well.
        Ok(Some(WaitedSignal { number, sender: unsafe { info.si_pid() } }))
    }
}
