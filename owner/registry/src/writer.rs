//! The thread that hashes and writes one blob while it arrives.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use banger_types::Digest;
use bytes::Bytes;
use sha2::{Digest as _, Sha256};
use tokio::sync::{mpsc, oneshot, watch};

use crate::error::{RegistryError, stored};
use crate::store::{Follow, gone};

const BLOCK: usize = 256 << 10;

/// What the writer is sent.
pub(crate) enum Part {
    Chunk(Bytes),
    /// All has been sent; without it the end of the queue is that of the task.
    End,
}

/// What became of the bytes.
pub(crate) enum Verdict {
    /// They have this digest.
    Whole {
        found: Digest,
        /// Whether an earlier run wrote some of them.
        resumed: bool,
    },
    /// The task ended first; what there is stays for the next.
    Abandoned,
}

/// Writes a blob of `size` bytes to `path`, going on where an earlier run stopped; `opened` gets
/// where that is. Blocks.
pub(crate) fn write(
    path: &Path,
    size: u64,
    follow: &watch::Sender<Follow>,
    mut parts: mpsc::Receiver<Part>,
    opened: oneshot::Sender<u64>,
) -> Result<Verdict, RegistryError> {
    let mut file = open(path.to_owned())?;
    let failed = || stored("write", path);
    let mut at = file.metadata().map_err(stored("examine", path))?.len();
    if at > size {
        file.set_len(0).map_err(failed())?;
        at = 0;
    }
    let resumed = at > 0;
    let mut hash = Sha256::new();
    if resumed {
        rehash(&file, at, &mut hash).map_err(stored("read", path))?;
    }
    file.seek(SeekFrom::Start(at)).map_err(failed())?;
    follow.send_modify(|follow| follow.received = at);
    let _ = opened.send(at);
    while let Some(part) = parts.blocking_recv() {
        match part {
            Part::Chunk(chunk) => {
                file.write_all(&chunk).map_err(failed())?;
                at += chunk.len() as u64;
                // Readers first: hashing takes longer than their next read.
                follow.send_modify(|follow| {
                    follow.received = at;
                    if !resumed {
                        follow.visible = at;
                    }
                });
                hash.update(&chunk);
            }
            Part::End => {
                let found = Digest::from_sha256(hash.finalize().into());
                return Ok(Verdict::Whole { found, resumed });
            }
        }
    }
    if at == 0 {
        // With its lock held, so that nobody who comes next has it open unlocked.
        std::fs::remove_file(path).or_else(gone).map_err(stored("remove", path))?;
    }
    Ok(Verdict::Abandoned)
}

/// Opens the file and takes its lock, which the writer before may hold for another moment. What was
/// removed meanwhile is made anew.
fn open(path: PathBuf) -> Result<File, RegistryError> {
    loop {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .custom_flags(rustix::fs::OFlags::NOFOLLOW.bits().cast_signed())
            .open(&path)
            .map_err(stored("open", &path))?;
        file.lock().map_err(stored("lock", &path))?;
        let ours = file.metadata().map_err(stored("examine", &path))?;
        match std::fs::metadata(&path) {
            Ok(named) if named.ino() == ours.ino() => return Ok(file),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(stored("examine", &path)(error)),
        }
    }
}

fn rehash(file: &File, length: u64, hash: &mut Sha256) -> io::Result<()> {
    let mut reader = file.take(length);
    let mut block = vec![0; BLOCK];
    loop {
        let count = reader.read(&mut block)?;
        if count == 0 {
            return Ok(());
        }
        hash.update(&block[..count]);
    }
}

/// Shared by the task and its thread.
pub(crate) type Sender = Arc<watch::Sender<Follow>>;
