//! The calls that send something about a directory: how they begin, and how its bytes go out.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use banger_agent_api::{
    AgentError, ErrorCode, Frame, FrameReader, FrameWriter, GuestPath, WireError,
};
use serde::Serialize;
use tokio::io::{AsyncRead, AsyncWrite, WriteHalf};
use tokio::sync::mpsc;

use super::calls::{begin, refuse};
use super::tree::{CHUNKS, ChunkWriter, Tree, tree_error};

/// Most bytes of names in one call.
const NAMES_LIMIT: usize = 256 << 20;

pub(super) fn path_of(path: &GuestPath) -> PathBuf {
    PathBuf::from(OsStr::from_bytes(path.as_bytes()))
}

/// Opens the directory that a call is about, and answers; `None` where the call is refused.
pub(super) async fn open<S>(
    path: &Path,
    reply: impl Serialize,
    stream: &mut S,
) -> Result<Option<Tree>, WireError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    match Tree::open(path) {
        Ok(tree) => {
            begin(stream, reply).await?;
            Ok(Some(tree))
        }
        Err(error) => {
            refuse(stream, tree_error("open", path, &error)).await?;
            Ok(None)
        }
    }
}

/// As [`open`], for a call about names of the directory, each ended by a NUL, which it reads.
pub(super) async fn open_with_names<S>(
    path: &Path,
    reply: impl Serialize,
    mut stream: S,
) -> Result<Option<(Tree, Vec<u8>, FrameWriter<WriteHalf<S>>)>, WireError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let Some(tree) = open(path, reply, &mut stream).await? else { return Ok(None) };
    let (reader, writer) = tokio::io::split(stream);
    let (mut reader, mut writer) = (FrameReader::new(reader), FrameWriter::new(writer));
    let mut names: Vec<u8> = Vec::new();
    loop {
        match reader.next().await? {
            Some(Frame::Data(bytes)) if names.len() + bytes.len() <= NAMES_LIMIT => {
                names.extend_from_slice(&bytes);
            }
            Some(Frame::Data(_)) => {
                let text = "too many names are asked for";
                let error = AgentError::new(ErrorCode::BadRequest, text);
                writer.send(&Frame::Error(error)).await?;
                writer.shutdown().await?;
                return Ok(None);
            }
            Some(Frame::DataEnd) => return Ok(Some((tree, names, writer))),
            Some(_) => {}
            None => return Err(WireError::Truncated),
        }
    }
}

/// Calls `act` with each of the names, up to the first that fails.
pub(super) fn each_name(
    names: &[u8],
    mut act: impl FnMut(&Path) -> Result<(), AgentError>,
) -> Result<(), AgentError> {
    let names = names.split(|&byte| byte == 0).filter(|name| !name.is_empty());
    for name in names {
        act(Path::new(OsStr::from_bytes(name)))?;
    }
    Ok(())
}

/// Sends the bytes that `fill` writes on a thread of its own, and their end.
pub(super) async fn send<W: AsyncWrite + Unpin>(
    mut writer: FrameWriter<W>,
    fill: impl FnOnce(ChunkWriter) -> Result<(), AgentError> + Send + 'static,
) -> Result<(), WireError> {
    let (sender, mut receiver) = mpsc::channel(CHUNKS);
    let filled =
        tokio::task::spawn_blocking(move || fill(ChunkWriter { sender, buffer: Vec::new() }));
    while let Some(chunk) = receiver.recv().await {
        // An early return closes the channel, which ends the thread.
        writer.send(&Frame::Data(chunk)).await?;
    }
    let end = match filled.await {
        Ok(Ok(())) => Frame::DataEnd,
        Ok(Err(error)) => Frame::Error(error),
        Err(error) => {
            let words = format!("reading the files ended: {error}");
            Frame::Error(AgentError::new(ErrorCode::Failed, words))
        }
    };
    writer.send(&end).await?;
    writer.shutdown().await
}
