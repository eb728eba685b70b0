//! From a command's pipes or terminal to frames.

use std::cell::Cell;
use std::io;
use std::ops::ControlFlow;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::time::Duration;

use banger_agent_api::{ExitStatus, FRAME_HEADER, Frame, FrameKind, MAX_FRAME_PAYLOAD, WireError};
use bytes::BytesMut;
use tokio::io::{AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::unix::pipe;
use tokio::sync::Notify;

use super::command::Attached;
use super::input::Sink;
use super::terminal::Terminal;

/// How long output may be silent, after the command's exit, before a background process that
/// still holds the pipe is left alone.
pub(super) const DRAIN_SILENCE: Duration = Duration::from_millis(50);

/// How long the first answer waits for output or the end to travel with: a short command then
/// costs the channel one message, not two.
const ANSWER_HOLD: Duration = Duration::from_millis(2);

/// Where a command writes.
pub(super) enum Sources {
    Pipes { stdout: Option<pipe::Receiver>, stderr: Option<pipe::Receiver> },
    Terminal { terminal: Rc<Terminal>, open: bool },
}

impl Sources {
    /// Takes a command's ends apart: what it reads, what it writes, and of a terminal our copy of
    /// its side.
    pub fn of(attached: Attached) -> (Sink, Self, Option<OwnedFd>) {
        match attached {
            Attached::Pipes { stdin, stdout, stderr } => {
                let sources = Self::Pipes { stdout: Some(stdout), stderr: Some(stderr) };
                (Sink::Pipe(stdin), sources, None)
            }
            Attached::Terminal { terminal, peer } => {
                let sources = Self::Terminal { terminal: Rc::clone(&terminal), open: true };
                (Sink::Terminal(terminal), sources, Some(peer))
            }
        }
    }

    /// Returns whether anything may still come.
    pub fn are_open(&self) -> bool {
        match self {
            Self::Pipes { stdout, stderr } => stdout.is_some() || stderr.is_some(),
            Self::Terminal { open, .. } => *open,
        }
    }

    /// Waits for output, into the first buffer, or of standard error into the second; breaks off
    /// where one of the two has ended. Never resolves once both have. Cancel safe.
    pub async fn read(
        &mut self,
        [out, error]: &mut [Vec<u8>; 2],
    ) -> ControlFlow<(), (FrameKind, usize)> {
        let (kind, result) = match self {
            Self::Pipes { stdout, stderr } => tokio::select! {
                result = read(stdout, out) => (FrameKind::Stdout, result),
                result = read(stderr, error) => (FrameKind::Stderr, result),
            },
            Self::Terminal { terminal, open: true } => {
                (FrameKind::Stdout, terminal.read(out).await)
            }
            Self::Terminal { open: false, .. } => std::future::pending().await,
        };
        match result {
            Ok(count) if count > 0 => ControlFlow::Continue((kind, count)),
            // A pipe of our own does not fail; if it does, there is nothing more to be had.
            _ => {
                self.end(kind);
                ControlFlow::Break(())
            }
        }
    }

    fn end(&mut self, ended: FrameKind) {
        match self {
            Self::Pipes { stdout, stderr } => {
                *(if ended == FrameKind::Stderr { stderr } else { stdout }) = None;
            }
            Self::Terminal { open, .. } => *open = false,
        }
    }
}

/// Stdin bytes the command has taken and the client has no credit for yet.
#[derive(Default)]
pub(super) struct Credit {
    count: Cell<u32>,
    due: Notify,
}

impl Credit {
    /// Frames of credit are sent for this many bytes or more.
    const STEP: u32 = banger_agent_api::STDIN_WINDOW / 4;

    pub fn add(&self, count: u32) {
        self.count.set(self.count.get() + count);
        if self.count.get() >= Self::STEP {
            self.due.notify_one();
        }
    }

    /// Waits until credit is due and takes it.
    pub async fn due(&self) -> u32 {
        self.due.notified().await;
        self.count.take()
    }
}

/// What one wait for output gave.
enum Piece {
    Output(FrameKind, usize),
    Ended(FrameKind),
    Credit(u32),
    /// The first answer has waited long enough.
    Answer,
}

/// Turns output into frames. Holds one frame.
pub(super) struct Pump<'a, W> {
    writer: W,
    sources: Sources,
    credit: &'a Credit,
    out: BytesMut,
    error: BytesMut,
    /// The first answer, until something is sent.
    answer: BytesMut,
    answer_due: tokio::time::Instant,
}

impl<'a, W: AsyncWrite + Unpin> Pump<'a, W> {
    /// Sends `answer` before anything else.
    pub fn new(writer: W, sources: Sources, credit: &'a Credit, answer: BytesMut) -> Self {
        let buffer = || BytesMut::zeroed(FRAME_HEADER + MAX_FRAME_PAYLOAD);
        let error = match sources {
            Sources::Pipes { .. } => buffer(),
            Sources::Terminal { .. } => BytesMut::new(),
        };
        let answer_due = tokio::time::Instant::now() + ANSWER_HOLD;
        Self { writer, sources, credit, out: buffer(), error, answer, answer_due }
    }

    /// Waits for output or credit. Cancel safe: nothing is read before it is returned.
    async fn wait(&mut self) -> io::Result<Piece> {
        let credit = async { Ok(Piece::Credit(self.credit.due().await)) };
        let answer = async {
            tokio::time::sleep_until(self.answer_due).await;
            Ok(Piece::Answer)
        };
        let holds = !self.answer.is_empty();
        let piece =
            |kind, count| if count == 0 { Piece::Ended(kind) } else { Piece::Output(kind, count) };
        let (out, error) = (&mut self.out[FRAME_HEADER..], self.error.get_mut(FRAME_HEADER..));
        match &mut self.sources {
            Sources::Pipes { stdout, stderr } => tokio::select! {
                result = read(stdout, out) => Ok(piece(FrameKind::Stdout, result?)),
                result = read(stderr, error.unwrap_or_default()) => {
                    Ok(piece(FrameKind::Stderr, result?))
                }
                result = credit => result,
                result = answer, if holds => result,
            },
            Sources::Terminal { terminal, open } => tokio::select! {
                result = terminal.read(out), if *open => Ok(piece(FrameKind::Stdout, result?)),
                result = credit => result,
                result = answer, if holds => result,
            },
        }
    }

    async fn send(&mut self, piece: Piece) -> Result<(), WireError> {
        if !matches!(piece, Piece::Ended(_)) {
            self.send_answer().await?;
        }
        match piece {
            Piece::Answer => Ok(()),
            Piece::Output(kind, count) => {
                let buffer =
                    if kind == FrameKind::Stderr { &mut self.error } else { &mut self.out };
                // The header goes where room was left for it: the bytes are not moved.
                buffer[0] = kind as u8;
                let length = u32::try_from(count).unwrap_or(0);
                buffer[1..FRAME_HEADER].copy_from_slice(&length.to_be_bytes());
                self.writer.write_all(&buffer[..FRAME_HEADER + count]).await.map_err(write_error)
            }
            Piece::Credit(count) => self.frame(&Frame::StdinCredit(count)).await,
            Piece::Ended(ended) => {
                self.sources.end(ended);
                Ok(())
            }
        }
    }

    async fn send_answer(&mut self) -> Result<(), WireError> {
        let answer = std::mem::take(&mut self.answer);
        self.writer.write_all(&answer).await.map_err(write_error)
    }

    async fn frame(&mut self, frame: &Frame) -> Result<(), WireError> {
        let mut bytes = BytesMut::new();
        frame.encode(&mut bytes);
        self.writer.write_all(&bytes).await.map_err(write_error)
    }

    /// Sends output until `exited` resolves, then what is left of it.
    pub async fn run<T>(&mut self, exited: impl Future<Output = T>) -> Result<T, WireError> {
        tokio::pin!(exited);
        let status = loop {
            tokio::select! {
                status = &mut exited => break status,
                piece = self.wait() => {
                    let piece = piece.map_err(read_error)?;
                    self.send(piece).await?;
                }
            }
        };
        while self.sources.are_open() {
            match tokio::time::timeout(DRAIN_SILENCE, self.wait()).await {
                Ok(piece) => self.send(piece.map_err(read_error)?).await?,
                Err(_) => break,
            }
        }
        Ok(status)
    }

    /// Reports the end; nothing is sent after it.
    pub async fn finish(mut self, status: ExitStatus) -> Result<(), WireError> {
        self.send_answer().await?;
        self.frame(&Frame::Exit(status)).await?;
        self.writer.shutdown().await.map_err(write_error)
    }
}

/// Reads from a pipe that may be closed already, in which case it never resolves.
async fn read(pipe: &mut Option<pipe::Receiver>, buffer: &mut [u8]) -> io::Result<usize> {
    match pipe {
        Some(pipe) => pipe.read(buffer).await,
        None => std::future::pending().await,
    }
}

fn read_error(source: io::Error) -> WireError {
    WireError::Io { operation: "reading a command's output", source }
}

fn write_error(source: io::Error) -> WireError {
    WireError::Io { operation: "sending a command's output", source }
}
