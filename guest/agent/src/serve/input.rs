//! From a client's frames to a command's input.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io;
use std::rc::Rc;

use banger_agent_api::{Frame, FrameReader, STDIN_WINDOW, SignalNumber, WireError};
use bytes::{Buf, Bytes};
use rustix::process::Pid;
use tokio::io::{AsyncRead, AsyncWriteExt};
use tokio::net::unix::pipe;
use tokio::sync::Notify;

use super::output::Credit;
use super::terminal::Terminal;

/// Where stdin goes.
pub(super) enum Sink {
    Pipe(Option<pipe::Sender>),
    Terminal(Rc<Terminal>),
}

impl Sink {
    /// Returns the terminal, where it is one.
    pub(super) fn terminal(&self) -> Option<Rc<Terminal>> {
        match self {
            Self::Terminal(terminal) => Some(Rc::clone(terminal)),
            Self::Pipe(_) => None,
        }
    }

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
pub(super) struct Input {
    pid: Pid,
    terminal: Option<Rc<Terminal>>,
    /// Whom a signal without a terminal reaches.
    audience: Audience,
    queue: RefCell<Queue>,
    more: Notify,
}

#[derive(Default)]
struct Queue {
    chunks: VecDeque<Bytes>,
    bytes: usize,
    ended: bool,
}

/// The most bytes that clients may leave to a command that does not take them.
const LARGEST_QUEUE: usize = 8 * STDIN_WINDOW as usize;

/// Whom a signal reaches that is not a terminal's foreground job's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Audience {
    /// The command's whole process group, as the keys of a terminal do.
    Group,
    /// The command alone, which has others to tell.
    Leader,
}

impl Input {
    pub(super) fn new(pid: Pid, terminal: Option<Rc<Terminal>>, audience: Audience) -> Self {
        Self { pid, terminal, audience, queue: RefCell::default(), more: Notify::new() }
    }

    /// Reads frames for as long as the client is there; returns why it is not any more.
    ///
    /// What an earlier client sent and the command has not taken yet is not of this one's window.
    pub(super) async fn receive(&self, reader: impl AsyncRead + Unpin) -> WireError {
        let limit = self.queue.borrow().bytes.saturating_add(STDIN_WINDOW as usize);
        if limit > LARGEST_QUEUE {
            return WireError::TooLong { length: limit, limit: LARGEST_QUEUE };
        }
        let mut reader = FrameReader::new(reader);
        loop {
            match reader.next().await {
                Ok(Some(frame)) => {
                    if let Err(error) = self.take(frame, limit) {
                        return error;
                    }
                }
                Ok(None) => return WireError::Truncated,
                Err(error) => return error,
            }
        }
    }

    fn take(&self, frame: Frame, limit: usize) -> Result<(), WireError> {
        match frame {
            Frame::Stdin(bytes) => {
                let mut queue = self.queue.borrow_mut();
                queue.bytes += bytes.len();
                if queue.bytes > limit {
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
                if let Some(terminal) = &self.terminal {
                    let _ = terminal.resize(size);
                }
            }
            Frame::Signal(number) => self.signal(number),
            _ => {}
        }
        Ok(())
    }

    /// Signals the foreground job of a terminal, or whom the signals of this command are for.
    fn signal(&self, number: SignalNumber) {
        let foreground = self.terminal.as_ref().and_then(|terminal| terminal.foreground());
        let target = match (foreground, self.audience) {
            (None, Audience::Leader) => self.pid.as_raw_nonzero().get(),
            (None, Audience::Group) => -self.pid.as_raw_nonzero().get(),
            (Some(group), _) => -group.as_raw_nonzero().get(),
        };
        let _ = banger_guest_sys::send_signal(target, i32::from(number.get()));
    }

    /// Hands input to the command as it takes it; never resolves.
    pub(super) async fn feed(&self, mut sink: Sink, credit: &Credit) {
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
