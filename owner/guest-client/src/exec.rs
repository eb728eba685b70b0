//! A running command, from the host's side.

use banger_agent_api::{
    AgentError, ExecStarted, ExitStatus, Frame, FrameReader, FrameWriter, STDIN_WINDOW,
    SignalNumber, WindowSize, WireError,
};
use bytes::Bytes;
use std::sync::Arc;
use tokio::io::{ReadHalf, WriteHalf};
use tokio::sync::{Mutex, Semaphore};

use crate::channel::BoxedStream;

/// What a command does.
#[derive(Debug)]
pub enum ExecEvent {
    /// It wrote to its standard output or terminal.
    Stdout(Bytes),
    /// It wrote to its standard error.
    Stderr(Bytes),
    /// It ended; nothing follows.
    Exited(ExitStatus),
    /// The agent gave up on it; nothing follows.
    Failed(AgentError),
}

/// A command that was started. Dropping it (all its parts) before the end tells the agent that
/// nobody is interested any more, and the agent ends the command.
#[derive(Debug)]
pub struct ExecStream {
    /// Its process id in the guest.
    pub pid: u32,
    stdin: ExecStdin,
    events: ExecEvents,
}

type Writer = Arc<Mutex<FrameWriter<WriteHalf<BoxedStream>>>>;

/// Writes the command's standard input.
#[derive(Debug)]
pub struct ExecStdin {
    writer: Writer,
    credit: Arc<Semaphore>,
    wanted: bool,
}

/// Reads what the command does. Must be read for stdin credit to arrive.
#[derive(Debug)]
pub struct ExecEvents {
    reader: FrameReader<ReadHalf<BoxedStream>>,
    credit: Arc<Semaphore>,
    over: bool,
}

/// Resizes and signals the command; never waits behind its input.
#[derive(Clone, Debug)]
pub struct ExecControl {
    writer: Writer,
}

impl ExecStream {
    pub(crate) fn new(started: ExecStarted, stream: BoxedStream, stdin: bool) -> Self {
        let (reader, writer) = tokio::io::split(stream);
        let credit = Arc::new(Semaphore::new(STDIN_WINDOW as usize));
        let writer = Arc::new(Mutex::new(FrameWriter::new(writer)));
        Self {
            pid: started.pid,
            stdin: ExecStdin { writer, credit: Arc::clone(&credit), wanted: stdin },
            events: ExecEvents { reader: FrameReader::new(reader), credit, over: false },
        }
    }

    /// Takes the parts, to be used at the same time.
    #[must_use]
    pub fn split(self) -> (ExecStdin, ExecEvents, ExecControl) {
        let control = ExecControl { writer: Arc::clone(&self.stdin.writer) };
        (self.stdin, self.events, control)
    }

    /// Collects all output up to `limit` bytes and waits for the end; for short commands.
    pub async fn collect(self, limit: usize) -> Result<(Vec<u8>, Vec<u8>, ExitStatus), WireError> {
        let (mut stdin, mut events, _control) = self.split();
        stdin.close().await?;
        let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
        while let Some(event) = events.next().await? {
            match event {
                ExecEvent::Stdout(bytes) => stdout.extend_from_slice(&bytes),
                ExecEvent::Stderr(bytes) => stderr.extend_from_slice(&bytes),
                ExecEvent::Exited(status) => return Ok((stdout, stderr, status)),
                ExecEvent::Failed(error) => {
                    stderr.extend_from_slice(error.to_string().as_bytes());
                    return Err(WireError::Truncated);
                }
            }
            let length = stdout.len() + stderr.len();
            if length > limit {
                return Err(WireError::TooLong { length, limit });
            }
        }
        Err(WireError::Truncated)
    }
}

impl ExecStdin {
    /// Writes all of `bytes`, waiting for the command to take them.
    pub async fn write(&mut self, mut bytes: &[u8]) -> Result<(), WireError> {
        const STEP: usize = 16 * 1024;
        while !bytes.is_empty() {
            let (piece, rest) = bytes.split_at(bytes.len().min(STEP));
            let count = u32::try_from(piece.len()).unwrap_or(u32::MAX);
            match self.credit.acquire_many(count).await {
                Ok(permit) => permit.forget(),
                // The command is over; what it did not read is lost, as with any pipe.
                Err(_) => return Ok(()),
            }
            let frame = Frame::Stdin(Bytes::copy_from_slice(piece));
            self.writer.lock().await.send(&frame).await?;
            bytes = rest;
        }
        Ok(())
    }

    /// Ends the input.
    pub async fn close(&mut self) -> Result<(), WireError> {
        if std::mem::take(&mut self.wanted) {
            self.writer.lock().await.send(&Frame::StdinEnd).await?;
        }
        Ok(())
    }
}

impl ExecEvents {
    /// Returns the next event, `None` after the last. Cancel safe.
    pub async fn next(&mut self) -> Result<Option<ExecEvent>, WireError> {
        if self.over {
            return Ok(None);
        }
        loop {
            let event = match self.reader.next().await? {
                Some(Frame::Stdout(bytes)) => ExecEvent::Stdout(bytes),
                Some(Frame::Stderr(bytes)) => ExecEvent::Stderr(bytes),
                Some(Frame::Exit(status)) => {
                    self.over = true;
                    self.credit.close();
                    ExecEvent::Exited(status)
                }
                Some(Frame::Error(error)) => {
                    self.over = true;
                    self.credit.close();
                    ExecEvent::Failed(error)
                }
                Some(Frame::StdinCredit(count)) => {
                    let room =
                        (STDIN_WINDOW as usize).saturating_sub(self.credit.available_permits());
                    // More than was ever sent would only fill the guest's own queue, but a
                    // semaphore must not overflow.
                    self.credit.add_permits(room.min(count as usize));
                    continue;
                }
                Some(_) => continue,
                None => return Err(WireError::Truncated),
            };
            return Ok(Some(event));
        }
    }
}

impl ExecControl {
    /// Tells the command's terminal its new size.
    pub async fn resize(&self, size: WindowSize) -> Result<(), WireError> {
        self.writer.lock().await.send(&Frame::Resize(size)).await
    }

    /// Sends a signal to the command.
    pub async fn signal(&self, number: SignalNumber) -> Result<(), WireError> {
        self.writer.lock().await.send(&Frame::Signal(number)).await
    }
}
