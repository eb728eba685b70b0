//! A layer's bytes, for a builder on a thread of its own.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::sync::{Arc, PoisonError};

use banger_types::Digest;
use sha2::{Digest as _, Sha256};
use tokio::runtime::Handle;
use tokio::sync::watch;

use crate::error::{RegistryError, stored};
use crate::pull::Shared;
use crate::store::{Blob, Follow, Phase};

/// Follows a blob, also while it arrives. Its end is only there when the whole blob was compared
/// with its digest; what was read before is not proven.
///
/// Errors are a [`RegistryError`] inside the [`io::Error`]. A read waits for the network: never on
/// a thread of the runtime.
#[derive(Debug)]
pub struct LayerReader {
    blob: Arc<Blob>,
    what: String,
    follow: watch::Receiver<Follow>,
    runtime: Handle,
    shared: Arc<Shared>,
    file: Option<File>,
    at: u64,
    /// Of a blob that was there before.
    hash: Option<Sha256>,
}

impl LayerReader {
    pub(crate) fn new(blob: Arc<Blob>, what: String, runtime: Handle, shared: Arc<Shared>) -> Self {
        let follow = blob.follow.clone();
        let hash = blob.was_there.then(Sha256::new);
        Self { blob, what, follow, runtime, shared, file: None, at: 0, hash }
    }

    /// Waits until there is more to read and returns up to where, or `None` at the end.
    fn wait(&mut self) -> Result<Option<u64>, RegistryError> {
        loop {
            if self.shared.cancel.is_cancelled() {
                return Err(RegistryError::Cancelled);
            }
            {
                let follow = self.follow.borrow_and_update();
                if let Phase::Failed(error) = &follow.phase {
                    return Err(error.clone());
                }
                if follow.visible > self.at
                    && (follow.visible < self.blob.size || is_whole(&follow))
                {
                    return Ok(Some(follow.visible));
                }
                // All but the last bytes may be read before the digest is known.
                if follow.visible == self.blob.size
                    && !is_whole(&follow)
                    && self.at + 1 < self.blob.size
                {
                    return Ok(Some(self.blob.size - 1));
                }
                if is_whole(&follow) {
                    return Ok(None);
                }
            }
            let changed = async {
                tokio::select! {
                    changed = self.follow.changed() => changed.is_ok(),
                    () = self.shared.cancel.cancelled() => false,
                }
            };
            if !self.runtime.block_on(changed) && !self.shared.cancel.is_cancelled() {
                // The task ended without a word.
                return Err(RegistryError::Cancelled);
            }
        }
    }

    fn next(&mut self, buffer: &mut [u8]) -> Result<usize, RegistryError> {
        if buffer.is_empty() {
            return Ok(0);
        }
        let Some(visible) = self.wait()? else {
            self.compare()?;
            return Ok(0);
        };
        let path = self.blob.store.path(&self.blob.digest);
        let file = match &self.file {
            Some(file) => file,
            None => {
                // It may get its name between the two.
                let partial = self.blob.store.partial(&self.blob.digest);
                let file = File::open(&path)
                    .or_else(|_| File::open(&partial))
                    .or_else(|_| File::open(&path))
                    .map_err(stored("open", &path))?;
                self.file.insert(file)
            }
        };
        let most = usize::try_from(visible - self.at).unwrap_or(usize::MAX).min(buffer.len());
        let count = file.read_at(&mut buffer[..most], self.at).map_err(stored("read", &path))?;
        if count == 0 {
            let error = io::Error::new(io::ErrorKind::UnexpectedEof, "it is shorter than it was");
            return Err(stored("read", &path)(error));
        }
        if let Some(hash) = &mut self.hash {
            hash.update(&buffer[..count]);
        }
        self.at += count as u64;
        Ok(count)
    }

    /// Compares a blob that was there before with its digest, once, at its end.
    fn compare(&mut self) -> Result<(), RegistryError> {
        let Some(hash) = self.hash.take() else { return Ok(()) };
        let found = Digest::from_sha256(hash.finalize().into());
        if found == self.blob.digest {
            return Ok(());
        }
        // The next try fetches it anew.
        self.blob.store.remove(&self.blob.digest);
        let (what, expected) = (self.what.clone(), self.blob.digest.clone());
        let error = RegistryError::Digest { what, expected, found };
        let mut damage = self.shared.damage.lock().unwrap_or_else(PoisonError::into_inner);
        *damage = Some(error.clone());
        Err(error)
    }
}

const fn is_whole(follow: &Follow) -> bool {
    matches!(follow.phase, Phase::Complete)
}

impl Read for LayerReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.next(buffer).map_err(io::Error::other)
    }
}
