//! Runs a command in a guest with this process's standard streams as its own.
//!
//! ```text
//!   stdin ──thread──► bounded queue ──► frames ──► daemon ──► agent ──► command
//!   stdout ◄─thread── bounded queue ◄── frames ◄──   ...   ◄── command
//! ```
//! A thread per stream reads or writes blockingly, so that any kind of file works; queues are
//! bounded, so that memory stays flat however much flows. Without a terminal, signals are passed
//! on to the command; with one, the keys are.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use banger_agent_api::{
    Argument, AttachMainCall, Call, EnvironmentEntry, ExecCall, ExecStarted, Frame, FrameReader,
    FrameWriter, GuestPath, PtyCall, STDIN_WINDOW, SignalNumber, UserSpec,
};
use banger_daemon_api::routes;
use banger_daemon_api::vm::{Vm, VmState};
use banger_types::VmId;
use bytes::Bytes;
use tokio::io::AsyncWrite;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Notify, mpsc};

use crate::client::{Client, ClientError};
use crate::error::CliError;
use crate::interrupt::{Interrupt, Interrupts};
use crate::streams::{QUEUE, read_stdin, write_stream};
use crate::terminal::{self, RawMode};
use crate::{agent, environment};

/// A second Ctrl-C this soon ends the client.
const INSISTENCE: Duration = Duration::from_secs(2);
/// How long the daemon may take to record the end of a machine.
const END_DEADLINE: Duration = Duration::from_secs(2);
/// What is said of a connection that ended before its command.
const LOST: &str = "the connection to the machine broke off";

/// What to run, and how.
#[derive(Debug)]
pub struct Exec {
    /// The command and its arguments.
    pub argv: Vec<Argument>,
    /// Environment on top of the user's own in the guest.
    pub env: Vec<EnvironmentEntry>,
    /// Working directory.
    pub cwd: Option<GuestPath>,
    /// Who runs it.
    pub user: Option<UserSpec>,
    /// Give it a terminal.
    pub tty: bool,
    /// Pass our standard input on.
    pub stdin: bool,
    /// How long it may take.
    pub timeout: Option<Duration>,
}

/// Returns the command of an interactive shell: the guest user's own, as a login shell.
pub fn login_shell() -> Vec<Argument> {
    ["/bin/sh", "-c", "exec \"${SHELL:-/bin/sh}\" -l"]
        .into_iter()
        .filter_map(|text| Argument::new(text).ok())
        .collect()
}

/// Runs the command; returns its exit code, 128 plus the signal's number where one ended it.
pub async fn exec(
    client: &Client,
    vm: &VmId,
    exec: Exec,
    interrupts: &mut Interrupts,
) -> Result<u8, CliError> {
    let (tty, stdin, timeout) = (exec.tty, exec.stdin, exec.timeout);
    let call = Call::Exec(ExecCall {
        argv: exec.argv,
        env: exec.env,
        cwd: exec.cwd,
        user: exec.user,
        pty: tty.then(pty),
        stdin,
    });
    attend(client, vm, call, (tty, stdin, timeout), interrupts).await
}

/// Attaches to the machine's main process, which the machine's maker has said all of; returns its
/// exit code as [`exec`] does.
pub async fn attach_main(
    client: &Client,
    vm: &VmId,
    exec: Exec,
    interrupts: &mut Interrupts,
) -> Result<u8, CliError> {
    let (tty, stdin, timeout) = (exec.tty, exec.stdin, exec.timeout);
    let call = Call::AttachMain(AttachMainCall { pty: tty.then(pty), stdin });
    attend(client, vm, call, (tty, stdin, timeout), interrupts).await
}

/// Has a machine start its main process, which it holds for a client. Where that cannot be said, it starts
/// it by itself in half a minute; one that cannot be started ends its machine, whose log says why.
pub async fn start_main(client: &Client, vm: &VmId) {
    let call = Call::AttachMain(AttachMainCall { pty: None, stdin: false });
    let _: Result<(ExecStarted, _), CliError> = agent::call(client, vm, call).await;
}

/// This process's terminal, as a guest's program is to have one.
pub fn pty() -> PtyCall {
    PtyCall {
        size: terminal::size(),
        term: environment::terminal_type()
            .and_then(|term| Argument::new(std::os::unix::ffi::OsStringExt::into_vec(term)).ok()),
    }
}

/// Makes a call that starts a program and carries this process's standard streams until it ends.
async fn attend(
    client: &Client,
    vm: &VmId,
    call: Call,
    (tty, stdin, timeout): (bool, bool, Option<Duration>),
    interrupts: &mut Interrupts,
) -> Result<u8, CliError> {
    let (_, stream): (ExecStarted, _) = tokio::select! {
        opened = agent::call(client, vm, call) => opened?,
        interrupt = interrupts.next() => {
            return Err(CliError::interrupted(interrupt, "interrupted before the command began"));
        }
    };
    let (reader, writer) = tokio::io::split(stream);
    // Raw from here on; the guard restores the terminal however this function ends.
    let raw = if tty && io::IsTerminal::is_terminal(&io::stdin()) {
        Some(RawMode::enter()?)
    } else {
        None
    };
    let input = stdin.then(read_stdin);
    let (control, commands) = mpsc::channel(QUEUE);
    let credit = Arc::new(Credit::default());
    let sender =
        tokio::spawn(send_frames(FrameWriter::new(writer), input, commands, Arc::clone(&credit)));
    let code = tokio::select! {
        code = receive(FrameReader::new(reader), &credit) => code,
        interrupt = pass_signals(tty, interrupts, &control) => {
            Err(CliError::interrupted(interrupt, "interrupted, the command is ended"))
        }
        timeout = run_out(timeout) => Err(CliError::timed_out(format!(
            "the command took longer than {} s, and is ended",
            timeout.as_secs()
        ))),
    };
    sender.abort();
    drop(raw);
    match code {
        Err(error) => Err(explain_lost(client, vm, error).await),
        code => code,
    }
}

/// Returns when the time is up, if it is limited.
async fn run_out(timeout: Option<Duration>) -> Duration {
    match timeout {
        Some(timeout) => {
            tokio::time::sleep(timeout).await;
            timeout
        }
        None => std::future::pending().await,
    }
}

/// Counts the bytes of standard input that are on their way to a command that has not taken them
/// yet, so that signals are never stuck behind them.
#[derive(Debug, Default)]
struct Credit {
    outstanding: AtomicU32,
    returned: Notify,
}

impl Credit {
    /// Waits until `count` more bytes may be sent, and counts them.
    ///
    /// Cancel safe: what is not returned is not counted.
    async fn take(&self, count: u32) {
        loop {
            let returned = self.returned.notified();
            let taken = self.outstanding.fetch_update(Ordering::AcqRel, Ordering::Acquire, |sum| {
                sum.checked_add(count).filter(|&sum| sum <= STDIN_WINDOW)
            });
            if taken.is_ok() {
                return;
            }
            returned.await;
        }
    }

    /// Takes back what the guest says was taken; more than was sent counts as all of it.
    fn give_back(&self, count: u32) {
        let _ = self.outstanding.fetch_update(Ordering::AcqRel, Ordering::Acquire, |sum| {
            Some(sum.saturating_sub(count))
        });
        self.returned.notify_one();
    }
}

/// Writes what comes from standard input and from signals to the guest.
async fn send_frames(
    mut writer: FrameWriter<impl AsyncWrite + Unpin>,
    mut input: Option<mpsc::Receiver<Bytes>>,
    mut commands: mpsc::Receiver<Frame>,
    credit: Arc<Credit>,
) {
    let mut waiting: Option<Bytes> = None;
    loop {
        let frame = tokio::select! {
            biased;
            command = commands.recv() => match command {
                Some(frame) => frame,
                None => return,
            },
            () = credit.take(length(waiting.as_ref())), if waiting.is_some() => {
                Frame::Stdin(waiting.take().unwrap_or_default())
            }
            bytes = next_input(&mut input), if waiting.is_none() => match bytes {
                Some(bytes) => {
                    waiting = Some(bytes);
                    continue;
                }
                None => {
                    input = None;
                    Frame::StdinEnd
                }
            },
        };
        // When the guest is gone, the receiving side says so.
        if writer.send(&frame).await.is_err() {
            return;
        }
    }
}

fn length(bytes: Option<&Bytes>) -> u32 {
    // A chunk is at most a frame.
    bytes.map_or(0, |bytes| u32::try_from(bytes.len()).unwrap_or(u32::MAX))
}

async fn next_input(input: &mut Option<mpsc::Receiver<Bytes>>) -> Option<Bytes> {
    match input {
        Some(input) => input.recv().await,
        None => std::future::pending().await,
    }
}

/// Passes signals on until the user insists, and window sizes for as long as there is a terminal.
/// Returns when the client should end without waiting for the command.
async fn pass_signals(
    tty: bool,
    interrupts: &mut Interrupts,
    control: &mpsc::Sender<Frame>,
) -> Interrupt {
    let mut resized = if tty { signal(SignalKind::window_change()).ok() } else { None };
    let mut last_interrupt: Option<Instant> = None;
    loop {
        let interrupt = tokio::select! {
            interrupt = interrupts.next() => interrupt,
            () = next_resize(&mut resized) => {
                // A full queue means that the guest is behind; the next change will do.
                let _ = control.try_send(Frame::Resize(terminal::size()));
                continue;
            }
        };
        // With a terminal the keys reach the command, so a signal is meant for us.
        if tty {
            return interrupt;
        }
        let insists = interrupt == Interrupt::ControlC
            && last_interrupt.is_some_and(|last| last.elapsed() < INSISTENCE);
        let Some(number) = SignalNumber::new(interrupt.number()).filter(|_| !insists) else {
            return interrupt;
        };
        if interrupt == Interrupt::ControlC {
            last_interrupt = Some(Instant::now());
        }
        // A guest that takes no more input takes no signal either: then the client ends.
        let sent = control.send_timeout(Frame::Signal(number), INSISTENCE).await;
        if sent.is_err() || tokio::time::timeout(INSISTENCE, drained(control)).await.is_err() {
            return interrupt;
        }
    }
}

async fn next_resize(resized: &mut Option<tokio::signal::unix::Signal>) {
    if let Some(signal) = resized
        && signal.recv().await.is_some()
    {
        return;
    }
    std::future::pending().await
}

/// Waits until every queued frame was taken to be sent.
async fn drained(control: &mpsc::Sender<Frame>) {
    // All permits are free exactly when the queue is empty.
    let _ = control.reserve_many(control.max_capacity()).await;
}

/// Writes what the guest sends to our streams, until the command ends.
async fn receive(
    mut reader: FrameReader<impl tokio::io::AsyncRead + Unpin>,
    credit: &Credit,
) -> Result<u8, CliError> {
    let (stdout, stdout_end) = write_stream(io::stdout());
    let (stderr, stderr_end) = write_stream(io::stderr());
    let code = loop {
        let frame = reader.next().await.map_err(|error| lost(&error))?;
        match frame {
            Some(Frame::Stdout(bytes)) => {
                if stdout.send(bytes).await.is_err() {
                    break None;
                }
            }
            Some(Frame::Stderr(bytes)) => {
                // As for any program, a lost standard error is no reason to end.
                let _ = stderr.send(bytes).await;
            }
            Some(Frame::StdinCredit(count)) => credit.give_back(count),
            Some(Frame::Exit(status)) => break Some(status.shell_code()),
            Some(Frame::Error(error)) => {
                return Err(CliError::new("the machine's agent gave the command up")
                    .because(&error)
                    .hint("banger vm list shows which machines run; then run it again"));
            }
            Some(_) => {}
            None => return Err(lost(&io::Error::from(io::ErrorKind::UnexpectedEof))),
        }
    };
    drop((stdout, stderr));
    if let Ok(Err(error)) = stdout_end.await {
        return Err(CliError::output(&error));
    }
    let _ = stderr_end.await;
    code.ok_or_else(CliError::output_closed)
}

fn lost(error: &(dyn std::error::Error + 'static)) -> CliError {
    CliError::new(LOST).because(error)
}

/// Says more about a connection that ended before its command: was it the daemon or the machine?
async fn explain_lost(client: &Client, vm: &VmId, error: CliError) -> CliError {
    if error.message != LOST {
        return error;
    }
    match settled(client, &routes::vm(&vm.into(), "")).await {
        Err(ClientError::Api(_)) => {
            CliError::new(format!("machine {vm} was deleted while the command ran"))
                .hint("banger vm list")
        }
        Err(_) => {
            CliError::new("bangerd ended while the command ran, so the command was ended too")
                .hint("the machine keeps running; any banger command starts bangerd again")
        }
        Ok(vm) if vm.state == VmState::Running => {
            error.hint(format!("VM {} runs; its agent ended the command", vm.name))
        }
        Ok(vm) => {
            let mut error = CliError::new(format!("VM {} ended before the command did", vm.name));
            error.causes.extend(vm.last_error.map(|cause| cause.message));
            error.hint(format!("banger vm logs {}", vm.name))
        }
    }
}

/// Returns a machine to which a connection has ended: that of one that dies ends before its death is
/// noticed and recorded.
pub async fn settled(client: &Client, path: &str) -> Result<Vm, ClientError> {
    let mut now = client.get::<Vm>(path).await;
    let deadline = Instant::now() + END_DEADLINE;
    while matches!(&now, Ok(vm) if vm.state == VmState::Running) && Instant::now() < deadline {
        tokio::time::sleep(Duration::from_millis(50)).await;
        now = client.get::<Vm>(path).await;
    }
    now
}

#[cfg(test)]
mod tests {
    use super::*;
    use banger_agent_api::{AgentError, ErrorCode, ExitStatus, MAX_FRAME_PAYLOAD};

    fn encoded(frames: &[Frame]) -> Vec<u8> {
        let mut out = bytes::BytesMut::new();
        frames.iter().for_each(|frame| frame.encode(&mut out));
        out.to_vec()
    }

    #[tokio::test]
    async fn the_commands_end_becomes_the_exit_code() {
        for (status, code) in
            [(ExitStatus::Code(0), 0), (ExitStatus::Code(255), 255), (ExitStatus::Signal(9), 137)]
        {
            let frames = encoded(&[Frame::Unknown(200), Frame::Exit(status)]);
            assert_eq!(
                receive(FrameReader::new(&frames[..]), &Credit::default()).await.unwrap(),
                code
            );
        }
    }

    #[tokio::test]
    async fn a_stream_without_an_end_is_a_failure_not_a_success() {
        let error = receive(FrameReader::new(&b""[..]), &Credit::default()).await.unwrap_err();
        assert_eq!(error.message, LOST);
        let error =
            receive(FrameReader::new(&[7u8, 0, 0][..]), &Credit::default()).await.unwrap_err();
        assert_eq!(error.message, LOST);
        let frames = encoded(&[Frame::Error(AgentError::new(ErrorCode::Failed, "x"))]);
        assert!(receive(FrameReader::new(&frames[..]), &Credit::default()).await.is_err());
    }

    #[tokio::test]
    async fn the_end_of_input_is_sent_once_and_signals_still_pass() {
        let (input, receiver) = mpsc::channel(1);
        let (control, commands) = mpsc::channel(1);
        let (ours, theirs) = tokio::io::duplex(4096);
        let credit = Arc::new(Credit::default());
        let task =
            tokio::spawn(send_frames(FrameWriter::new(ours), Some(receiver), commands, credit));
        input.send(Bytes::from_static(b"abc")).await.unwrap();
        drop(input);
        let mut reader = FrameReader::new(theirs);
        assert_eq!(reader.next().await.unwrap(), Some(Frame::Stdin(Bytes::from_static(b"abc"))));
        assert_eq!(reader.next().await.unwrap(), Some(Frame::StdinEnd));
        let signal = Frame::Signal(SignalNumber::new(15).unwrap());
        control.send(signal.clone()).await.unwrap();
        assert_eq!(reader.next().await.unwrap(), Some(signal));
        drop(control);
        task.await.unwrap();
        assert_eq!(reader.next().await.unwrap(), None);
    }

    #[tokio::test]
    async fn input_that_the_command_does_not_take_holds_no_signal_up() {
        let (input, receiver) = mpsc::channel(1);
        let (control, commands) = mpsc::channel(1);
        let (ours, theirs) = tokio::io::duplex(1 << 20);
        let credit = Arc::new(Credit::default());
        let sending =
            send_frames(FrameWriter::new(ours), Some(receiver), commands, Arc::clone(&credit));
        let task = tokio::spawn(sending);
        let feeder = tokio::spawn(async move {
            let chunk = Bytes::from(vec![0; MAX_FRAME_PAYLOAD]);
            while input.send(chunk.clone()).await.is_ok() {}
        });
        let mut reader = FrameReader::new(theirs);
        let mut taken = 0;
        while taken + MAX_FRAME_PAYLOAD <= STDIN_WINDOW as usize {
            match reader.next().await.unwrap() {
                Some(Frame::Stdin(bytes)) => taken += bytes.len(),
                other => panic!("{other:?}"),
            }
        }
        let signal = Frame::Signal(SignalNumber::new(2).unwrap());
        control.send(signal.clone()).await.unwrap();
        assert_eq!(reader.next().await.unwrap(), Some(signal));
        credit.give_back(u32::MAX);
        assert!(matches!(reader.next().await.unwrap(), Some(Frame::Stdin(_))));
        task.abort();
        feeder.abort();
    }
}
