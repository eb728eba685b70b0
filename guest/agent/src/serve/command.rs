//! A process of the image: what it is started with, and how it ends.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::rc::Rc;

use banger_agent_api::{
    AgentError, Argument, EnvironmentEntry, ErrorCode, ExecCall, ExitStatus, MainProcess, PtyCall,
};
use banger_guest_sys::{Child, ChildPlan};
use rustix::process::{Pid, WaitId, WaitIdOptions};
use tokio::io::unix::AsyncFd;
use tokio::net::unix::pipe;

use super::cgroup::Cgroup;
use super::terminal::Terminal;
use super::{environment, users};

/// Soft limit for programs that use select(2), hard limit for those that ask (systemd's defaults).
const OPEN_FILES: (u64, u64) = (1024, 524_288);

pub(super) fn failed(what: &str, error: impl std::fmt::Display) -> AgentError {
    AgentError::new(ErrorCode::Failed, format!("{what}: {error}"))
}

/// Everything of a command that does not depend on its input and output.
pub(super) struct Command {
    programs: Vec<CString>,
    argv: Vec<CString>,
    envp: Vec<CString>,
    cwd: CString,
    pub(super) user: users::User,
}

impl Command {
    /// Prepares an exec, which has the image's environment too.
    pub(super) fn of_exec(
        call: &ExecCall,
        image_environment: &[EnvironmentEntry],
    ) -> Result<Self, AgentError> {
        let user = users::look_up(call.user.as_ref())?;
        let defaults = std::fs::read_to_string("/etc/environment").unwrap_or_default();
        let environment = environment::build(&user, call, &defaults, image_environment);
        // An image whose user has no home still runs commands.
        let home = if user.home.is_dir() { user.home.as_os_str().as_bytes() } else { b"/" };
        let cwd = call.cwd.as_ref().map_or(home, |path| path.as_bytes()).to_vec();
        Self::prepare(&call.argv, &environment, &cwd, user)
    }

    /// Prepares the main process, which has an image's environment and nothing of a login's.
    pub(super) fn of_main(
        main: &MainProcess,
        image_environment: &[EnvironmentEntry],
        pty: Option<&PtyCall>,
    ) -> Result<Self, AgentError> {
        let user = users::look_up_for_image(main.user.as_ref())?;
        let environment = environment::of_main(&user, pty, image_environment);
        let cwd = main.cwd.as_ref().map_or(&b"/"[..], |path| path.as_bytes());
        Self::prepare(&main.argv, &environment, cwd, user)
    }

    fn prepare(
        argv: &[Argument],
        environment: &environment::Environment,
        cwd: &[u8],
        user: users::User,
    ) -> Result<Self, AgentError> {
        let Some(name) = argv.first() else {
            return Err(AgentError::new(ErrorCode::BadRequest, "there is no command to run"));
        };
        Ok(Self {
            programs: environment::candidates(name, environment),
            argv: argv.iter().filter_map(|text| CString::new(text.as_bytes()).ok()).collect(),
            envp: environment::to_strings(environment),
            cwd: CString::new(cwd).unwrap_or_default(),
            user,
        })
    }

    /// Starts it on a terminal or on pipes; `stdin` is whether it reads anything but nothing.
    pub(super) fn start(
        &self,
        pty: Option<&PtyCall>,
        stdin: bool,
        cgroup: Option<Cgroup>,
    ) -> Result<(Running, Attached), AgentError> {
        let result = match pty {
            Some(pty) => {
                let (terminal, peer) = Terminal::open(pty.size, &self.user.identity)
                    .map_err(|error| failed("cannot open a terminal", error))?;
                self.spawn([&peer, &peer, &peer], true, cgroup.as_ref())
                    .map(|child| (child, Attached::Terminal { terminal: Rc::new(terminal), peer }))
            }
            None => self.start_on_pipes(stdin, cgroup.as_ref()),
        };
        let (child, attached) = result.map_err(|error| failed("cannot start a process", error))?;
        let exit = banger_guest_sys::watch(child.pidfd, tokio::io::Interest::READABLE)
            .map_err(|error| failed("cannot watch a process", error))?;
        let pid =
            Pid::from_raw(child.pid).ok_or_else(|| failed("cannot watch a process", "no pid"))?;
        Ok((Running { pid, exit, cgroup }, attached))
    }

    pub(super) fn spawn(
        &self,
        stdio: [&OwnedFd; 3],
        terminal: bool,
        cgroup: Option<&Cgroup>,
    ) -> io::Result<Child> {
        banger_guest_sys::spawn(&ChildPlan {
            programs: &self.programs,
            argv: &self.argv,
            envp: &self.envp,
            cwd: &self.cwd,
            identity: &self.user.identity,
            stdio: stdio.map(AsFd::as_fd),
            terminal,
            cgroup: cgroup.map(AsFd::as_fd),
            open_files: OPEN_FILES,
        })
    }

    fn start_on_pipes(
        &self,
        stdin: bool,
        cgroup: Option<&Cgroup>,
    ) -> io::Result<(Child, Attached)> {
        let make = || rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC);
        let (stdin_reader, stdin_writer) = if stdin {
            let (reader, writer) = make()?;
            (reader, Some(pipe::Sender::from_owned_fd(writer)?))
        } else {
            (std::fs::File::open("/dev/null")?.into(), None)
        };
        let ((stdout, stdout_writer), (stderr, stderr_writer)) = (make()?, make()?);
        // Images log by opening /dev/stdout, which is open(2) of the pipe as the user who runs.
        let owner = rustix::fs::Uid::from_raw(self.user.identity.uid);
        for pipe in [&stdin_reader, &stdout_writer, &stderr_writer] {
            if self.user.identity.uid != 0 && rustix::fs::fstat(pipe).is_ok_and(is_pipe) {
                rustix::fs::fchown(pipe, Some(owner), None)?;
            }
        }
        let attached = Attached::Pipes {
            stdin: stdin_writer,
            stdout: pipe::Receiver::from_owned_fd(stdout)?,
            stderr: pipe::Receiver::from_owned_fd(stderr)?,
        };
        let child = self.spawn([&stdin_reader, &stdout_writer, &stderr_writer], false, cgroup)?;
        Ok((child, attached))
    }
}

fn is_pipe(status: rustix::fs::Stat) -> bool {
    rustix::fs::FileType::from_raw_mode(status.st_mode) == rustix::fs::FileType::Fifo
}

/// The agent's ends of a command's input and output.
pub(super) enum Attached {
    Pipes { stdin: Option<pipe::Sender>, stdout: pipe::Receiver, stderr: pipe::Receiver },
    Terminal { terminal: Rc<Terminal>, peer: OwnedFd },
}

/// A started command.
pub(super) struct Running {
    pub(super) pid: Pid,
    pub(super) exit: AsyncFd<OwnedFd>,
    pub(super) cgroup: Option<Cgroup>,
}

/// Collects the exit status of a process whose pidfd is readable.
pub(super) fn reap(exit: &AsyncFd<OwnedFd>) -> ExitStatus {
    let status = rustix::process::waitid(
        WaitId::PidFd(exit.get_ref().as_fd()),
        WaitIdOptions::EXITED | WaitIdOptions::NOHANG,
    );
    let number = |value: i32| u8::try_from(value & 0xff).unwrap_or(u8::MAX);
    match status {
        Ok(Some(status)) => match (status.exit_status(), status.terminating_signal()) {
            (Some(code), _) => ExitStatus::Code(number(code)),
            (None, Some(signal)) => ExitStatus::Signal(number(signal)),
            (None, None) => ExitStatus::Code(255),
        },
        _ => ExitStatus::Code(255),
    }
}
