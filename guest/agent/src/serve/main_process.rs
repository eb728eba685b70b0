//! The main process: the program that the machine exists for, and with which it ends.
//!
//! ```text
//!  configure ─► held ─(a client attaches, or half a minute)─► running ─► ended ─► settled
//!                 └───────(the machine is to stop)──────────────────────────────────┘
//! ```
//! Its output goes to the console and to the client that is attached, if any. Ended, it is settled
//! once its last output is out and the host has taken its exit status; then the machine powers off.
//! A host that is away (its daemon is being replaced) has half a minute to come back.

use std::cell::RefCell;
use std::ops::ControlFlow;
use std::rc::Rc;
use std::time::Duration;

use banger_agent_api::{
    AgentError, AttachMainCall, ConfigureCall, Empty, ErrorCode, ExecStarted, ExitStatus, Frame,
    FrameKind, FrameWriter, GuestPath, InitKind, MAX_FRAME_PAYLOAD, MAX_RESPONSE, MainProcess,
    Outcome, Response, WireError, write_message,
};
use bytes::Bytes;
use rustix::process::{Pid, Signal};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadHalf, WriteHalf};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

use super::calls::{NETWORK_PATIENCE, Server, begin, init_kind, refuse};
use super::command::{Attached, Command, Running, reap};
use super::console_log::ConsoleLog;
use super::input::{Audience, Input, Sink};
use super::output::{Credit, DRAIN_SILENCE, Sources};
use super::power_off;
use crate::console;

/// How long a held main process waits for a client.
const HOLD: Duration = Duration::from_secs(30);
/// How long the machine waits for the host to take the exit status.
const HOST_PATIENCE: Duration = Duration::from_secs(30);
/// The same while the machine is being stopped, and for a client that has been told.
const SHORT_PATIENCE: Duration = Duration::from_secs(2);

/// A stream of a client's.
trait Duplex: AsyncRead + AsyncWrite {}
impl<T: AsyncRead + AsyncWrite> Duplex for T {}
type Stream = std::pin::Pin<Box<dyn Duplex>>;

/// Where the main process is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// There is none.
    None,
    Held,
    Running(Pid),
    Ended(ExitStatus),
    /// It has ended, or will never run, and nothing waits for it.
    Settled(Option<ExitStatus>),
}

/// The main process as the server knows it.
#[derive(Debug)]
pub(super) struct Main {
    phase: watch::Sender<Phase>,
    stopping: watch::Sender<bool>,
    /// The host has taken the exit status.
    taken: watch::Sender<bool>,
    plan: RefCell<Option<MainProcess>>,
    attach: RefCell<Option<mpsc::Sender<Attachment>>>,
}

impl Default for Main {
    fn default() -> Self {
        Self {
            phase: watch::Sender::new(Phase::None),
            stopping: watch::Sender::new(false),
            taken: watch::Sender::new(false),
            plan: RefCell::default(),
            attach: RefCell::default(),
        }
    }
}

/// A client that wants to be attached.
struct Attachment {
    call: AttachMainCall,
    stream: Stream,
}

impl std::fmt::Debug for Attachment {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Attachment").field("call", &self.call).finish_non_exhaustive()
    }
}

/// Takes what the host says of programs, and begins the main process's life.
pub(super) fn configure(server: &Rc<Server>, call: ConfigureCall) -> Result<Empty, AgentError> {
    for volume in &call.volumes {
        make_directory("volume", volume)?;
    }
    let environment = call.environment;
    let Some(main) = call.main.filter(|_| *server.main.phase.borrow() == Phase::None) else {
        server.environment.replace(environment);
        return Ok(Empty {});
    };
    // Whether there is such a user is known now; the terminal's part comes with the client.
    Command::of_main(&main, &environment, None)?;
    if let Some(directory) = &main.cwd {
        make_directory("working directory", directory)?;
    }
    server.environment.replace(environment);
    let (attach, attachments) = mpsc::channel(1);
    server.main.attach.replace(Some(attach));
    server.main.plan.replace(Some(main.clone()));
    server.main.phase.send_replace(Phase::Held);
    tokio::task::spawn_local(live(Rc::clone(server), main, attachments));
    Ok(Empty {})
}

fn make_directory(what: &str, path: &GuestPath) -> Result<(), AgentError> {
    use std::os::unix::ffi::OsStrExt;
    let directory = std::path::Path::new(std::ffi::OsStr::from_bytes(path.as_bytes()));
    std::fs::create_dir_all(directory).map_err(|error| {
        let words = format!("cannot make the {what} {}: {error}", directory.display());
        AgentError::new(ErrorCode::Failed, words)
    })
}

/// Hands a client to the main process.
pub(super) async fn attach<S>(
    server: &Server,
    call: AttachMainCall,
    mut stream: S,
) -> Result<(), WireError>
where
    S: AsyncRead + AsyncWrite + Unpin + 'static,
{
    let attach = server.main.attach.borrow().clone();
    let Some(attach) = attach else { return refuse(&mut stream, none()).await };
    match attach.send(Attachment { call, stream: Box::pin(stream) }).await {
        Ok(()) => Ok(()),
        Err(mpsc::error::SendError(mut late)) => refuse(&mut late.stream, ended()).await,
    }
}

fn none() -> AgentError {
    AgentError::new(ErrorCode::NoMainProcess, "this machine has no main process")
}

fn ended() -> AgentError {
    AgentError::new(ErrorCode::NoMainProcess, "the main process has ended")
}

/// Tells the host how the main process ended, once it has.
pub(super) async fn wait<S>(server: &Server, mut stream: S) -> Result<(), WireError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    if *server.main.phase.borrow() == Phase::None {
        return refuse(&mut stream, none()).await;
    }
    begin(&mut stream, Empty {}).await?;
    let (mut reader, writer) = tokio::io::split(stream);
    let mut phase = server.main.phase.subscribe();
    let end = phase.wait_for(|phase| matches!(phase, Phase::Ended(_) | Phase::Settled(_)));
    let mut rest = [0; 16];
    let status = tokio::select! {
        end = end => end.map_or(None, |phase| match *phase {
            Phase::Ended(status) => Some(status),
            Phase::Settled(status) => status,
            _ => None,
        }),
        // Nothing more is to come from the host: it is gone.
        _ = reader.read(&mut rest) => return Ok(()),
    };
    let Some(status) = status else { return Ok(()) };
    let mut writer = FrameWriter::new(writer);
    writer.send(&Frame::Exit(status)).await?;
    writer.shutdown().await?;
    // The host hangs up when it has kept it.
    let _ = tokio::time::timeout(SHORT_PATIENCE, reader.read(&mut rest)).await;
    server.main.taken.send_replace(true);
    Ok(())
}

impl Main {
    /// Asks the main process to end by its own signal, ends it by force after `grace`, and waits
    /// until nothing needs it any more.
    pub(super) async fn stop(&self, grace: Duration) {
        self.stopping.send_replace(true);
        let mut phase = self.phase.subscribe();
        let over = |phase: &Phase| matches!(phase, Phase::None | Phase::Settled(_));
        let signal = self.plan.borrow().as_ref().map(|plan| plan.stop_signal.get());
        if let (Phase::Running(pid), Some(signal)) = (*phase.borrow(), signal) {
            let _ = banger_guest_sys::send_signal(pid.as_raw_nonzero().get(), i32::from(signal));
        }
        if tokio::time::timeout(grace, phase.wait_for(over)).await.is_err() {
            if let Phase::Running(pid) = *phase.borrow() {
                console::error("the main process did not end in time and is killed");
                let _ = rustix::process::kill_process(pid, Signal::KILL);
            }
            let _ = tokio::time::timeout(SHORT_PATIENCE * 2, phase.wait_for(over)).await;
        }
    }

    async fn stopping(&self) {
        let _ = self.stopping.subscribe().wait_for(|stopping| *stopping).await;
    }
}

/// The main process's life, to the machine's end.
async fn live(server: Rc<Server>, plan: MainProcess, mut attachments: mpsc::Receiver<Attachment>) {
    server.network_settled(NETWORK_PATIENCE).await;
    let main = &server.main;
    let first = tokio::select! {
        biased;
        () = main.stopping() => {
            main.phase.send_replace(Phase::Settled(None));
            return;
        }
        first = attachments.recv(), if plan.held => first,
        () = tokio::time::sleep(if plan.held { HOLD } else { Duration::ZERO }) => None,
    };
    let mut log = ConsoleLog::open();
    let status = run(&server, &plan, first, &mut attachments, &mut log).await;
    attachments.close();
    main.phase.send_replace(Phase::Ended(status));
    let mut taken = main.taken.subscribe();
    let taken = taken.wait_for(|taken| *taken);
    let patience = async {
        tokio::select! {
            () = tokio::time::sleep(HOST_PATIENCE) => {}
            () = async {
                main.stopping().await;
                tokio::time::sleep(SHORT_PATIENCE).await;
            } => {}
        }
    };
    tokio::select! {
        _ = taken => {}
        () = patience => {}
    }
    let stopping = *main.stopping.borrow();
    main.phase.send_replace(Phase::Settled(Some(status)));
    // Whoever stops the machine goes on; elsewhere than under this PID 1 it is not ours to end.
    if !stopping && init_kind() == InitKind::Agent {
        power_off::after_main(&server).await;
    }
}

/// Runs the main process to its end.
async fn run(
    server: &Server,
    plan: &MainProcess,
    first: Option<Attachment>,
    attachments: &mut mpsc::Receiver<Attachment>,
    log: &mut ConsoleLog,
) -> ExitStatus {
    let call = first.as_ref().map(|first| first.call.clone()).unwrap_or_default();
    let environment = server.environment.borrow().clone();
    let started = Command::of_main(plan, &environment, call.pty.as_ref())
        .and_then(|command| command.start(call.pty.as_ref(), call.stdin, None));
    let (running, attached) = match started {
        Ok(started) => started,
        Err(error) => {
            console::error(&format!("the main process cannot be started: {error}"));
            if let Some(mut first) = first {
                let _ = refuse(&mut first.stream, error).await;
            }
            return ExitStatus::Code(126);
        }
    };
    server.main.phase.send_replace(Phase::Running(running.pid));
    Attendance::new(running, attached, log).attend(first, attachments).await
}

/// A client that is attached.
struct Client {
    writer: FrameWriter<WriteHalf<Stream>>,
    /// Ends when the client is gone.
    reading: JoinHandle<()>,
}

/// What the running main process needs.
struct Attendance<'a> {
    running: Running,
    sources: Sources,
    /// Our copy keeps a terminal from hanging up while the process has none open.
    peer: Option<std::os::fd::OwnedFd>,
    input: Rc<Input>,
    credit: Rc<Credit>,
    feeding: JoinHandle<()>,
    client: Option<Client>,
    log: &'a mut ConsoleLog,
    buffers: [Vec<u8>; 2],
}

impl<'a> Attendance<'a> {
    fn new(running: Running, attached: Attached, log: &'a mut ConsoleLog) -> Self {
        let (sink, sources, peer) = Sources::of(attached);
        let input = Rc::new(Input::new(running.pid, sink.terminal(), Audience::Leader));
        let credit = Rc::new(Credit::default());
        let feeding = tokio::task::spawn_local(feed(Rc::clone(&input), sink, Rc::clone(&credit)));
        let buffers = [vec![0; MAX_FRAME_PAYLOAD], vec![0; MAX_FRAME_PAYLOAD]];
        Self { running, sources, peer, input, credit, feeding, client: None, log, buffers }
    }

    async fn attend(
        mut self,
        first: Option<Attachment>,
        attachments: &mut mpsc::Receiver<Attachment>,
    ) -> ExitStatus {
        if let Some(first) = first {
            self.take(first).await;
        }
        loop {
            let piece = tokio::select! {
                _ = self.running.exit.readable() => break,
                piece = self.sources.read(&mut self.buffers) => piece,
                Some(next) = attachments.recv() => {
                    self.take(next).await;
                    continue;
                }
                () = gone(&mut self.client) => {
                    self.client = None;
                    continue;
                }
                count = self.credit.due(), if self.client.is_some() => {
                    self.tell(&Frame::StdinCredit(count)).await;
                    continue;
                }
            };
            self.deliver(piece).await;
        }
        drop(self.peer.take());
        // What is left of the output; a background process may hold the pipe for ever, and fill it.
        let end = tokio::time::Instant::now() + SHORT_PATIENCE;
        while self.sources.are_open() && tokio::time::Instant::now() < end {
            let more = self.sources.read(&mut self.buffers);
            match tokio::time::timeout(DRAIN_SILENCE, more).await {
                Ok(piece) => self.deliver(piece).await,
                Err(_) => break,
            }
        }
        let status = reap(&self.running.exit);
        self.feeding.abort();
        if let Some(mut client) = self.client.take() {
            let told = async {
                client.writer.send(&Frame::Exit(status)).await?;
                client.writer.shutdown().await
            };
            if let Ok(Ok(())) = tokio::time::timeout(SHORT_PATIENCE, told).await {
                // It hangs up when it has read everything.
                let _ = tokio::time::timeout(SHORT_PATIENCE, &mut client.reading).await;
            }
            client.reading.abort();
        }
        self.log.flush().await;
        status
    }

    /// Attaches a client, unless one is.
    async fn take(&mut self, attachment: Attachment) {
        let mut stream = attachment.stream;
        if self.client.is_some() {
            let error = AgentError::new(ErrorCode::Refused, "someone else is attached");
            let _ = refuse(&mut stream, error).await;
            return;
        }
        let pid = self.running.pid.as_raw_nonzero().get().unsigned_abs();
        let answer = Response::new(Outcome::Ok(ExecStarted { pid }));
        if write_message(&mut stream, &answer, MAX_RESPONSE).await.is_err() {
            return;
        }
        let (reader, writer) = tokio::io::split(stream);
        let reading = tokio::task::spawn_local(read(Rc::clone(&self.input), reader));
        self.client = Some(Client { writer: FrameWriter::new(writer), reading });
    }

    async fn deliver(&mut self, piece: ControlFlow<(), (FrameKind, usize)>) {
        let ControlFlow::Continue((kind, count)) = piece else { return };
        let stderr = kind == FrameKind::Stderr;
        let bytes = Bytes::copy_from_slice(&self.buffers[usize::from(stderr)][..count]);
        let frame =
            if stderr { Frame::Stderr(bytes.clone()) } else { Frame::Stdout(bytes.clone()) };
        self.tell(&frame).await;
        self.log.write(&bytes, self.client.is_some()).await;
    }

    /// Sends to the client; one that cannot be reached is not attached any more, and neither is one
    /// that does not read while the process has ended.
    async fn tell(&mut self, frame: &Frame) {
        let Some(client) = &mut self.client else { return };
        let over = async {
            let _ = self.running.exit.readable().await;
            tokio::time::sleep(SHORT_PATIENCE).await;
        };
        let sent = tokio::select! {
            sent = client.writer.send(frame) => sent.is_ok(),
            () = over => false,
        };
        if !sent {
            client.reading.abort();
            self.client = None;
        }
    }
}

async fn feed(input: Rc<Input>, sink: Sink, credit: Rc<Credit>) {
    input.feed(sink, &credit).await;
}

async fn read(input: Rc<Input>, reader: ReadHalf<Stream>) {
    let error = input.receive(reader).await;
    console::info(&format!("a client left the main process: {}", console::chain(&error)));
}

/// Resolves when the client, if there is one, is gone.
async fn gone(client: &mut Option<Client>) {
    match client {
        Some(client) => drop((&mut client.reading).await),
        None => std::future::pending().await,
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.reading.abort();
    }
}
