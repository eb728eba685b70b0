//! Stands between banger and a tool that must not outlive it, not even when banger is killed.
//!
//! Banger starts itself again as the supervisor and holds the writing end of its standard input.
//! When that closes, by intent or by banger's death, the supervisor ends the tool with all its
//! children, and removes the tool's directory. It relays what the tool complains about, so that the
//! tool never meets a broken pipe before it has tidied up.

use std::ffi::OsString;
use std::io::{self, Read, Write};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use nix::sched::CloneFlags;
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::mount::MountPropagationFlags;

use super::workplace;

/// How long a tool may take to remove its own files after it was asked to end.
const GRACE: Duration = Duration::from_secs(20);
const TICK: Timespec = Timespec { tv_sec: 0, tv_nsec: 50_000_000 };

/// Runs `program` with `arguments` until it ends or standard input closes, then removes
/// `directory`, and returns how the program ended.
///
/// # Errors
/// A program that cannot be started or waited for.
pub fn supervise(
    directory: &Path,
    program: &OsString,
    arguments: &[OsString],
) -> io::Result<ExitStatus> {
    // The tool mounts /proc, /sys and parts of the host's /dev in its directory. In a namespace of
    // our own they end with us, even when all of us are killed.
    let own_mounts = rustix::process::geteuid().is_root() && leave_host_mounts().is_ok();
    let ended = run(program, arguments);
    if own_mounts {
        workplace::detach_mounts(directory);
    }
    workplace::remove(directory);
    ended
}

/// Enters a mount namespace of our own, in which nothing reaches the host's.
pub(super) fn leave_host_mounts() -> io::Result<()> {
    nix::sched::unshare(CloneFlags::CLONE_NEWNS)?;
    // A shared mount would pass ours on (mount_namespaces(7)).
    let flags = MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC;
    Ok(rustix::mount::mount_change("/", flags)?)
}

fn run(program: &OsString, arguments: &[OsString]) -> io::Result<ExitStatus> {
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::inherit())
        .stderr(Stdio::piped())
        .process_group(0)
        .spawn()?;
    let errors = child.stderr.take();
    let relay = std::thread::spawn(move || {
        let Some(mut errors) = errors else { return };
        let mut buffer = [0; 4096];
        while let Ok(read @ 1..) = errors.read(&mut buffer) {
            // Nobody may be listening any more; the tool must be heard out nevertheless.
            let _ = io::stderr().write_all(&buffer[..read]);
        }
    });
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        let stdin = io::stdin();
        let mut fds = [PollFd::new(&stdin, PollFlags::IN)];
        if poll(&mut fds, Some(&TICK)).is_ok_and(|ready| ready > 0) {
            break stop(&mut child)?;
        }
    };
    // Some child of the tool may still hold the pipe; its words no longer matter.
    let deadline = Instant::now() + Duration::from_secs(1);
    while !relay.is_finished() && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(status)
}

/// Asks the tool and its children to end, as Ctrl-C at a terminal would; kills them if they do not.
fn stop(child: &mut Child) -> io::Result<ExitStatus> {
    // It is our child and not yet waited for, so the id is still its own.
    let group = Pid::from_raw(child.id().cast_signed());
    let _ = killpg(group, Signal::SIGTERM);
    let deadline = Instant::now() + GRACE;
    while Instant::now() < deadline {
        if let Some(status) = child.try_wait()? {
            return Ok(status);
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    let _ = killpg(group, Signal::SIGKILL);
    child.wait()
}
