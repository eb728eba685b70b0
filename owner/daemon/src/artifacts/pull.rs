//! Pulls: an operation, a registry and a builder, tied together.
//!
//! ```text
//! resolve ── the image is here and the same ──> done
//!    └─> pull: all layers begin to arrive ──> build, which reads them while they do ──> published
//! ```
//! A pull that is called off, or dies with the daemon, leaves what has arrived in the blob store,
//! where the next one goes on; of the image nothing is left.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use banger_daemon_api::config::RegistryConfig;
use banger_daemon_api::error::{ApiError, ErrorCode};
use banger_daemon_api::operation::{OperationKind, OperationPart, OperationStarted};
use banger_daemon_api::pull::{
    BlobsPruned, ProxyEnvironment, PullImage, RegistryCredentials, SecretText,
};
use banger_engine::{Begun, Operations, Reporter};
use banger_image::{
    BuildOptions, CancelFlag, ImageStoreError, Layer, LayerSource, LayeredImage, NewImage, Progress,
};
use banger_registry::{
    Access, BlobStore, Credentials, Deadlines, Proxies, Pull, Registry, Secret, Settings,
};
use banger_types::{ImageConfig, ImageName, OciReference, OperationId};
use serde::Deserialize;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::{ArtifactStores, blocking, failure, registry_failure};

/// How often counted bytes are passed on: each report wakes everybody who watches.
const REPORT_EVERY: Duration = Duration::from_millis(100);

/// Begins pulls.
#[derive(Clone, Debug)]
pub struct Puller {
    stores: ArtifactStores,
    blobs: BlobStore,
    operations: Operations,
    tasks: TaskTracker,
}

/// One pull.
struct Work {
    stores: ArtifactStores,
    blobs: BlobStore,
    registry: Registry,
    request: PullImage,
}

impl Puller {
    /// Makes one for these stores.
    pub fn new(stores: ArtifactStores, blobs: BlobStore, operations: Operations) -> Self {
        Self { stores, blobs, operations, tasks: TaskTracker::new() }
    }

    /// Returns what was fetched.
    pub const fn blobs(&self) -> &BlobStore {
        &self.blobs
    }

    /// Removes what no pull under way needs; with `dry_run` it only counts.
    pub async fn prune(&self, dry_run: bool) -> Result<BlobsPruned, ApiError> {
        let blobs = self.blobs.clone();
        let pruned =
            blocking(move || blobs.prune(dry_run).map_err(|error| registry_failure::store(&error)))
                .await?;
        if !dry_run {
            tracing::info!(count = pruned.count, bytes = pruned.bytes, "pruned blobs");
        }
        Ok(BlobsPruned { count: pruned.count, bytes: pruned.bytes })
    }

    /// Begins a pull, or joins the one of this name and reference that is under way.
    pub async fn begin(
        &self,
        mut request: PullImage,
        config: RegistryConfig,
        op_id: OperationId,
    ) -> Result<OperationStarted, ApiError> {
        refuse_taken(&self.stores, &request).await?;
        let access = access(&mut request)?;
        let kind = OperationKind::ImagePull {
            image: request.name.clone(),
            reference: request.reference.clone(),
        };
        let conflicts = |other: &OperationKind| makes_another(other, &request);
        let reporter = match self.operations.begin_or_join(kind, op_id, conflicts) {
            Begun::New(reporter) => reporter,
            Begun::Joined(handle) => {
                return Ok(OperationStarted { operation: handle.snapshot(), joined: true });
            }
            Begun::Conflicting(handle) => {
                return Err(being_made(&request.name, &handle.snapshot().kind));
            }
        };
        let operation = reporter.handle().snapshot();
        let settings = Settings {
            mirrors: config.mirrors,
            insecure: config.insecure,
            deadlines: Deadlines::default(),
        };
        let work = Work {
            stores: self.stores.clone(),
            blobs: self.blobs.clone(),
            registry: Registry::new(settings, access),
            request,
        };
        self.tasks.spawn(async move {
            let result = work.run(&reporter).await;
            log(&reporter.id(), &work.request.reference, &result);
            reporter.finish(result);
        });
        Ok(OperationStarted { operation, joined: false })
    }

    /// Waits until every pull has ended; they are cancelled before.
    pub async fn end(&self) {
        for operation in self.operations.active() {
            if matches!(operation.snapshot().kind, OperationKind::ImagePull { .. }) {
                operation.cancel();
            }
        }
        self.tasks.close();
        self.tasks.wait().await;
    }
}

fn log(op_id: &OperationId, reference: &OciReference, result: &Result<(), ApiError>) {
    let (op_id, reference) = (op_id.as_str(), reference.to_string());
    match result {
        Ok(()) => tracing::info!(op_id, reference, "pulled"),
        Err(error) if error.code == ErrorCode::Cancelled => {
            tracing::info!(op_id, reference, "pull cancelled");
        }
        Err(error) => tracing::warn!(
            op_id,
            reference,
            code = error.code.as_str(),
            error = error.message,
            causes = error.causes.join("; "),
            "pull failed"
        ),
    }
}

/// Refuses a name that is taken by an image from elsewhere.
async fn refuse_taken(stores: &ArtifactStores, request: &PullImage) -> Result<(), ApiError> {
    if request.replace {
        return Ok(());
    }
    let Ok(image) = stores.image(&request.name).await else { return Ok(()) };
    match OciReference::recorded(&image.source) {
        Some(source) if is_same(&source, &request.reference) => Ok(()),
        _ => {
            let message = format!(
                "there is an image {} already, and it comes from {}",
                request.name, image.source
            );
            Err(ApiError::new(ErrorCode::AlreadyExists, message)
                .hint("choose another name with --name, or replace it with --force"))
        }
    }
}

/// Whether an operation makes an image of the name that `request` wants for something else.
fn makes_another(other: &OperationKind, request: &PullImage) -> bool {
    match other {
        OperationKind::ImagePull { image, .. } | OperationKind::ImageImport { image, .. } => {
            *image == request.name
        }
        _ => false,
    }
}

fn being_made(name: &ImageName, other: &OperationKind) -> ApiError {
    let source = match other {
        OperationKind::ImagePull { reference, .. } => reference.to_string(),
        OperationKind::ImageImport { source, .. } => source.clone(),
        _ => "something else".to_owned(),
    };
    ApiError::new(ErrorCode::InUse, format!("image {name} is just being made from {source}"))
        .hint("choose another name with --name, or wait until that has ended")
}

/// Whether an image that came from `source` is what `wanted` means, or meant once.
fn is_same(source: &OciReference, wanted: &OciReference) -> bool {
    match wanted.digest() {
        Some(digest) => {
            source.digest() == Some(digest)
                && source.registry() == wanted.registry()
                && source.repository() == wanted.repository()
        }
        None => source.unpinned() == *wanted,
    }
}

/// Takes what the client brought out of its request.
fn access(request: &mut PullImage) -> Result<Access, ApiError> {
    let credentials = std::mem::take(&mut request.credentials).into_iter().map(credential);
    let ProxyEnvironment { https, http, exempt } = std::mem::take(&mut request.proxies);
    let (https, http) = (https.map(SecretText::reveal), http.map(SecretText::reveal));
    let proxies = Proxies::new(https.as_deref(), http.as_deref(), exempt.as_deref())
        .map_err(|error| ApiError::new(ErrorCode::BadParams, error.to_string()))?;
    let credentials = credentials.collect();
    Ok(Access { credentials, proxies, authorities: request.authorities.take() })
}

fn credential(credentials: RegistryCredentials) -> Credentials {
    let RegistryCredentials { registry, user, secret } = credentials;
    let secret = Secret::new(secret.reveal());
    match user {
        Some(user) => Credentials::Password { registry, user, password: secret },
        None => Credentials::IdentityToken { registry, token: secret },
    }
}

fn cancelled() -> ApiError {
    ApiError::new(ErrorCode::Cancelled, "the pull was cancelled")
}

impl Work {
    async fn run(&self, reporter: &Reporter) -> Result<(), ApiError> {
        let cancel = reporter.cancellation();
        let mut repeated = false;
        loop {
            reporter.stage("asking the registry");
            let begun = tokio::select! {
                begun = self.fetch() => begun?,
                () = cancel.cancelled() => return Err(cancelled()),
            };
            let Some(pull) = begun else { return Ok(()) };
            let pull = Arc::new(pull);
            let built = self.build(&pull, reporter, &cancel).await;
            if cancel.is_cancelled() && built.is_err() {
                return Err(cancelled());
            }
            match built {
                Ok(()) => return Ok(()),
                Err(_) if pull.may_be_repeated() && !repeated => repeated = true,
                Err(error) => return Err(error),
            }
        }
    }

    /// Begins to fetch the layers; `None` where the image is here already.
    async fn fetch(&self) -> Result<Option<Pull>, ApiError> {
        let wrong = |error| registry_failure::pull(&self.request.reference, &error);
        let resolution =
            self.registry.resolve(&self.request.reference, &self.blobs).await.map_err(wrong)?;
        if let Ok(image) = self.stores.image(&self.request.name).await
            && image.source == resolution.pinned().to_string()
            && (self.request.default_kernel.is_none()
                || self.request.default_kernel == image.default_kernel)
        {
            return Ok(None);
        }
        resolution.pull().await.map(Some).map_err(wrong)
    }

    /// Builds the image while its layers arrive.
    async fn build(
        &self,
        pull: &Arc<Pull>,
        reporter: &Reporter,
        cancel: &CancellationToken,
    ) -> Result<(), ApiError> {
        let image = layered(pull)?;
        // An image that comes from the same reference is replaced, and no other.
        refuse_taken(&self.stores, &self.request).await?;
        let replace = self.stores.image(&self.request.name).await.is_ok();
        let new = NewImage {
            name: self.request.name.clone(),
            source: pull.reference().to_string(),
            kernel: self.request.default_kernel.clone(),
            replace,
        };
        let (stages, mut stage) = watch::channel(Stage::default());
        let (store, flag) = (self.stores.images.clone(), CancelFlag::default());
        let (held, stop) = (Arc::clone(pull), flag.clone());
        let build = blocking(move || {
            let progress = Stages { stages, last: Mutex::new(None) };
            let built =
                store.import_layers(&new, image, &BuildOptions::default(), &progress, &stop);
            built.map(|_| ()).map_err(|error| explain(&held, &new, &error))
        });
        tokio::pin!(build);
        let mut progress = pull.progress();
        let mut last = None;
        reporter.stage("fetching layers");
        let mut fetching = report_layers(reporter, &mut progress.now());
        loop {
            tokio::select! {
                built = &mut build => return built,
                advanced = progress.advanced(), if fetching => {
                    let mut layers = progress.now();
                    let whole = layers.iter().all(|(received, size)| received == size);
                    if whole || last.is_none_or(|last: Instant| last.elapsed() >= REPORT_EVERY) {
                        last = Some(Instant::now());
                        fetching = report_layers(reporter, &mut layers);
                    }
                    fetching &= advanced;
                    if !fetching {
                        stage.borrow_and_update().report(reporter);
                    }
                }
                changed = stage.changed(), if !fetching => {
                    if changed.is_err() {
                        // The builder is about to return.
                        return build.await;
                    }
                    stage.borrow_and_update().report(reporter);
                }
                () = cancel.cancelled(), if flag.check().is_ok() => {
                    flag.cancel();
                    pull.cancel();
                }
            }
        }
    }
}

/// Reports how far the layers are; false when all are here.
fn report_layers(reporter: &Reporter, layers: &mut Vec<(u64, u64)>) -> bool {
    let parts: Vec<OperationPart> = std::mem::take(layers)
        .into_iter()
        .map(|(bytes_done, bytes_total)| OperationPart { bytes_done, bytes_total })
        .collect();
    let fetching = parts.iter().any(|part| part.bytes_done < part.bytes_total);
    reporter.parts(parts);
    fetching
}

/// What a failed build should be called: by the registry's failure where that is the cause.
fn explain(pull: &Pull, new: &NewImage, error: &ImageStoreError) -> ApiError {
    match pull.failure() {
        Some(cause) => registry_failure::pull(pull.reference(), &cause),
        None => failure::image(&new.name, error),
    }
}

/// The part of an image's configuration that says how it wants to be run.
#[derive(Deserialize)]
struct Configuration {
    config: Option<ImageConfig>,
}

/// Makes the builder's view of a pull.
fn layered(pull: &Arc<Pull>) -> Result<LayeredImage, ApiError> {
    let bad = |error: &(dyn std::error::Error + 'static)| {
        let message = format!("the configuration of {} is not usable", pull.reference());
        let mut api = ApiError::new(ErrorCode::BadArchive, message);
        api.causes.push(error.to_string());
        api
    };
    let configuration: Configuration =
        serde_json::from_slice(pull.config()).map_err(|error| bad(&error))?;
    let layers = pull.layers().iter().map(|layer| {
        Ok(Layer {
            media_type: layer.media_type().parse().map_err(|error| bad(&error))?,
            digest: Some(layer.digest().clone()),
            size: Some(layer.size()),
            diff_id: layer.diff_id().clone(),
            source: Box::new(Source(layer.clone())),
        })
    });
    Ok(LayeredImage {
        layers: layers.collect::<Result<_, ApiError>>()?,
        config: configuration.config.unwrap_or_default(),
        manifest_digest: Some(pull.manifest_digest().clone()),
    })
}

/// A layer that arrives, for the builder.
struct Source(banger_registry::Layer);

impl LayerSource for Source {
    fn open(&self) -> std::io::Result<Box<dyn std::io::Read + Send>> {
        Ok(Box::new(self.0.open()))
    }
}

/// What the builder does, which is shown when all layers are here.
#[derive(Clone, Debug, Default)]
struct Stage {
    name: String,
    bytes: Option<(u64, Option<u64>)>,
}

impl Stage {
    fn report(&self, reporter: &Reporter) {
        if self.name.is_empty() {
            return;
        }
        if reporter.handle().snapshot().stage != self.name {
            reporter.stage(&self.name);
        }
        if let Some((done, total)) = self.bytes {
            reporter.bytes(done, total);
        }
    }
}

struct Stages {
    stages: watch::Sender<Stage>,
    last: Mutex<Option<Instant>>,
}

impl Progress for Stages {
    fn stage(&self, name: &str) {
        self.stages.send_replace(Stage { name: name.to_owned(), bytes: None });
    }

    fn bytes(&self, done: u64, total: Option<u64>) {
        let Ok(mut last) = self.last.lock() else { return };
        if last.is_none_or(|last| last.elapsed() >= REPORT_EVERY) {
            *last = Some(Instant::now());
            self.stages.send_modify(|stage| stage.bytes = Some((done, total)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_is_replaced_by_what_its_own_reference_means_now() {
        let digest = |digit: &str| format!("sha256:{}", digit.repeat(64));
        let same = |source: &str, wanted: &str| {
            is_same(&source.parse().unwrap(), &wanted.parse().unwrap())
        };
        let (a, b) = (digest("a"), digest("b"));
        assert!(same(&format!("alpine:3.20@{a}"), "alpine:3.20"));
        assert!(same(&format!("alpine:3.20@{a}"), &format!("alpine@{a}")));
        assert!(!same(&format!("alpine:3.20@{a}"), &format!("alpine@{b}")));
        assert!(!same(&format!("alpine:3.20@{a}"), "alpine:3.19"));
        assert!(!same(&format!("alpine:3.20@{a}"), "ghcr.io/library/alpine:3.20"));
        assert!(!same(&format!("ghcr.io/x@{a}"), &format!("quay.io/x@{a}")));
    }
}
