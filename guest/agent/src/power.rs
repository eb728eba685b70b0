//! Ending the machine.

use std::time::Duration;

use banger_guest_sys::first_realtime_signal;
use rustix::mount::{MountFlags, UnmountFlags};
use rustix::process::{Pid, Signal};
use rustix::system::RebootCommand;

use crate::console;

/// What systemd understands as "power off", and the supervisor as PID 1 too (systemd(1),
/// SIGRTMIN+4).
pub(crate) fn power_off_signal() -> i32 {
    first_realtime_signal() + 4
}

/// Returns whether PID 1 takes the signal of [`power_off_signal`]: it has a handler for it, or
/// blocks it to read it from a descriptor as systemd does (proc_pid_status(5), SigCgt and SigBlk).
/// Says nothing about a process in sigtimedwait(2), which shows neither while it waits.
pub(crate) fn init_listens() -> bool {
    let status = std::fs::read_to_string("/proc/1/status").unwrap_or_default();
    takes_signal(&status, power_off_signal())
}

fn takes_signal(status: &str, signal: i32) -> bool {
    let Some(bit) = u32::try_from(signal - 1).ok().and_then(|shift| 1_u64.checked_shl(shift))
    else {
        return false;
    };
    status
        .lines()
        .filter_map(|line| line.strip_prefix("SigBlk:").or_else(|| line.strip_prefix("SigCgt:")))
        .filter_map(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .any(|mask| mask & bit != 0)
}

/// Sends `signal` to every process but PID 1 and the caller: kill(2) with -1.
pub(crate) fn signal_everyone(signal: Signal) {
    // A process group numbered 1 is written -1, which kill(2) takes for everyone.
    let _ = rustix::process::kill_process_group(Pid::INIT, signal);
}

/// Lists the processes that have a command line, which kernel threads and zombies have not.
pub(crate) fn user_processes() -> impl Iterator<Item = Pid> {
    std::fs::read_dir("/proc").into_iter().flatten().flatten().filter_map(|entry| {
        let pid: i32 = entry.file_name().to_str()?.parse().ok()?;
        let command_line = std::fs::read(entry.path().join("cmdline")).ok()?;
        Pid::from_raw(pid).filter(|_| !command_line.is_empty())
    })
}

/// Unmounts what can be unmounted, makes the rest read-only, and powers off. The caller has ended
/// every process that writes.
pub(crate) fn power_off() -> ! {
    rustix::fs::sync();
    let mounts = std::fs::read_to_string("/proc/mounts").unwrap_or_default();
    // Later mounts lie on earlier ones.
    for line in mounts.lines().rev() {
        let mut fields = line.split(' ');
        let (Some(source), Some(target)) = (fields.next(), fields.next()) else { continue };
        if !source.starts_with('/') {
            continue;
        }
        if target == "/" || rustix::mount::unmount(target, UnmountFlags::empty()).is_err() {
            let read_only = rustix::mount::mount_remount(target, MountFlags::RDONLY, "");
            if let Err(error) = read_only {
                console::error(&format!("cannot make {target} read-only: {error}"));
            }
        }
    }
    rustix::fs::sync();
    let result = rustix::system::reboot(RebootCommand::PowerOff);
    loop {
        if let Err(error) = result {
            console::error(&format!("cannot power off: {error}"));
        }
        std::thread::sleep(Duration::from_secs(60));
    }
}

#[cfg(test)]
mod tests {
    use super::takes_signal;

    #[test]
    fn a_signal_is_taken_when_it_is_blocked_or_caught() {
        let status = |blocked: &str, caught: &str| {
            format!(
                "Name:\tsystemd\nSigBlk:\t{blocked}\nSigIgn:\tffffffffffffffff\nSigCgt:\t{caught}\n"
            )
        };
        assert!(takes_signal(&status("0000002000000000", "0000000000000000"), 38));
        assert!(takes_signal(&status("0000000000000000", "0000002000000000"), 38));
        assert!(!takes_signal(&status("0000001000000000", "0000000000000000"), 38));
        assert!(!takes_signal("", 38));
        assert!(!takes_signal("SigBlk:\tnonsense\n", 38));
    }
}
