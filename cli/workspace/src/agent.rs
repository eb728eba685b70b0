//! The guest's agent as blocking calls: tasks move frames between its streams and bounded queues.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::pin::Pin;

use banger_agent_api::{
    Argument, Call, Frame, FrameReader, FrameWriter, GetEntriesCall, GuestPath, ListEntriesCall,
    ListTreeCall, ListTreeReply, Listed, ListedKind, ListingDecoder, MAX_FRAME_PAYLOAD,
    PutTreeCall, PutTreeReply,
};
use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot};

use crate::chunks::{ChunkWriter, put_reply};
use crate::error::GuestError;

/// A stream to the agent, on which a call has been answered.
pub trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

/// What opens streams.
pub trait Dial: Send + Sync {
    /// Makes a call, and returns its answer and the stream on which frames follow.
    #[expect(clippy::type_complexity, reason = "a future of both, named once")]
    fn dial(
        &self,
        call: Call,
    ) -> Pin<
        Box<
            dyn Future<Output = Result<(serde_json::Value, Box<dyn Stream>), GuestError>>
                + Send
                + '_,
        >,
    >;
}

/// Chunks between this thread and the connection.
const QUEUE: usize = 8;
/// Most names of a guest's tree, and most bytes of them.
const ENTRIES_MOST: usize = 4_000_000;
const LISTING_LIMIT: usize = 1 << 30;

/// Longest path (path_resolution(7): PATH_MAX).
const PATH_LIMIT: u64 = 4096;

/// A guest's agent.
pub struct AgentGuest {
    dial: Box<dyn Dial>,
    handle: Handle,
}

impl std::fmt::Debug for AgentGuest {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("AgentGuest").finish_non_exhaustive()
    }
}

/// What a guest's directory has in it.
#[derive(Debug)]
pub(crate) struct GuestListing {
    /// The guest's clock when it was begun.
    pub now_nanos: i64,
    pub entries: Vec<Listed>,
}

/// Takes a file or link: its name, its kind, its size and content. A link's content is its target.
pub(crate) type Take<'t> =
    dyn FnMut(&[u8], (ListedKind, u32), u64, &mut dyn Read) -> io::Result<()> + 't;

impl AgentGuest {
    /// Uses `dial`, on a runtime whose threads this one is none of.
    #[must_use]
    pub fn new(dial: Box<dyn Dial>, handle: Handle) -> Self {
        Self { dial, handle }
    }

    /// Lists a directory; of directories named in `skip` only the name.
    pub(crate) fn list(
        &mut self,
        path: &GuestPath,
        skip: &[&str],
    ) -> Result<GuestListing, GuestError> {
        let skip = skip.iter().filter_map(|name| Argument::new(*name).ok()).collect();
        let call = Call::ListTree(ListTreeCall { path: path.clone(), skip });
        let incoming = self.open(call)?;
        Self::listing(incoming, path)
    }

    /// Lists some names below a directory; those that are not there are left out.
    pub(crate) fn list_names(
        &mut self,
        path: &GuestPath,
        names: &[Vec<u8>],
    ) -> Result<GuestListing, GuestError> {
        let call = Call::ListEntries(ListEntriesCall { path: path.clone() });
        let incoming = self.open_with(call, Some(names.join(&0)))?;
        let mut listing = Self::listing(incoming, path)?;
        let asked: HashSet<&[u8]> = names.iter().map(Vec::as_slice).collect();
        // One that was not asked for is nothing that anybody looks up.
        listing.entries.retain(|listed| asked.contains(&listed.name[..]));
        Ok(listing)
    }

    fn listing(mut incoming: Incoming, path: &GuestPath) -> Result<GuestListing, GuestError> {
        let reply: ListTreeReply =
            serde_json::from_value(incoming.reply.take()).map_err(GuestError::other)?;
        let mut decoder = ListingDecoder::default();
        let mut entries = Vec::new();
        let mut bytes = 0;
        while let Some(chunk) = incoming.next()? {
            bytes += chunk.len();
            decoder.push(&chunk);
            while let Some(listed) = decoder.next_record().map_err(GuestError::other)? {
                entries.push(listed);
            }
            if entries.len() > ENTRIES_MOST || bytes > LISTING_LIMIT {
                let why = format!("more than {ENTRIES_MOST} names in {path}");
                return Err(GuestError::Bad(why));
            }
        }
        decoder.finish().map_err(GuestError::other)?;
        Ok(GuestListing { now_nanos: reply.now_nanos, entries })
    }

    /// Begins to put a tree below a directory.
    pub(crate) fn put(&mut self, path: &GuestPath) -> Result<TreeSink, GuestError> {
        let call = Call::PutTree(PutTreeCall { path: path.clone(), owner: None });
        let (_, stream) = self.handle.block_on(self.dial.dial(call))?;
        let (reader, writer) = tokio::io::split(stream);
        let (queue, mut chunks) = mpsc::channel::<Option<Bytes>>(QUEUE);
        let (report, answer) = oneshot::channel();
        self.handle.spawn(async move {
            let mut writer = FrameWriter::new(writer);
            let send = async {
                while let Some(chunk) = chunks.recv().await {
                    let frame = chunk.map_or(Frame::DataEnd, Frame::Data);
                    // What the agent said last tells more than the broken stream.
                    if writer.send(&frame).await.is_err() {
                        break;
                    }
                }
                // Held until the answer is there.
                std::future::pending::<()>().await;
            };
            let answer = tokio::select! {
                answer = put_reply(FrameReader::new(reader)) => answer,
                () = send => return,
            };
            // Nobody waits when the archive was given up.
            let _ = report.send(answer);
        });
        Ok(TreeSink::new(queue, answer, &self.handle))
    }

    /// Gets some files and links below a directory; those that are gone are left out. More than `limit`
    /// bytes of them are refused.
    pub(crate) fn get(
        &mut self,
        path: &GuestPath,
        names: &[Vec<u8>],
        limit: u64,
        take: &mut Take<'_>,
    ) -> Result<(), GuestError> {
        if names.is_empty() {
            return Ok(());
        }
        let mut incoming = self.open_with(
            Call::GetEntries(GetEntriesCall { path: path.clone() }),
            Some(names.join(&0)),
        )?;
        let mut wanted: HashSet<&[u8]> = names.iter().map(Vec::as_slice).collect();
        let mut archive = tar::Archive::new(&mut incoming);
        let (mut long_name, mut long_link) = (None, None);
        let mut total: u64 = 0;
        // Raw, because the tar crate gathers a long name in memory however long it is.
        for entry in archive.entries().map_err(GuestError::other)?.raw(true) {
            let mut entry = entry.map_err(GuestError::other)?;
            let long = match entry.header().entry_type() {
                tar::EntryType::GNULongName => Some(&mut long_name),
                tar::EntryType::GNULongLink => Some(&mut long_link),
                _ => None,
            };
            if let Some(long) = long {
                if long.replace(read_long(&mut entry)?).is_some() {
                    return Err(GuestError::Bad("an entry has two names".to_owned()));
                }
                continue;
            }
            let name = long_name.take().unwrap_or_else(|| entry.path_bytes().into_owned());
            let link = long_link.take();
            if !wanted.remove(&name[..]) {
                let name =
                    banger_agent_api::printable_excerpt(&String::from_utf8_lossy(&name), 100);
                return Err(GuestError::Bad(format!("{name} was not asked for, or comes twice")));
            }
            let mode = entry.header().mode().map_err(GuestError::other)?;
            let size = entry.size();
            total = total.saturating_add(size);
            if total > limit {
                return Err(GuestError::Bad(format!("the files are over {limit} bytes")));
            }
            let kind = entry.header().entry_type();
            let taken = if kind.is_symlink() {
                let short = || entry.link_name_bytes().map(|name| name.into_owned());
                let target = link.or_else(short).unwrap_or_default();
                let length = target.len() as u64;
                take(&name, (ListedKind::Link, mode), length, &mut &target[..])
            } else if kind.is_file() {
                take(&name, (ListedKind::File, mode), size, &mut entry)
            } else {
                return Err(GuestError::Bad("an entry is neither file nor link".to_owned()));
            };
            taken.map_err(GuestError::other)?;
        }
        // The tar's end is not the stream's: an error may follow it.
        while incoming.next()?.is_some() {}
        Ok(())
    }

    fn open(&mut self, call: Call) -> Result<Incoming, GuestError> {
        self.open_with(call, None)
    }

    fn open_with(&mut self, call: Call, names: Option<Vec<u8>>) -> Result<Incoming, GuestError> {
        let (reply, stream) = self.handle.block_on(self.dial.dial(call))?;
        let (queue, chunks) = mpsc::channel(QUEUE);
        self.handle.spawn(async move {
            let (reader, writer) = tokio::io::split(stream);
            let mut writer = FrameWriter::new(writer);
            if let Some(names) = names {
                for chunk in names.chunks(MAX_FRAME_PAYLOAD) {
                    if writer.send(&Frame::Data(Bytes::copy_from_slice(chunk))).await.is_err() {
                        break;
                    }
                }
                // If it is lost, so is the answer, which says so.
                let _ = writer.send(&Frame::DataEnd).await;
            }
            let mut reader = FrameReader::new(reader);
            loop {
                let item = match reader.next().await {
                    // Nothing would be taken for the end.
                    Ok(Some(Frame::Data(bytes))) if bytes.is_empty() => continue,
                    Ok(Some(Frame::Data(bytes))) => Ok(bytes),
                    Ok(Some(Frame::DataEnd)) => return drop(queue.send(Ok(Bytes::new())).await),
                    Ok(Some(Frame::Error(error))) => Err(GuestError::other(error)),
                    Ok(Some(_)) => continue,
                    Ok(None) => Err(GuestError::other("the machine broke off")),
                    Err(error) => Err(GuestError::other(error)),
                };
                let is_last = item.is_err();
                if queue.send(item).await.is_err() || is_last {
                    return;
                }
            }
        });
        let handle = self.handle.clone();
        Ok(Incoming { reply, chunks, current: Bytes::new(), ended: false, handle })
    }
}

/// Reads a name that did not fit its header.
fn read_long(entry: &mut impl Read) -> Result<Vec<u8>, GuestError> {
    let mut name = Vec::new();
    entry.take(PATH_LIMIT + 2).read_to_end(&mut name).map_err(GuestError::other)?;
    if name.pop() != Some(0) || name.len() as u64 > PATH_LIMIT {
        return Err(GuestError::Bad(format!("a name is over {PATH_LIMIT} bytes long")));
    }
    Ok(name)
}

/// Bytes that come from the guest.
struct Incoming {
    reply: serde_json::Value,
    chunks: mpsc::Receiver<Result<Bytes, GuestError>>,
    current: Bytes,
    ended: bool,
    handle: Handle,
}

impl Incoming {
    /// Returns the next bytes, or `None` at the end.
    fn next(&mut self) -> Result<Option<Bytes>, GuestError> {
        if !self.current.is_empty() {
            return Ok(Some(std::mem::take(&mut self.current)));
        }
        if self.ended {
            return Ok(None);
        }
        match self.handle.block_on(self.chunks.recv()) {
            // The end is sent as nothing.
            Some(Ok(bytes)) if bytes.is_empty() => {
                self.ended = true;
                Ok(None)
            }
            Some(Ok(bytes)) => Ok(Some(bytes)),
            Some(Err(error)) => {
                self.ended = true;
                Err(error)
            }
            None => Err(GuestError::other("the machine broke off")),
        }
    }
}

impl Read for Incoming {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.current.is_empty() {
            match self.next().map_err(io::Error::other)? {
                Some(bytes) => self.current = bytes,
                None => return Ok(0),
            }
        }
        let count = self.current.len().min(buffer.len());
        buffer[..count].copy_from_slice(&self.current.split_to(count));
        Ok(count)
    }
}

type PassOn = Box<dyn FnMut(Bytes) -> io::Result<()>>;

/// A tree that is being put into the guest: the bytes of its tar.
pub(crate) struct TreeSink {
    chunks: ChunkWriter<PassOn>,
    queue: mpsc::Sender<Option<Bytes>>,
    answer: oneshot::Receiver<Result<PutTreeReply, GuestError>>,
    handle: Handle,
}

impl TreeSink {
    fn new(
        queue: mpsc::Sender<Option<Bytes>>,
        answer: oneshot::Receiver<Result<PutTreeReply, GuestError>>,
        handle: &Handle,
    ) -> Self {
        let (to, on) = (queue.clone(), handle.clone());
        let pass_on: PassOn = Box::new(move |chunk| {
            on.block_on(to.send(Some(chunk)))
                .map_err(|_| io::Error::new(io::ErrorKind::BrokenPipe, "the machine takes no more"))
        });
        let chunks = ChunkWriter::new(pass_on);
        Self { chunks, queue, answer, handle: handle.clone() }
    }

    /// Ends the tree; returns once the guest has all of it.
    pub fn finish(mut self) -> Result<PutTreeReply, GuestError> {
        // If it is not taken, the answer says why.
        if self.chunks.flush().is_ok() {
            let _ = self.handle.block_on(self.queue.send(None));
        }
        let answer = self.handle.block_on(self.answer);
        answer.unwrap_or_else(|_| Err(GuestError::other("the machine broke off")))
    }

    /// Returns what the guest has against the tree, where that is why a write failed.
    pub fn refusal(mut self) -> Option<GuestError> {
        match self.answer.try_recv() {
            Ok(Err(error)) => Some(error),
            Ok(Ok(_)) => Some(GuestError::other("the machine took only a part")),
            Err(_) => None,
        }
    }
}

impl Write for TreeSink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.chunks.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.chunks.flush()
    }
}

/// Returns a name of the guest as a path; the listing's decoder has checked it.
pub(crate) fn as_path(name: &[u8]) -> &Path {
    Path::new(OsStr::from_bytes(name))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;

    /// A guest that answers every call with the same tar, and then with zeros without an end.
    struct Hostile {
        tar: Vec<u8>,
        taken: Arc<AtomicU64>,
    }

    impl Dial for Hostile {
        fn dial(
            &self,
            _: Call,
        ) -> Pin<
            Box<
                dyn Future<Output = Result<(serde_json::Value, Box<dyn Stream>), GuestError>>
                    + Send
                    + '_,
            >,
        > {
            let (tar, taken) = (self.tar.clone(), Arc::clone(&self.taken));
            Box::pin(async move {
                let (near, far) = tokio::io::duplex(MAX_FRAME_PAYLOAD);
                tokio::spawn(async move {
                    let mut writer = FrameWriter::new(far);
                    let mut bytes = Bytes::from(tar);
                    while writer.send(&Frame::Data(bytes.clone())).await.is_ok() {
                        taken.fetch_add(bytes.len() as u64, Ordering::Relaxed);
                        bytes = Bytes::from(vec![b'a'; MAX_FRAME_PAYLOAD]);
                    }
                });
                let near: Box<dyn Stream> = Box::new(near);
                Ok((serde_json::Value::Null, near))
            })
        }
    }

    fn get(kind: u8, size: u64) -> (GuestError, u64) {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::new(kind));
        header.set_mode(0o644);
        header.set_size(size);
        header.set_cksum();
        let tar = header.as_bytes().to_vec();
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let (end, ended) = oneshot::channel::<()>();
        let handle = runtime.handle().clone();
        let driver = std::thread::spawn(move || runtime.block_on(ended));
        let taken = Arc::new(AtomicU64::new(0));
        let hostile = Hostile { tar, taken: Arc::clone(&taken) };
        let mut guest = AgentGuest::new(Box::new(hostile), handle);
        let path = GuestPath::new("/root/repo").unwrap();
        let names = [b"wanted".to_vec()];
        let error = guest.get(&path, &names, 1 << 30, &mut |_, _, _, _| Ok(())).unwrap_err();
        drop(end);
        let _ = driver.join().unwrap();
        (error, taken.load(Ordering::Relaxed))
    }

    #[test]
    fn a_name_without_an_end_is_not_gathered() {
        for kind in *b"LKx" {
            let (error, taken) = get(kind, 4 << 30);
            assert!(matches!(error, GuestError::Bad(_)), "{error:?}");
            assert!(taken < 64 * MAX_FRAME_PAYLOAD as u64, "{taken} bytes of kind {kind}");
        }
    }
}
