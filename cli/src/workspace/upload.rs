//! Streams a workspace into a machine.

use std::io::{self, Write};
use std::thread;

use banger_agent_api::{
    Call, Empty, Frame, FrameReader, FrameWriter, GuestPath, MAX_FRAME_PAYLOAD, PutTreeCall,
    PutTreeReply,
};
use banger_types::VmId;
use bytes::{Bytes, BytesMut};
use tokio::sync::{mpsc, oneshot};

use super::{GUEST_PATH, Packed, Workspace};
use crate::agent;
use crate::client::Client;
use crate::error::CliError;
use crate::progress::Progress;

/// Chunks between the packing thread and the connection.
const QUEUE: usize = 8;
const REPLY_LIMIT: usize = 64 << 10;

/// Puts the files at [`GUEST_PATH`] in the machine.
pub async fn upload(
    client: &Client,
    vm: &VmId,
    workspace: Workspace,
    progress: &Progress,
) -> Result<Packed, CliError> {
    let path = GuestPath::new(GUEST_PATH)
        .map_err(|error| CliError::new("cannot name the workspace").because(&error))?;
    let call = Call::PutTree(PutTreeCall { path, owner: None });
    let (_, stream): (Empty, _) = agent::call(client, vm, call).await?;
    let (reader, writer) = tokio::io::split(stream);
    progress.stage("copying the repository");

    let (queue, mut chunks) = mpsc::channel(QUEUE);
    let (report, packed) = oneshot::channel();
    thread::spawn(move || {
        let writer = ChunkWriter { queue, buffer: BytesMut::new() };
        // Nobody waits for the report when the upload was given up.
        let _ = report.send(workspace.write_tar(writer));
    });
    let send = async {
        let mut writer = FrameWriter::new(writer);
        let mut sent = 0;
        while let Some(chunk) = chunks.recv().await {
            sent += chunk.len() as u64;
            if writer.send(&Frame::Data(chunk)).await.is_err() {
                // The answer says why.
                return Ok(None);
            }
            progress.bytes(sent, None);
        }
        let packed =
            packed.await.map_err(|_| CliError::new("packing the repository ended early"))??;
        let _ = writer.send(&Frame::DataEnd).await;
        Ok::<_, CliError>(Some((packed, writer)))
    };
    let answer = answer(FrameReader::new(reader));
    tokio::pin!(answer);
    let packed = tokio::select! {
        // A refusal comes before everything was sent.
        early = &mut answer => {
            early?;
            return Err(CliError::new("the machine took only a part of the repository"));
        }
        sent = send => sent?,
    };
    answer.await?;
    let (packed, _writer) =
        packed.ok_or_else(|| CliError::new("the machine took only a part of the repository"))?;
    Ok(packed)
}

async fn answer(
    mut reader: FrameReader<impl tokio::io::AsyncRead + Unpin>,
) -> Result<(), CliError> {
    let failed = || CliError::new("cannot copy the repository into the machine");
    let mut reply = Vec::new();
    loop {
        match reader.next().await.map_err(|error| failed().because(&error))? {
            Some(Frame::Data(bytes)) if reply.len() + bytes.len() <= REPLY_LIMIT => {
                reply.extend_from_slice(&bytes);
            }
            Some(Frame::DataEnd) => break,
            Some(Frame::Error(error)) => return Err(failed().because(&error)),
            Some(Frame::Unknown(_)) => {}
            Some(_) | None => {
                return Err(failed().because(&io::Error::other("the machine broke off")));
            }
        }
    }
    serde_json::from_slice::<PutTreeReply>(&reply)
        .map(drop)
        .map_err(|error| failed().because(&error))
}

/// Gathers small writes into frames; a write fails when nobody takes them any more.
struct ChunkWriter {
    queue: mpsc::Sender<Bytes>,
    buffer: BytesMut,
}

impl ChunkWriter {
    fn pass_on(&mut self) -> io::Result<()> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        let chunk = self.buffer.split().freeze();
        self.queue
            .blocking_send(chunk)
            .map_err(|_| io::Error::new(io::ErrorKind::BrokenPipe, "the upload was given up"))
    }
}

impl Write for ChunkWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = bytes.len().min(MAX_FRAME_PAYLOAD - self.buffer.len());
        self.buffer.extend_from_slice(&bytes[..count]);
        if self.buffer.len() == MAX_FRAME_PAYLOAD {
            self.pass_on()?;
        }
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.pass_on()
    }
}
