//! Running a command for the host.
//!
//! What happens when the client vanishes (its stream ends before the command does):
//! - on a terminal, the terminal hangs up: SIGHUP to the session, as when a modem line dropped. What
//!   survives that on purpose (nohup, tmux) lives on, as after ssh.
//! - on pipes there is nobody left to notice: SIGTERM to the exec's whole cgroup (its process group
//!   where there are no cgroups), and SIGKILL two seconds later.
//!
//! A command that ends leaves its background processes running; they end with the machine.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::rc::Rc;
use std::time::{Duration, Instant};

use banger_agent_api::{
    AgentError, ErrorCode, ExecCall, ExecStarted, ExitStatus, Frame, FrameReader, MAX_RESPONSE,
    Outcome, Response, STDIN_WINDOW, SignalNumber, SpawnBenchCall, SpawnBenchReply, WireError,
    encode_message,
};
use banger_guest_sys::{Child, ChildPlan};
use bytes::{Buf, Bytes, BytesMut};
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions};
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::net::unix::pipe;
use tokio::sync::Notify;

use super::calls::{Server, refuse};
use super::cgroup::Cgroup;
use super::output::{Credit, Pump, Sources};
use super::terminal::Terminal;
use super::{environment, users};

/// Soft limit for programs that use select(2), hard limit for those that ask (systemd's defaults).
const OPEN_FILES: (u64, u64) = (1024, 524_288);

/// Between SIGTERM and SIGKILL for the processes of a vanished client.
const ABANDONED_GRACE: Duration = Duration::from_secs(2);

fn failed(what: &str, error: impl std::fmt::Display) -> AgentError {
    AgentError::new(ErrorCode::Failed, format!("{what}: {error}"))
}

/// Everything of a call that does not depend on its input and output.
struct Command {
    programs: Vec<CString>,
    argv: Vec<CString>,
    envp: Vec<CString>,
    cwd: CString,
    user: users::User,
}

impl Command {
    fn prepare(call: &ExecCall) -> Result<Self, AgentError> {
        let Some(name) = call.argv.first() else {
            return Err(AgentError::new(ErrorCode::BadRequest, "there is no command to run"));
        };
        let user = users::look_up(call.user.as_ref())?;
        let defaults = std::fs::read_to_string("/etc/environment").unwrap_or_default();
        let environment = environment::build(&user, call, &defaults);
        // An image whose user has no home still runs commands.
        let home = if user.home.is_dir() { user.home.as_os_str().as_bytes() } else { b"/" };
        let cwd = call.cwd.as_ref().map_or(home, |path| path.as_bytes());
        Ok(Self {
            programs: environment::candidates(name, &environment),
            argv: call.argv.iter().filter_map(|text| CString::new(text.as_bytes()).ok()).collect(),
            envp: environment::to_strings(&environment),
            cwd: CString::new(cwd).unwrap_or_default(),
            user,
        })
    }

    fn spawn(
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
}

/// The agent's ends of a command's input and output.
enum Attached {
    Pipes { stdin: Option<pipe::Sender>, stdout: pipe::Receiver, stderr: pipe::Receiver },
    Terminal { terminal: Terminal, peer: OwnedFd },
}

/// A started command.
struct Running {
    pid: Pid,
    exit: AsyncFd<OwnedFd>,
    cgroup: Option<Cgroup>,
}

fn start(server: &Server, call: &ExecCall) -> Result<(Running, Attached), AgentError> {
    let command = Command::prepare(call)?;
    let cgroup = server.cgroups.take();
    let result = match &call.pty {
        Some(pty) => {
            let (terminal, peer) = Terminal::open(pty.size, &command.user.identity)
                .map_err(|error| failed("cannot open a terminal", error))?;
            command
                .spawn([&peer, &peer, &peer], true, cgroup.as_ref())
                .map(|child| (child, Attached::Terminal { terminal, peer }))
        }
        None => start_on_pipes(&command, call.stdin, cgroup.as_ref()),
    };
    let (child, attached) = result.map_err(|error| failed("cannot start a process", error))?;
    let exit = banger_guest_sys::watch(child.pidfd, tokio::io::Interest::READABLE)
        .map_err(|error| failed("cannot watch a process", error))?;
    let pid = Pid::from_raw(child.pid).ok_or_else(|| failed("cannot watch a process", "no pid"))?;
    Ok((Running { pid, exit, cgroup }, attached))
}

fn start_on_pipes(
    command: &Command,
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
    let attached = Attached::Pipes {
        stdin: stdin_writer,
        stdout: pipe::Receiver::from_owned_fd(stdout)?,
        stderr: pipe::Receiver::from_owned_fd(stderr)?,
    };
    let child = command.spawn([&stdin_reader, &stdout_writer, &stderr_writer], false, cgroup)?;
    Ok((child, attached))
}

/// Runs the call to its end.
pub(super) async fn run<S>(
    server: &Rc<Server>,
    call: ExecCall,
    mut stream: S,
) -> Result<(), WireError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let (running, attached) = match start(server, &call) {
        Ok(started) => started,
        Err(error) => return refuse(&mut stream, error).await,
    };
    let on_terminal = call.pty.is_some();
    drop(call);
    server.execs.set(server.execs.get() + 1);
    let result = attend(&running, attached, stream).await;
    if result.is_err() {
        abandon(&running, on_terminal).await;
    }
    server.execs.set(server.execs.get() - 1);
    // The exit is on its way before the next exec is prepared.
    tokio::task::yield_now().await;
    if let Some(cgroup) = running.cgroup {
        server.cgroups.give_back(cgroup);
    }
    server.cgroups.prepare();
    result
}

/// Carries bytes both ways until the command ends. An error means that the client is gone; either
/// way the command's pipes or terminal are closed on return.
async fn attend<S>(running: &Running, attached: Attached, stream: S) -> Result<(), WireError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let started = ExecStarted { pid: running.pid.as_raw_nonzero().get().unsigned_abs() };
    let mut answer = BytesMut::new();
    encode_message(&Response::new(Outcome::Ok(started)), MAX_RESPONSE, &mut answer)?;
    let (reader, writer) = tokio::io::split(stream);
    let credit = Credit::default();
    let terminal;
    let (sink, sources, peer) = match attached {
        Attached::Pipes { stdin, stdout, stderr } => {
            let sources = Sources::Pipes { stdout: Some(stdout), stderr: Some(stderr) };
            (Sink::Pipe(stdin), sources, None)
        }
        Attached::Terminal { terminal: opened, peer } => {
            terminal = opened;
            let sources = Sources::Terminal { terminal: &terminal, open: true };
            (Sink::Terminal(&terminal), sources, Some(peer))
        }
    };
    let target = match &sink {
        Sink::Terminal(terminal) => Some(*terminal),
        Sink::Pipe(_) => None,
    };
    let input = Input {
        pid: running.pid,
        terminal: target,
        queue: RefCell::default(),
        more: Notify::new(),
    };
    let mut pump = Pump::new(writer, sources, &credit, answer);
    let exited = async {
        let _ = running.exit.readable().await;
        // Our copy kept the terminal from hanging up while the command had none open.
        drop(peer);
    };
    tokio::select! {
        result = pump.run(exited) => result?,
        error = input.receive(reader) => return Err(error),
        () = input.feed(sink, &credit) => {}
    }
    pump.finish(reap(&running.exit)).await
}

/// Where stdin goes.
enum Sink<'a> {
    Pipe(Option<pipe::Sender>),
    Terminal(&'a Terminal),
}

impl Sink<'_> {
    async fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Pipe(Some(pipe)) => pipe.write(bytes).await,
            Self::Pipe(None) => Err(io::ErrorKind::BrokenPipe.into()),
            Self::Terminal(terminal) => terminal.write(bytes).await,
        }
    }

    /// Ends the input: a pipe is closed, a terminal is typed its end-of-file character.
    async fn end(&mut self) {
        const END_OF_TRANSMISSION: &[u8] = &[4];
        match self {
            Self::Pipe(pipe) => *pipe = None,
            Self::Terminal(terminal) => {
                let _ = terminal.write(END_OF_TRANSMISSION).await;
            }
        }
    }
}

/// What the client sends, kept until the command takes it.
struct Input<'a> {
    pid: Pid,
    terminal: Option<&'a Terminal>,
    queue: RefCell<Queue>,
    more: Notify,
}

#[derive(Default)]
struct Queue {
    chunks: VecDeque<Bytes>,
    bytes: usize,
    ended: bool,
}

impl Input<'_> {
    /// Reads frames for as long as the client is there; returns why it is not any more.
    async fn receive(&self, reader: impl AsyncRead + Unpin) -> WireError {
        let mut reader = FrameReader::new(reader);
        loop {
            match reader.next().await {
                Ok(Some(frame)) => {
                    if let Err(error) = self.take(frame) {
                        return error;
                    }
                }
                Ok(None) => return WireError::Truncated,
                Err(error) => return error,
            }
        }
    }

    fn take(&self, frame: Frame) -> Result<(), WireError> {
        match frame {
            Frame::Stdin(bytes) => {
                let mut queue = self.queue.borrow_mut();
                queue.bytes += bytes.len();
                if queue.bytes > STDIN_WINDOW as usize {
                    let limit = STDIN_WINDOW as usize;
                    return Err(WireError::TooLong { length: queue.bytes, limit });
                }
                if !queue.ended {
                    // A copy of its own size: the frame's buffer may be larger.
                    queue.chunks.push_back(Bytes::copy_from_slice(&bytes));
                    self.more.notify_one();
                }
            }
            Frame::StdinEnd => {
                self.queue.borrow_mut().ended = true;
                self.more.notify_one();
            }
            Frame::Resize(size) => {
                if let Some(terminal) = self.terminal {
                    let _ = terminal.resize(size);
                }
            }
            Frame::Signal(number) => self.signal(number),
            _ => {}
        }
        Ok(())
    }

    /// Signals the foreground job of a terminal, or the whole process group of the command.
    fn signal(&self, number: SignalNumber) {
        let group = self.terminal.and_then(Terminal::foreground).unwrap_or(self.pid);
        let group = -group.as_raw_nonzero().get();
        let _ = banger_guest_sys::send_signal(group, i32::from(number.get()));
    }

    /// Hands input to the command as it takes it; never resolves.
    async fn feed(&self, mut sink: Sink<'_>, credit: &Credit) {
        let mut broken = false;
        loop {
            let chunk = self.queue.borrow_mut().chunks.pop_front();
            let Some(mut chunk) = chunk else {
                if self.queue.borrow().ended {
                    sink.end().await;
                    return std::future::pending().await;
                }
                self.more.notified().await;
                continue;
            };
            while !chunk.is_empty() {
                let taken = if broken { Ok(chunk.len()) } else { sink.write(&chunk).await };
                // A command that closed its input: what still comes is dropped, as a shell's
                // pipe would, and the client is not held up.
                let count = taken.unwrap_or_else(|_| {
                    broken = true;
                    chunk.len()
                });
                chunk.advance(count);
                self.queue.borrow_mut().bytes -= count;
                credit.add(u32::try_from(count).unwrap_or(u32::MAX));
            }
        }
    }
}

/// Ends what a vanished client left; see the module documentation. The pipes or the terminal are
/// closed already.
async fn abandon(running: &Running, on_terminal: bool) {
    let exited = || async {
        let _ = running.exit.readable().await;
    };
    let first = if on_terminal { Signal::HUP } else { Signal::TERM };
    for signal in [first, Signal::CONT] {
        signal_all(running, signal, on_terminal);
    }
    if on_terminal {
        exited().await;
    } else {
        let _ = tokio::time::timeout(ABANDONED_GRACE, exited()).await;
        // Also where the command itself is gone: others of its cgroup may not be.
        let deadline = Instant::now() + ABANDONED_GRACE;
        while Instant::now() < deadline
            && running.cgroup.as_ref().is_some_and(|cgroup| !cgroup.processes().is_empty())
        {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        if let Some(cgroup) = &running.cgroup {
            cgroup.kill();
        }
        let _ = rustix::process::kill_process_group(running.pid, Signal::KILL);
        exited().await;
    }
    reap(&running.exit);
}

fn signal_all(running: &Running, signal: Signal, only_group: bool) {
    let _ = rustix::process::kill_process_group(running.pid, signal);
    if only_group {
        return;
    }
    for pid in running.cgroup.iter().flat_map(Cgroup::processes).filter_map(Pid::from_raw) {
        let _ = rustix::process::kill_process(pid, signal);
    }
}

/// Collects the exit status of a process whose pidfd is readable.
fn reap(exit: &AsyncFd<OwnedFd>) -> ExitStatus {
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

/// Times the guest's own fork, exec and wait of a command, with nothing of the channel.
pub(super) async fn spawn_bench(
    server: &Server,
    call: SpawnBenchCall,
) -> Result<SpawnBenchReply, AgentError> {
    const MOST_ROUNDS: u32 = 1000;
    if !(1..=MOST_ROUNDS).contains(&call.rounds) {
        return Err(AgentError::new(ErrorCode::BadRequest, "rounds must be 1 to 1000"));
    }
    let command = Command::prepare(&ExecCall { argv: call.argv, ..ExecCall::default() })?;
    let null: OwnedFd = std::fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/null")
        .map_err(|error| failed("cannot open /dev/null", error))?
        .into();
    let cgroup = server.cgroups.take();
    let mut times = Vec::new();
    for _ in 0..call.rounds {
        let start = Instant::now();
        let child = command
            .spawn([&null, &null, &null], false, cgroup.as_ref())
            .map_err(|error| failed("cannot start a process", error))?;
        rustix::process::waitid(WaitId::PidFd(child.pidfd.as_fd()), WaitIdOptions::EXITED)
            .map_err(|error| failed("cannot wait for a process", error))?;
        times.push(u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX));
        tokio::task::yield_now().await;
    }
    if let Some(cgroup) = cgroup {
        server.cgroups.give_back(cgroup);
    }
    times.sort_unstable();
    Ok(SpawnBenchReply {
        rounds: call.rounds,
        minimum_nanos: times[0],
        median_nanos: times[times.len() / 2],
        mean_nanos: times.iter().sum::<u64>() / u64::from(call.rounds),
    })
}
