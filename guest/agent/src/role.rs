//! Which part of the agent this process is.

use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode, Stdio};

use crate::{boot, console, power, serve, supervise};

/// What a process of the agent does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// PID 1 of the initrd.
    Boot,
    /// Loads what may come late.
    Late,
    /// Keeps a server running beside the image's init.
    Supervisor,
    /// Answers the host.
    Server,
    /// Ends the machine when systemd has ended everything else; PID 1 again.
    Last,
}

impl Role {
    fn argument(self) -> &'static str {
        match self {
            Self::Boot => "boot",
            Self::Late => "late",
            Self::Supervisor => "supervisor",
            Self::Server => "server",
            Self::Last => "last",
        }
    }

    /// The process's name; its `@` is what systemd's killing spares.
    fn process_name(self) -> &'static str {
        match self {
            Self::Boot => "/init",
            Self::Late => "@banger-late",
            Self::Supervisor => "@banger-supervisor",
            Self::Server => "@banger-agent",
            Self::Last => power::LAST_PROGRAM_NAME,
        }
    }

    /// Returns the command that starts this program again in this role, with no input or output.
    pub(crate) fn command(self) -> Command {
        let mut command = Command::new("/proc/self/exe");
        command
            .arg0(self.process_name())
            .arg(self.argument())
            .env_clear()
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        command
    }

    fn of_this_process() -> Option<Self> {
        let mut args = std::env::args_os();
        if args.next().is_some_and(|name| name == power::LAST_PROGRAM_NAME) {
            return Some(Self::Last);
        }
        let first = args.next();
        let named = [Self::Late, Self::Supervisor, Self::Server]
            .into_iter()
            .find(|role| first.as_deref().is_some_and(|argument| argument == role.argument()));
        // The kernel may append words of its command line to /init's arguments.
        if rustix::process::getpid().is_init() { Some(Self::Boot) } else { named }
    }
}

/// Runs this process's role.
#[must_use]
pub fn run() -> ExitCode {
    let Some(role) = Role::of_this_process() else {
        console::error("this program is the init of a banger guest; nothing to do here");
        return ExitCode::from(2);
    };
    if role != Role::Boot {
        // The name in /proc/PID/comm would be `exe`.
        let name = std::ffi::CString::new(role.process_name()).unwrap_or_default();
        let _ = rustix::thread::set_name(&name);
        // Own session: a hang-up of the console must not reach it. Fails only for a leader.
        let _ = rustix::process::setsid();
    }
    match role {
        Role::Boot => boot::run(),
        Role::Late => boot::run_late(),
        Role::Supervisor => supervise::run(supervise::Duty::Beside),
        Role::Server => serve::run(),
        Role::Last => power::end(),
    }
}
