//! Sockets that systemd passed (`sd_listen_fds(3)`).

use std::io;
use std::os::fd::{FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};

/// The first passed descriptor.
const FIRST: i32 = 3;
const MOST: i32 = 16;

/// Takes what was passed to this process, once; nothing where nothing was passed.
///
/// # Errors
/// Called twice, a number that is none or too many, a descriptor that is not open.
pub fn take() -> io::Result<Vec<OwnedFd>> {
    static TAKEN: AtomicBool = AtomicBool::new(false);
    let invalid = |message: &str| io::Error::new(io::ErrorKind::InvalidInput, message.to_owned());
    if TAKEN.swap(true, Ordering::SeqCst) {
        return Err(invalid("passed sockets are taken once"));
    }
    let variable = |name: &str| std::env::var(name).ok();
    if variable("LISTEN_PID").and_then(|pid| pid.parse().ok()) != Some(std::process::id()) {
        return Ok(Vec::new());
    }
    let Some(count) = variable("LISTEN_FDS") else { return Ok(Vec::new()) };
    let count = count.parse::<i32>().ok().filter(|count| (0..=MOST).contains(count));
    let count = count.ok_or_else(|| invalid("LISTEN_FDS is no small number"))?;
    let mut taken = Vec::new();
    for number in FIRST..FIRST + count {
        // SAFETY: fcntl with F_SETFD takes a number and no pointer; a number that is not open is an
        // error.
        if unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) } < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptor is open, as the call above showed. It was there when the process
        // began, by the protocol for us alone, and this function runs once, so nothing else owns it.
        taken.push(unsafe { OwnedFd::from_raw_fd(number) });
    }
    Ok(taken)
}
