//! Tar streams between this process and a guest's agent.

use std::io::{self, Read};
use std::thread;

use banger_agent_api::{
    Call, Empty, Frame, FrameReader, FrameWriter, GetTreeCall, PutTreeCall, PutTreeReply,
};
use banger_types::VmId;
use banger_workspace::{ChunkWriter, put_reply};
use bytes::{Buf, Bytes};
use tokio::sync::{mpsc, oneshot};

use super::{Arrival, HostTree, Landing, Tally};
use crate::agent;
use crate::client::Client;
use crate::error::CliError;
use crate::interrupt::Interrupts;
use crate::progress::Progress;
use crate::streams::{QUEUE, read_stdin, write_stream};

/// Most bytes after the end of an archive; tar(1) fills up to 10 KiB.
const TRAILER_LIMIT: u64 = 1 << 20;

/// Copies a tree of this host into a machine.
pub async fn send(
    client: &Client,
    vm: &VmId,
    call: PutTreeCall,
    (tree, arrival): (HostTree, Arrival),
    progress: &Progress,
) -> Result<Tally, CliError> {
    let (queue, chunks) = mpsc::channel(QUEUE);
    let (report, packed) = oneshot::channel();
    thread::spawn(move || {
        let writer = ChunkWriter::new(move |chunk| {
            queue
                .blocking_send(chunk)
                .map_err(|_| io::Error::new(io::ErrorKind::BrokenPipe, "the copy was given up"))
        });
        // Nobody waits for the report when the copy was given up.
        let _ = report.send(tree.write_tar(&arrival, writer));
    });
    let packed = async {
        packed.await.unwrap_or_else(|_| Err(CliError::new("packing the files ended early")))
    };
    put(client, vm, call, chunks, packed, progress).await.map(|(tally, _)| tally)
}

/// Unpacks the tar stream of standard input in a machine; returns what was unpacked.
pub async fn send_tar(
    client: &Client,
    vm: &VmId,
    call: PutTreeCall,
    progress: &Progress,
) -> Result<PutTreeReply, CliError> {
    put(client, vm, call, read_stdin(), async { Ok(()) }, progress).await.map(|((), reply)| reply)
}

async fn put<T>(
    client: &Client,
    vm: &VmId,
    call: PutTreeCall,
    mut chunks: mpsc::Receiver<Bytes>,
    packed: impl Future<Output = Result<T, CliError>>,
    progress: &Progress,
) -> Result<(T, PutTreeReply), CliError> {
    let (_, stream): (Empty, _) = agent::call(client, vm, Call::PutTree(call)).await?;
    let (reader, writer) = tokio::io::split(stream);
    progress.stage("copying");
    let mut writer = FrameWriter::new(writer);
    let send = async {
        let mut sent = 0;
        while let Some(chunk) = chunks.recv().await {
            sent += chunk.len() as u64;
            if writer.send(&Frame::Data(chunk)).await.is_err() {
                // The answer says why.
                return Ok(None);
            }
            progress.bytes(sent, None);
        }
        let packed = packed.await?;
        let _ = writer.send(&Frame::DataEnd).await;
        Ok::<_, CliError>(Some(packed))
    };
    let answer = async {
        let reply = put_reply(FrameReader::new(reader)).await;
        reply.map_err(|error| CliError::new("cannot copy into the machine").because(&error))
    };
    tokio::pin!(answer);
    let early = || CliError::new("the machine took only a part of the files");
    let packed = tokio::select! {
        // A refusal comes before everything was sent.
        refused = &mut answer => {
            refused?;
            return Err(early());
        }
        sent = send => sent?,
    };
    let reply = answer.await?;
    Ok((packed.ok_or_else(early)?, reply))
}

fn broken_off(error: CliError) -> CliError {
    error.because(&io::Error::other("the machine broke off"))
}

/// Copies a tree of a machine to this host.
pub async fn fetch(
    client: &Client,
    vm: &VmId,
    call: GetTreeCall,
    landing: Landing,
    (progress, interrupts): (&Progress, &mut Interrupts),
) -> Result<Tally, CliError> {
    let (queue, receiver) = mpsc::channel(QUEUE);
    let (complete, completed) = oneshot::channel();
    let (report, landed) = oneshot::channel();
    thread::spawn(move || {
        let mut reader =
            ChunkReader { receiver, current: Bytes::new(), completed: Some(completed) };
        let landed = landing.unpack(&mut reader).and_then(|tally| {
            // An archive ends before its stream does, but not long before.
            io::copy(&mut reader.take(TRAILER_LIMIT), &mut io::sink())
                .map(|_| tally)
                .map_err(|error| CliError::new("cannot copy out of the machine").because(&error))
        });
        let _ = report.send(landed);
    });
    let received = get(client, vm, call, queue, (progress, interrupts)).await;
    if received.is_ok() {
        let _ = complete.send(());
    } else {
        drop(complete);
    }
    // Also after a failure: the thread takes away what it has half written.
    let landed = landed.await.unwrap_or_else(|_| Err(CliError::new("unpacking ended early")));
    received.and(landed)
}

/// Writes a tree of a machine to standard output, as a tar stream as the machine made it.
pub async fn fetch_tar(
    client: &Client,
    vm: &VmId,
    call: GetTreeCall,
    (progress, interrupts): (&Progress, &mut Interrupts),
) -> Result<(), CliError> {
    let (queue, written) = write_stream(io::stdout());
    let complete = get(client, vm, call, queue, (progress, interrupts)).await?;
    match written.await {
        Ok(Err(error)) => Err(CliError::output(&error)),
        _ if !complete => Err(CliError::output_closed()),
        _ => Ok(()),
    }
}

/// Passes a tree's bytes on; returns whether all were taken.
async fn get(
    client: &Client,
    vm: &VmId,
    call: GetTreeCall,
    queue: mpsc::Sender<Bytes>,
    (progress, interrupts): (&Progress, &mut Interrupts),
) -> Result<bool, CliError> {
    let failed = || CliError::new("cannot copy out of the machine");
    let interrupted =
        |interrupt| Err(CliError::interrupted(interrupt, "interrupted while copying"));
    let (_, stream): (Empty, _) = tokio::select! {
        begun = agent::call(client, vm, Call::GetTree(call)) => begun?,
        interrupt = interrupts.next() => return interrupted(interrupt),
    };
    let mut reader = FrameReader::new(stream);
    progress.stage("copying");
    let mut received = 0;
    loop {
        let frame = tokio::select! {
            frame = reader.next() => frame,
            interrupt = interrupts.next() => return interrupted(interrupt),
            // Whoever took it has failed, and says why; the machine may say nothing for ever.
            () = queue.closed() => return Ok(false),
        };
        match frame.map_err(|error| failed().because(&error))? {
            Some(Frame::Data(bytes)) => {
                received += bytes.len() as u64;
                if queue.send(bytes).await.is_err() {
                    return Ok(false);
                }
                progress.bytes(received, None);
            }
            Some(Frame::DataEnd) => return Ok(true),
            Some(Frame::Error(error)) => return Err(failed().because(&error)),
            Some(Frame::Unknown(_)) => {}
            Some(_) | None => return Err(broken_off(failed())),
        }
    }
}

/// The unpacking thread's end of a stream, which ends well only when it was complete.
struct ChunkReader {
    receiver: mpsc::Receiver<Bytes>,
    current: Bytes,
    /// Taken when the end was seen.
    completed: Option<oneshot::Receiver<()>>,
}

impl Read for ChunkReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.current.is_empty() {
            match self.receiver.blocking_recv() {
                Some(chunk) => self.current = chunk,
                // The word comes at once after the queue's end, or never.
                None => {
                    return match self.completed.take().map(oneshot::Receiver::blocking_recv) {
                        None | Some(Ok(())) => Ok(0),
                        Some(Err(_)) => Err(io::ErrorKind::ConnectionAborted.into()),
                    };
                }
            }
        }
        let count = self.current.len().min(buffer.len());
        self.current.copy_to_slice(&mut buffer[..count]);
        Ok(count)
    }
}
