//! Keeps the server running; as PID 1 it also reaps every orphan and ends the machine.
//!
//! It holds no memory worth mentioning and parses nothing that comes from outside.

use std::os::fd::AsFd;
use std::process::{Child, ExitCode, Stdio};
use std::time::{Duration, Instant};

use banger_guest_sys::{SignalSet, first_realtime_signal};
use rustix::process::{Pid, Signal, WaitOptions};

use crate::role::Role;
use crate::{console, power};

/// Whether the image has an init of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Duty {
    /// The image's init is PID 1.
    Beside,
    /// This process is PID 1.
    Init,
}

/// A server that lives shorter than this is restarted only after [`RESTART_PAUSE`].
const HEALTHY_LIFE: Duration = Duration::from_secs(5);
const RESTART_PAUSE: Duration = Duration::from_secs(1);

/// Between SIGTERM and SIGKILL when PID 1 ends the machine.
const TERM_GRACE: Duration = Duration::from_secs(3);

/// Runs until the machine ends.
pub(crate) fn run(duty: Duty) -> ExitCode {
    let signals = [
        Signal::CHILD.as_raw(),
        Signal::TERM.as_raw(),
        Signal::INT.as_raw(),
        Signal::HUP.as_raw(),
        // systemd(1): one powers off, the other restarts; the machine ends either way.
        first_realtime_signal() + 4,
        first_realtime_signal() + 5,
    ];
    let set = match SignalSet::block(&signals) {
        Ok(set) => set,
        Err(error) => {
            console::error(&format!("cannot block signals: {error}"));
            return ExitCode::FAILURE;
        }
    };
    if duty == Duty::Beside {
        power::take_over_from_systemd();
    }
    let mut server = Server::default();
    loop {
        // First, for what ended while signals were not blocked yet.
        reap(&mut server);
        server.ensure();
        // From here on it waits, in the machine's whole life nearly always: what starting up (as
        // PID 1: booting) touched is not needed again.
        banger_guest_sys::release_program_pages();
        let wait = if server.child.is_some() { Duration::from_secs(3600) } else { RESTART_PAUSE };
        let signal = match set.wait(wait) {
            Ok(signal) => signal.map(|signal| signal.number),
            Err(error) => {
                console::error(&format!("cannot wait for signals: {error}"));
                std::thread::sleep(RESTART_PAUSE);
                None
            }
        };
        let ends = signal.is_some_and(|number| {
            number != Signal::CHILD.as_raw() && number != Signal::HUP.as_raw()
        });
        // Beside an init, that init ends the machine; it may also try to end us, which we outlive.
        if ends && duty == Duty::Init {
            end_machine(&mut server, &set);
        }
    }
}

/// Collects every ended child, whatever its process group. Beside an init there is only the server.
fn reap(server: &mut Server) {
    while let Ok(Some((pid, _))) = rustix::process::wait(WaitOptions::NOHANG) {
        if server.child.as_ref().is_some_and(|child| Pid::from_child(child) == pid) {
            server.child = None;
        }
    }
}

#[derive(Default)]
struct Server {
    child: Option<Child>,
    started: Option<Instant>,
}

impl Server {
    /// Starts the server unless it runs or died too young a moment ago.
    fn ensure(&mut self) {
        let young = self.started.is_some_and(|started| started.elapsed() < HEALTHY_LIFE);
        let waited = self.started.is_none_or(|started| started.elapsed() >= RESTART_PAUSE);
        if self.child.is_some() || (young && !waited) {
            return;
        }
        if self.started.is_some() {
            console::error("the agent ended and is started again");
        }
        self.started = Some(Instant::now());
        let mut command = Role::Server.command();
        // Ours is the pipe on which the late loader reports the network.
        match std::io::stdin().as_fd().try_clone_to_owned() {
            Ok(stdin) => command.stdin(Stdio::from(stdin)),
            Err(_) => command.stdin(Stdio::null()),
        };
        match command.spawn() {
            Ok(child) => self.child = Some(child),
            Err(error) => console::error(&format!("cannot start the agent: {error}")),
        }
    }
}

/// PID 1's end: terminate, kill, make the disks clean, power off.
fn end_machine(server: &mut Server, set: &SignalSet) -> ! {
    // SIGHUP too, for shells that ignore SIGTERM; SIGCONT, so that the stopped can die.
    for signal in [Signal::TERM, Signal::HUP, Signal::CONT] {
        power::signal_everyone(signal);
    }
    let deadline = Instant::now() + TERM_GRACE;
    // The server inherited the blocked signals and answers to the last.
    let own = [Some(Pid::INIT), server.child.as_ref().map(Pid::from_child)];
    while Instant::now() < deadline && power::user_processes().any(|pid| !own.contains(&Some(pid)))
    {
        let _ = set.wait(Duration::from_millis(20));
        reap(server);
    }
    power::signal_everyone(Signal::KILL);
    reap(server);
    power::power_off()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::process::CommandExt;

    /// Waits for any child of this process: a test process of its own, as nextest gives each.
    #[test]
    fn children_in_other_process_groups_are_reaped() {
        let spawn = || std::process::Command::new("true").process_group(0).spawn().unwrap();
        let orphan = spawn().id();
        let mut server = Server { child: Some(spawn()), started: Some(Instant::now()) };
        let deadline = Instant::now() + Duration::from_secs(60);
        let exists = |pid: u32| std::path::Path::new(&format!("/proc/{pid}")).exists();
        while (server.child.is_some() || exists(orphan)) && Instant::now() < deadline {
            reap(&mut server);
            std::thread::sleep(Duration::from_millis(1));
        }
        assert!(server.child.is_none() && !exists(orphan));
    }
}
