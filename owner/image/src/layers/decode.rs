//! Reads, decompresses and hashes a layer on a thread of its own, beside the one that writes.

use std::io::{self, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::{Scope, ScopedJoinHandle};

use crate::tarball::{Source, SourceDigests};

const CHUNK: usize = 256 << 10;
/// Chunks between the threads.
const QUEUE: usize = 4;

/// The uncompressed bytes of a layer.
#[derive(Debug)]
pub(crate) struct Decoded {
    chunks: Receiver<io::Result<Vec<u8>>>,
    current: Vec<u8>,
    taken: usize,
    bytes_in: Arc<AtomicU64>,
}

/// The thread at work.
pub(crate) type Decoder<'scope> = ScopedJoinHandle<'scope, Option<SourceDigests>>;

/// Begins to decode what `reader` yields; the thread ends with the digests where it came to the
/// end of it. Dropping the bytes stops it.
pub(crate) fn decode<'scope>(
    scope: &'scope Scope<'scope, '_>,
    reader: Box<dyn Read + Send>,
) -> io::Result<(Decoded, Decoder<'scope>)> {
    let (sender, chunks) = sync_channel(QUEUE);
    let bytes_in = Arc::new(AtomicU64::new(0));
    let count = Arc::clone(&bytes_in);
    let decoder = std::thread::Builder::new()
        .name("layer decoder".into())
        .spawn_scoped(scope, move || pass_on(reader, &sender, &count))?;
    Ok((Decoded { chunks, current: Vec::new(), taken: 0, bytes_in }, decoder))
}

fn pass_on(
    reader: Box<dyn Read + Send>,
    sender: &SyncSender<io::Result<Vec<u8>>>,
    count: &AtomicU64,
) -> Option<SourceDigests> {
    let mut source = match Source::new(reader) {
        Ok(source) => source,
        Err(error) => {
            // Who does not listen does not want to know.
            let _ = sender.send(Err(error));
            return None;
        }
    };
    loop {
        let mut chunk = Vec::with_capacity(CHUNK);
        let read = source.by_ref().take(CHUNK as u64).read_to_end(&mut chunk);
        count.store(source.bytes_in(), Ordering::Relaxed);
        if !chunk.is_empty() && sender.send(Ok(chunk)).is_err() {
            return None;
        }
        match read {
            Ok(0) => return Some(source.finish()),
            Ok(_) => {}
            Err(error) => {
                let _ = sender.send(Err(error));
                return None;
            }
        }
    }
}

impl Decoded {
    /// Bytes read so far, as they came.
    pub(crate) fn bytes_in(&self) -> u64 {
        self.bytes_in.load(Ordering::Relaxed)
    }
}

impl Read for Decoded {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.taken == self.current.len() {
            match self.chunks.recv() {
                Ok(Ok(chunk)) => (self.current, self.taken) = (chunk, 0),
                Ok(Err(error)) => return Err(error),
                Err(_) => return Ok(0),
            }
        }
        let rest = &self.current[self.taken..];
        let count = rest.len().min(buffer.len());
        buffer[..count].copy_from_slice(&rest[..count]);
        self.taken += count;
        Ok(count)
    }
}
