//! From a reference to layers that arrive.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::Poll;

use banger_types::{Digest, OciReference};
use bytes::Bytes;
use hyper::Method;
use hyper::header::CONTENT_TYPE;
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::client::{Ask, Registry, Repository};
use crate::error::RegistryError;
use crate::manifest::{
    self, ACCEPT, Descriptor, Document, LONGEST_CONFIG, LONGEST_MANIFEST, Manifest, ManifestError,
};
use crate::reader::LayerReader;
use crate::store::{Blob, BlobStore, Follow, digest_of};

/// The header with a manifest's digest, also in answer to HEAD.
const CONTENT_DIGEST: &str = "docker-content-digest";
/// How deeply indexes may nest; builders make one, or two.
const DEEPEST: usize = 4;

/// What a reference means now.
#[derive(Debug)]
pub struct Resolution {
    reference: OciReference,
    digest: Digest,
    /// The document, where it had to be fetched, with its type.
    document: Option<(Option<String>, Bytes)>,
    repository: Repository,
    store: BlobStore,
}

impl Registry {
    /// Asks what a reference means: nothing where it has a digest, one HEAD where the reference is
    /// known, else one GET of the manifest.
    ///
    /// # Errors
    /// A registry that cannot be reached, refuses or lies.
    pub async fn resolve(
        &self,
        reference: &OciReference,
        store: &BlobStore,
    ) -> Result<Resolution, RegistryError> {
        let repository = self.repository(reference);
        let resolution = |digest, document| Resolution {
            reference: reference.clone(),
            digest,
            document,
            repository: repository.clone(),
            store: store.clone(),
        };
        if let Some(digest) = reference.digest() {
            return Ok(resolution(digest.clone(), None));
        }
        let path = format!("manifests/{}", reference.tag().unwrap_or("latest"));
        let what = format!("manifest of {reference}");
        let ask = |method| Ask { method, path: &path, accept: ACCEPT, from: 0, what: &what };
        if store.last_digest(reference).is_some() {
            match repository.ask(ask(&Method::HEAD)).await {
                Ok(response) => {
                    if let Some(digest) = content_digest(response.headers()) {
                        return Ok(resolution(digest, None));
                    }
                }
                // Some servers have no HEAD.
                Err(RegistryError::Status { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        let (headers, bytes) = repository.document(ask(&Method::GET), LONGEST_MANIFEST).await?;
        let claimed = content_digest(&headers);
        let content_type = content_type(&headers);
        let digest = digest_of(&bytes);
        if let Some(expected) = claimed.filter(|claimed| *claimed != digest) {
            let what = format!("the {what}");
            return Err(RegistryError::Digest { what, expected, found: digest });
        }
        Ok(resolution(digest, Some((content_type, bytes))))
    }
}

fn content_digest(headers: &hyper::HeaderMap) -> Option<Digest> {
    headers.get(CONTENT_DIGEST)?.to_str().ok()?.parse().ok()
}

fn content_type(headers: &hyper::HeaderMap) -> Option<String> {
    headers.get(CONTENT_TYPE)?.to_str().ok().map(str::to_owned)
}

impl Resolution {
    /// Returns the digest of the manifest or index.
    #[must_use]
    pub const fn digest(&self) -> &Digest {
        &self.digest
    }

    /// Returns the reference with that digest.
    #[must_use]
    pub fn pinned(&self) -> OciReference {
        self.reference.pinned(self.digest.clone())
    }

    /// Fetches manifest and configuration, and begins to fetch all layers, the last first.
    ///
    /// # Errors
    /// What is no image for this machine, and whatever [`Registry::resolve`] meets.
    pub async fn pull(mut self) -> Result<Pull, RegistryError> {
        let name = self.reference.to_string();
        let refused = |what: &str| {
            let what = format!("the {what} of {name} is not usable");
            move |source: ManifestError| RegistryError::Manifest { what, source }
        };
        let (manifest_digest, manifest) = self.manifest(&name).await?;
        let config = self
            .fetch("blobs", &manifest.config, LONGEST_CONFIG, &format!("configuration of {name}"))
            .await?
            .1;
        let diff_ids =
            manifest::diff_ids(&config, manifest.layers.len()).map_err(refused("configuration"))?;
        self.store.have_room(&manifest.layers, &name)?;
        let (shared, runtime) = (Arc::new(Shared::default()), Handle::current());
        let count = manifest.layers.len();
        let mut layers = Vec::with_capacity(count);
        // The builder reads the last layer first, so that is fetched first.
        for (index, (descriptor, diff_id)) in
            manifest.layers.into_iter().zip(diff_ids).enumerate().rev()
        {
            let what = format!("layer {} of {count} of {name}", index + 1);
            let (blob, begun) = self.store.acquire(&descriptor, &self.repository, &what)?;
            layers.push(Layer {
                media_type: descriptor.media_type,
                diff_id,
                what,
                blob,
                begun,
                shared: Arc::clone(&shared),
                runtime: runtime.clone(),
            });
        }
        layers.reverse();
        self.store.keep_digest(&self.reference, &self.digest);
        let (reference, repository) = (self.pinned(), self.repository);
        Ok(Pull { reference, manifest_digest, config, layers, shared, repository })
    }

    /// Goes from the document through indexes to this machine's manifest.
    async fn manifest(&mut self, name: &str) -> Result<(Digest, Manifest), RegistryError> {
        let refused = |source| RegistryError::Manifest {
            what: format!("the manifest of {name} is not usable"),
            source,
        };
        let what = format!("manifest of {name}");
        let mut digest = self.digest.clone();
        let mut seen = HashSet::from([digest.clone()]);
        let (mut content_type, mut bytes) = match self.document.take() {
            Some((content_type, bytes)) => {
                self.store.keep_document(&self.digest, &bytes);
                (content_type, bytes)
            }
            None => self.fetch_digest("manifests", &self.digest, LONGEST_MANIFEST, &what).await?,
        };
        for _ in 0..=DEEPEST {
            match manifest::document(content_type.as_deref(), &bytes).map_err(refused)? {
                Document::Manifest(manifest) => return Ok((digest, manifest)),
                Document::Index(entry) => {
                    if !seen.insert(entry.digest.clone()) {
                        return Err(refused(ManifestError::Cycle));
                    }
                    (content_type, bytes) =
                        self.fetch("manifests", &entry, LONGEST_MANIFEST, &what).await?;
                    digest = entry.digest;
                }
            }
        }
        Err(refused(ManifestError::Depth))
    }

    /// Fetches a document of a known size.
    async fn fetch(
        &self,
        kind: &str,
        descriptor: &Descriptor,
        most: u64,
        what: &str,
    ) -> Result<(Option<String>, Bytes), RegistryError> {
        let fetched = self.fetch_digest(kind, &descriptor.digest, most, what).await?;
        if fetched.1.len() as u64 != descriptor.size {
            return Err(RegistryError::Protocol {
                registry: self.reference.registry().to_owned(),
                what: what.to_owned(),
                problem: format!("{} bytes, not {}", fetched.1.len(), descriptor.size),
            });
        }
        Ok(fetched)
    }

    async fn fetch_digest(
        &self,
        kind: &str,
        digest: &Digest,
        most: u64,
        what: &str,
    ) -> Result<(Option<String>, Bytes), RegistryError> {
        if let Some(bytes) = self.store.document(digest, most) {
            return Ok((None, bytes.into()));
        }
        let path = format!("{kind}/{digest}");
        let accept = if kind == "manifests" { ACCEPT } else { "*/*" };
        let ask = Ask { method: &Method::GET, path: &path, accept, from: 0, what };
        let (headers, bytes) = self.repository.document(ask, most).await?;
        let content_type = content_type(&headers);
        let found = digest_of(&bytes);
        if found != *digest {
            let what = format!("the {what}");
            return Err(RegistryError::Digest { what, expected: digest.clone(), found });
        }
        self.store.keep_document(digest, &bytes);
        Ok((content_type, bytes))
    }
}

/// An image whose layers are there or on their way. Dropping it ends the downloads that no other
/// pull wants; what they have stays for the next try.
#[derive(Debug)]
pub struct Pull {
    reference: OciReference,
    manifest_digest: Digest,
    config: Bytes,
    layers: Vec<Layer>,
    shared: Arc<Shared>,
    repository: Repository,
}

/// What a pull and its readers share.
#[derive(Debug, Default)]
pub(crate) struct Shared {
    pub(crate) cancel: CancellationToken,
    /// A blob that was there before, and is not what it was.
    pub(crate) damage: Mutex<Option<RegistryError>>,
}

impl Pull {
    /// Returns what is pulled, with its digest.
    #[must_use]
    pub const fn reference(&self) -> &OciReference {
        &self.reference
    }

    /// Returns the digest of this machine's manifest, which an index may have led to.
    #[must_use]
    pub const fn manifest_digest(&self) -> &Digest {
        &self.manifest_digest
    }

    /// Returns the image's configuration, as it came; its digest is right.
    #[must_use]
    pub const fn config(&self) -> &Bytes {
        &self.config
    }

    /// Returns the layers, the lowest first.
    #[must_use]
    pub fn layers(&self) -> &[Layer] {
        &self.layers
    }

    /// Returns how far all layers are, and waits for changes.
    #[must_use]
    pub fn progress(&self) -> PullProgress {
        let layers = self.layers.iter();
        PullProgress(layers.map(|layer| (layer.blob.size, layer.blob.follow.clone())).collect())
    }

    /// Returns why a layer could not be had, if one could not.
    #[must_use]
    pub fn failure(&self) -> Option<RegistryError> {
        self.damage().or_else(|| self.layers.iter().find_map(|layer| layer.blob.failure()))
    }

    fn damage(&self) -> Option<RegistryError> {
        self.shared.damage.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Returns whether the same pull by the same [`Registry`] may succeed at once: a blob that was
    /// kept is damaged, and is removed now, one failed that another pull had begun, in its own way,
    /// or a mirror gave another content and is asked no more.
    #[must_use]
    pub fn may_be_repeated(&self) -> bool {
        let of_another = |layer: &Layer| !layer.begun && layer.blob.failure().is_some();
        let is_other =
            |layer: &Layer| matches!(layer.blob.failure(), Some(RegistryError::Digest { .. }));
        self.damage().is_some()
            || self.layers.iter().any(of_another)
            || self.repository.has_passed_over() && self.layers.iter().any(is_other)
    }

    /// Makes all reads fail at once.
    pub fn cancel(&self) {
        self.shared.cancel.cancel();
    }
}

impl Drop for Pull {
    fn drop(&mut self) {
        self.shared.cancel.cancel();
    }
}

/// How far the layers of a pull are.
#[derive(Debug)]
pub struct PullProgress(Vec<(u64, watch::Receiver<Follow>)>);

impl PullProgress {
    /// Returns received and expected bytes of each layer, the lowest first.
    pub fn now(&mut self) -> Vec<(u64, u64)> {
        let layers = self.0.iter_mut();
        layers.map(|(size, follow)| (follow.borrow_and_update().received, *size)).collect()
    }

    /// Waits until a layer has advanced since [`PullProgress::now`]; false when none will.
    pub async fn advanced(&mut self) -> bool {
        let mut waits: Vec<_> =
            self.0.iter_mut().map(|(_, follow)| Box::pin(follow.changed())).collect();
        std::future::poll_fn(|context| {
            let mut advanced = false;
            waits.retain_mut(|wait| match wait.as_mut().poll(context) {
                Poll::Ready(Ok(())) => {
                    advanced = true;
                    false
                }
                Poll::Ready(Err(_)) => false,
                Poll::Pending => true,
            });
            match (advanced, waits.is_empty()) {
                (true, _) => Poll::Ready(true),
                (false, true) => Poll::Ready(false),
                (false, false) => Poll::Pending,
            }
        })
        .await
    }
}

/// One layer of a pull.
#[derive(Clone, Debug)]
pub struct Layer {
    media_type: String,
    diff_id: Digest,
    what: String,
    blob: Arc<Blob>,
    /// Whether this pull began it.
    begun: bool,
    shared: Arc<Shared>,
    runtime: Handle,
}

impl Layer {
    /// Returns its media type, one of those that are supported.
    #[must_use]
    pub fn media_type(&self) -> &str {
        &self.media_type
    }

    /// Returns the digest of its compressed bytes.
    #[must_use]
    pub fn digest(&self) -> &Digest {
        &self.blob.digest
    }

    /// Returns its compressed size in bytes.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.blob.size
    }

    /// Returns the digest of its uncompressed bytes, which the reader of those compares.
    #[must_use]
    pub const fn diff_id(&self) -> &Digest {
        &self.diff_id
    }

    /// Reads it from the beginning, also while it arrives.
    #[must_use]
    pub fn open(&self) -> LayerReader {
        let (blob, shared) = (Arc::clone(&self.blob), Arc::clone(&self.shared));
        LayerReader::new(blob, self.what.clone(), self.runtime.clone(), shared)
    }
}
