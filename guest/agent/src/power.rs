//! Ending the machine.

use std::time::Duration;

use banger_agent_api::{BootConfig, MachineEnd};
use banger_guest_sys::first_realtime_signal;
use rustix::mount::{MountFlags, UnmountFlags};
use rustix::process::{Pid, Signal};
use rustix::system::RebootCommand;

use crate::console;

/// Whether this machine ends by a restart, as the host said: it has no power switch.
pub(crate) fn ends_by_restart() -> bool {
    let line = std::fs::read_to_string("/proc/cmdline").unwrap_or_default();
    BootConfig::parse(&line).is_ok_and(|config| config.end == MachineEnd::Restart)
}

/// What ends the machine, for systemd, and for the supervisor as PID 1 too (systemd(1): SIGRTMIN+4
/// powers off, SIGRTMIN+5 restarts).
pub(crate) fn end_signal() -> i32 {
    first_realtime_signal() + if ends_by_restart() { 5 } else { 4 }
}

/// Returns whether PID 1 takes the signal of [`end_signal`]: it has a handler for it, or
/// blocks it to read it from a descriptor as systemd does (proc_pid_status(5), SigCgt and SigBlk).
/// Says nothing about a process in sigtimedwait(2), which shows neither while it waits.
pub(crate) fn init_listens() -> bool {
    let status = std::fs::read_to_string("/proc/1/status").unwrap_or_default();
    takes_signal(&status, end_signal())
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
    end()
}

/// Where systemd-shutdown(8) looks for a program that takes over when it has ended everything and
/// unmounted what it could (bootup(7), "System Manager Shutdown").
const LAST_PROGRAM: &str = "/run/initramfs/shutdown";
/// Its name when it is executed, from the directory that has become the root.
pub(crate) const LAST_PROGRAM_NAME: &str = "/shutdown";

/// Has systemd end the machine by us: told to power off, it would halt one that has no power switch,
/// whose VMM would then stay for ever.
pub(crate) fn take_over_from_systemd() {
    if !ends_by_restart() {
        return;
    }
    // The initrd's own file system is out of sight; this process outlives systemd's killing.
    let program = format!("/proc/{}/exe", std::process::id());
    let made = std::fs::create_dir_all("/run/initramfs")
        .and_then(|()| std::os::unix::fs::symlink(program, LAST_PROGRAM));
    if let Err(error) = made {
        console::error(&format!("cannot make {LAST_PROGRAM}: {error}"));
    }
}

/// Ends the machine, whose disks are clean.
pub(crate) fn end() -> ! {
    rustix::fs::sync();
    let command = if ends_by_restart() { RebootCommand::Restart } else { RebootCommand::PowerOff };
    let result = rustix::system::reboot(command);
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
