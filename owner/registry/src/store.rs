//! What was fetched: blobs by digest, shared by all images and pulls.
//!
//! ```text
//! <cache>/blobs/sha256/<hex>   whole, and of that digest when it came; readers compare it again
//! <cache>/blobs/partial/<hex>  the beginning of one; its writer holds a lock on it
//! <cache>/blobs/tags/<hex>     the digest that a reference had last; named by the reference's own
//! ```
//! A blob is fetched by one task however many pulls want it; the task ends with the last of them and
//! leaves the beginning, where the next one goes on. What a pull holds, [`BlobStore::prune`] leaves.

use std::collections::HashMap;
use std::fs;
use std::io::{self, Read};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::task::{Context, Poll, Waker};

use banger_types::{Digest, OciReference};
use sha2::{Digest as _, Sha256};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::AbortHandle;
use tokio::task::coop::unconstrained;

use crate::client::Repository;
use crate::download;
use crate::error::{RegistryError, stored};
use crate::manifest::Descriptor;

/// The downloads at a time, of all pulls.
const DOWNLOADS: usize = 3;

/// A place in the queue for a download; `None` once the queue is closed, which it never is.
pub(crate) type Turn = Pin<Box<dyn Future<Output = Option<OwnedSemaphorePermit>> + Send>>;

/// How far a blob is.
#[derive(Clone, Debug)]
pub(crate) struct Follow {
    /// Bytes that are on disk.
    pub(crate) received: u64,
    /// Bytes that readers may have: what an earlier run left is theirs only when all is verified.
    pub(crate) visible: u64,
    pub(crate) phase: Phase,
}

#[derive(Clone, Debug)]
pub(crate) enum Phase {
    Running,
    Complete,
    Failed(RegistryError),
}

/// A blob that is there or on its way, as long as somebody holds it.
#[derive(Debug)]
pub(crate) struct Blob {
    pub(crate) digest: Digest,
    pub(crate) size: u64,
    pub(crate) store: BlobStore,
    pub(crate) follow: watch::Receiver<Follow>,
    /// Whether it was there before, so that nobody alive has seen its digest.
    pub(crate) was_there: bool,
    task: OnceLock<AbortHandle>,
}

impl Blob {
    pub(crate) fn failure(&self) -> Option<RegistryError> {
        match &self.follow.borrow().phase {
            Phase::Failed(error) => Some(error.clone()),
            _ => None,
        }
    }
}

impl Drop for Blob {
    fn drop(&mut self) {
        if let Some(task) = self.task.get() {
            task.abort();
        }
    }
}

/// The blobs of this host.
#[derive(Clone, Debug)]
pub struct BlobStore(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    root: PathBuf,
    live: Mutex<HashMap<Digest, Weak<Blob>>>,
    slots: Arc<Semaphore>,
    temporary: AtomicU64,
}

/// What the store holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BlobUsage {
    /// Blobs, the unfinished ones included.
    pub count: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Those of them that no pull holds.
    pub unused_count: u64,
    /// Their bytes.
    pub unused_bytes: u64,
}

/// What [`BlobStore::prune`] removed, or would have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pruned {
    /// Blobs.
    pub count: u64,
    /// Bytes.
    pub bytes: u64,
}

impl BlobStore {
    /// Opens the store below `cache`, creating its directories.
    ///
    /// # Errors
    /// Directories that cannot be made.
    pub fn open(cache: &Path) -> Result<Self, RegistryError> {
        let root = cache.join("blobs");
        for part in ["sha256", "partial", "tags"] {
            let path = root.join(part);
            let mut builder = fs::DirBuilder::new();
            builder.recursive(true).mode(0o700).create(&path).map_err(stored("create", &path))?;
        }
        Ok(Self(Arc::new(Inner {
            root,
            live: Mutex::default(),
            slots: Arc::new(Semaphore::new(DOWNLOADS)),
            temporary: AtomicU64::new(0),
        })))
    }

    pub(crate) fn path(&self, digest: &Digest) -> PathBuf {
        self.0.root.join("sha256").join(digest.hex())
    }

    pub(crate) fn partial(&self, digest: &Digest) -> PathBuf {
        self.0.root.join("partial").join(digest.hex())
    }

    fn tag(&self, reference: &OciReference) -> PathBuf {
        let name = digest_of(reference.unpinned().to_string().as_bytes());
        self.0.root.join("tags").join(name.hex())
    }

    /// Queues for a download. Who asks first has the first that is free, whichever task runs first.
    fn turn(&self) -> Turn {
        let turn = unconstrained(Arc::clone(&self.0.slots).acquire_owned());
        let mut turn: Turn = Box::pin(async move { turn.await.ok() });
        // It is its first poll that puts it into the semaphore's queue.
        match turn.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(slot) => Box::pin(std::future::ready(slot)),
            Poll::Pending => turn,
        }
    }

    fn live(&self) -> MutexGuard<'_, HashMap<Digest, Weak<Blob>>> {
        self.0.live.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Refuses blobs whose bytes that are not here yet are more than the disk has room for.
    pub(crate) fn have_room(&self, blobs: &[Descriptor], what: &str) -> Result<(), RegistryError> {
        let length = |path: PathBuf| fs::metadata(path).map_or(0, |metadata| metadata.len());
        let distinct: HashMap<_, _> = blobs.iter().map(|blob| (&blob.digest, blob.size)).collect();
        let needed = distinct.into_iter().fold(0_u64, |sum, (digest, size)| {
            let here = length(self.path(digest)).max(length(self.partial(digest)));
            sum.saturating_add(size.saturating_sub(here))
        });
        let root = &self.0.root;
        let found = rustix::fs::statvfs(root)
            .map_err(|error| stored("examine", root)(io::Error::from(error)))?;
        let free = found.f_bavail.saturating_mul(found.f_frsize);
        if needed > free {
            let what = what.to_owned();
            return Err(RegistryError::NoRoom { what, needed, path: root.clone(), free });
        }
        Ok(())
    }

    /// Holds a blob, fetched from `repository` unless it is there or on its way. `what` is for
    /// people. Returns it with whether this call began it.
    pub(crate) fn acquire(
        &self,
        descriptor: &Descriptor,
        repository: &Repository,
        what: &str,
    ) -> Result<(Arc<Blob>, bool), RegistryError> {
        let (digest, size) = (&descriptor.digest, descriptor.size);
        let mut live = self.live();
        live.retain(|_, blob| blob.strong_count() > 0);
        if let Some(blob) = live.get(digest).and_then(Weak::upgrade)
            && blob.size == size
            && blob.failure().is_none()
        {
            return Ok((blob, false));
        }
        let path = self.path(digest);
        let was_there = match fs::metadata(&path) {
            Ok(metadata) if metadata.len() == size => true,
            Ok(_) if live.get(digest).and_then(Weak::upgrade).is_some() => {
                return Err(RegistryError::Protocol {
                    registry: repository.name_of_registry(),
                    what: what.to_owned(),
                    problem: "not the size that another pull knows of it".to_owned(),
                });
            }
            Ok(_) => {
                fs::remove_file(&path).map_err(stored("remove", &path))?;
                false
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => false,
            Err(error) => return Err(stored("examine", &path)(error)),
        };
        let begin = if was_there {
            Follow { received: size, visible: size, phase: Phase::Complete }
        } else {
            Follow { received: 0, visible: 0, phase: Phase::Running }
        };
        let (sender, follow) = watch::channel(begin);
        let blob = Arc::new(Blob {
            digest: digest.clone(),
            size,
            store: self.clone(),
            follow,
            was_there,
            task: OnceLock::new(),
        });
        if !was_there {
            let job = download::Job {
                store: self.clone(),
                blob: Arc::downgrade(&blob),
                digest: digest.clone(),
                size,
                repository: repository.clone(),
                what: what.to_owned(),
                sender: Arc::new(sender),
                place: AtomicUsize::new(0),
            };
            let _ = blob.task.set(tokio::spawn(job.run(self.turn())).abort_handle());
        }
        live.insert(digest.clone(), Arc::downgrade(&blob));
        Ok((blob, true))
    }

    /// Gives a verified blob its name, unless everybody who wanted it is gone: then somebody else
    /// may have begun anew at its path.
    pub(crate) fn publish(&self, digest: &Digest, blob: &Weak<Blob>) -> Result<(), RegistryError> {
        let live = self.live();
        let held = blob.upgrade();
        if held.is_some() {
            let path = self.path(digest);
            fs::rename(self.partial(digest), &path).map_err(stored("create", &path))?;
        }
        // The last holder's drop takes no lock, but it may be us.
        drop(live);
        drop(held);
        Ok(())
    }

    /// Removes a blob that turned out to be damaged.
    pub(crate) fn remove(&self, digest: &Digest) {
        for path in [self.path(digest), self.partial(digest)] {
            if let Err(error) = fs::remove_file(&path)
                && error.kind() != io::ErrorKind::NotFound
            {
                tracing::warn!(path = %path.display(), %error, "remove a damaged blob");
            }
        }
    }

    /// Returns a document that was kept, whole and of its digest.
    pub(crate) fn document(&self, digest: &Digest, most: u64) -> Option<Vec<u8>> {
        let mut bytes = Vec::new();
        let file = fs::File::open(self.path(digest)).ok()?;
        file.take(most + 1).read_to_end(&mut bytes).ok()?;
        if digest_of(&bytes) == *digest {
            return Some(bytes);
        }
        if bytes.len() as u64 <= most {
            self.remove(digest);
        }
        None
    }

    /// Keeps a document. That it could not be kept costs a request later, and nothing else.
    pub(crate) fn keep_document(&self, digest: &Digest, bytes: &[u8]) {
        self.keep(&self.path(digest), bytes);
    }

    /// Returns the digest that a reference had last.
    pub(crate) fn last_digest(&self, reference: &OciReference) -> Option<Digest> {
        fs::read_to_string(self.tag(reference)).ok()?.parse().ok()
    }

    /// Keeps the digest that a reference has now.
    pub(crate) fn keep_digest(&self, reference: &OciReference, digest: &Digest) {
        self.keep(&self.tag(reference), digest.as_str().as_bytes());
    }

    fn keep(&self, path: &Path, bytes: &[u8]) {
        let number = self.0.temporary.fetch_add(1, Ordering::Relaxed);
        let temporary =
            self.0.root.join("partial").join(format!("document-{}-{number}", std::process::id()));
        let kept = fs::write(&temporary, bytes).and_then(|()| fs::rename(&temporary, path));
        if let Err(error) = kept {
            let _ = fs::remove_file(&temporary);
            tracing::debug!(path = %path.display(), %error, "a document is not kept");
        }
    }

    /// Returns what the store holds.
    ///
    /// # Errors
    /// Directories that cannot be read.
    pub fn usage(&self) -> Result<BlobUsage, RegistryError> {
        let mut usage = BlobUsage::default();
        self.each(|_, bytes, unused| {
            usage.count += 1;
            usage.bytes += bytes;
            if unused {
                usage.unused_count += 1;
                usage.unused_bytes += bytes;
            }
            Ok(())
        })?;
        Ok(usage)
    }

    /// Removes every blob that no pull holds; with `dry_run` it only counts them. The images made
    /// from them are files of their own.
    ///
    /// # Errors
    /// Files that cannot be removed.
    pub fn prune(&self, dry_run: bool) -> Result<Pruned, RegistryError> {
        let mut pruned = Pruned::default();
        self.each(|path, bytes, unused| {
            if !unused {
                return Ok(());
            }
            pruned.count += 1;
            pruned.bytes += bytes;
            if dry_run { Ok(()) } else { fs::remove_file(path).or_else(gone) }
        })?;
        if !dry_run {
            // A tag without its document says nothing.
            let tags = self.0.root.join("tags");
            for entry in fs::read_dir(&tags).map_err(stored("list", &tags))? {
                let path = entry.map_err(stored("list", &tags))?.path();
                fs::remove_file(&path).or_else(gone).map_err(stored("remove", &path))?;
            }
        }
        Ok(pruned)
    }

    /// Visits the file of each blob with its bytes on disk and whether no pull holds it. None
    /// begins or ends meanwhile.
    fn each(
        &self,
        mut visit: impl FnMut(&Path, u64, bool) -> io::Result<()>,
    ) -> Result<(), RegistryError> {
        let live = self.live();
        let held: std::collections::HashSet<&str> = live
            .iter()
            .filter(|(_, blob)| blob.strong_count() > 0)
            .map(|(digest, _)| digest.hex())
            .collect();
        for part in ["sha256", "partial"] {
            let directory = self.0.root.join(part);
            for entry in fs::read_dir(&directory).map_err(stored("list", &directory))? {
                let entry = entry.map_err(stored("list", &directory))?;
                let path = entry.path();
                let metadata = match entry.metadata() {
                    Ok(metadata) => metadata,
                    Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                    Err(error) => return Err(stored("examine", &path)(error)),
                };
                let unused = !entry.file_name().to_str().is_some_and(|name| held.contains(name));
                visit(&path, metadata.blocks() * 512, unused).map_err(stored("remove", &path))?;
            }
        }
        Ok(())
    }
}

pub(crate) fn gone(error: io::Error) -> io::Result<()> {
    if error.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(error) }
}

/// Returns the digest of some bytes.
pub(crate) fn digest_of(bytes: &[u8]) -> Digest {
    Digest::from_sha256(Sha256::digest(bytes).into())
}
