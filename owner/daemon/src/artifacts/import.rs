//! Imports: an operation, an upload and a builder, tied together.

use std::path::PathBuf;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use banger_daemon_api::artifact::{FILE_SOURCE, ImportImage, ImportKernel};
use banger_daemon_api::error::{ApiError, ErrorCode};
use banger_daemon_api::operation::{OperationKind, OperationStarted};
use banger_engine::{Begun, Operations, Reporter};
use banger_image::{BuildOptions, CancelFlag, NewImage, NewKernel, Progress, Selection};
use banger_types::OperationId;
use tokio_util::task::TaskTracker;

use super::upload::{UploadReader, Uploads, cancelled};
use super::{ArtifactStores, failure};

/// How often counted bytes are passed on: each report wakes everybody who watches.
const REPORT_EVERY: Duration = Duration::from_millis(100);

/// Begins imports.
#[derive(Clone, Debug)]
pub struct Importer {
    stores: ArtifactStores,
    operations: Operations,
    uploads: Uploads,
    root: PathBuf,
    tasks: TaskTracker,
}

impl Importer {
    /// Makes one for the stores below `root`.
    pub fn new(stores: ArtifactStores, operations: Operations, root: PathBuf) -> Self {
        Self { stores, operations, uploads: Uploads::default(), root, tasks: TaskTracker::new() }
    }

    /// Returns the uploads that have not begun.
    pub const fn uploads(&self) -> &Uploads {
        &self.uploads
    }

    /// Begins the import of an image, or joins the one under way.
    pub async fn image(
        &self,
        request: ImportImage,
        op_id: OperationId,
    ) -> Result<OperationStarted, ApiError> {
        if !request.replace && self.stores.image(&request.name).await.is_ok() {
            return Err(failure::image_exists(&request.name));
        }
        let source = request.source.clone();
        let kind = OperationKind::ImageImport { image: request.name.clone(), source };
        let store = self.stores.images.clone();
        Ok(self.begin(kind, op_id, move |upload, progress, cancel| {
            let new = NewImage {
                name: request.name,
                source: request.source,
                kernel: request.default_kernel,
                replace: request.replace,
            };
            let mut selection = Selection {
                reference: request.reference,
                config: request.config,
                ..Selection::default()
            };
            if let Some(platform) = request.platform {
                selection.platform = platform;
            }
            store
                .import_any(&new, &selection, upload, &BuildOptions::default(), progress, cancel)
                .map(|_| ())
                .map_err(|error| failure::image(&new.name, &error))
        }))
    }

    /// Begins the import of a kernel package, or joins the one under way.
    pub async fn kernel(
        &self,
        request: ImportKernel,
        op_id: OperationId,
    ) -> Result<OperationStarted, ApiError> {
        if !request.replace && self.stores.kernel(&request.name).await.is_ok() {
            return Err(failure::kernel_exists(&request.name));
        }
        let source = request.source.clone();
        let kind = OperationKind::KernelImport { kernel: request.name.clone(), source };
        let store = self.stores.kernels.clone();
        Ok(self.begin(kind, op_id, move |upload, progress, cancel| {
            let new =
                NewKernel { name: request.name, source: request.source, replace: request.replace };
            store
                .import(&new, upload, None, progress, cancel)
                .map(|_| ())
                .map_err(|error| failure::kernel(&new.name, &error))
        }))
    }

    /// Waits until every import has ended; they are cancelled before.
    pub async fn end(&self) {
        for operation in self.operations.active() {
            if matches!(
                operation.snapshot().kind,
                OperationKind::ImageImport { .. } | OperationKind::KernelImport { .. }
            ) {
                operation.cancel();
            }
        }
        self.tasks.close();
        self.tasks.wait().await;
    }

    fn begin(
        &self,
        kind: OperationKind,
        op_id: OperationId,
        build: impl FnOnce(&mut UploadReader, &dyn Progress, &CancelFlag) -> Result<(), ApiError>
        + Send
        + 'static,
    ) -> OperationStarted {
        let reporter = if is_a_file(&kind) {
            self.operations.begin(kind, op_id)
        } else {
            // What is first whole gets the name; the others are told that it is taken.
            match self.operations.begin_or_join(kind, op_id, |_| false) {
                Begun::New(reporter) => reporter,
                Begun::Joined(handle) | Begun::Conflicting(handle) => {
                    return OperationStarted { operation: handle.snapshot(), joined: true };
                }
            }
        };
        let operation = reporter.handle().snapshot();
        let upload = self.uploads.expect_upload(reporter.id(), reporter.cancellation());
        let (uploads, root) = (self.uploads.clone(), self.root.clone());
        self.tasks.spawn(async move {
            let reader = match uploads.begun(upload).await {
                Ok(reader) => reader,
                Err(error) => return reporter.finish(Err(error)),
            };
            let cancel = CancelFlag::default();
            let (token, flag) = (reporter.cancellation(), cancel.clone());
            let watch = tokio::spawn(async move {
                token.cancelled().await;
                flag.cancel();
            });
            // A builder that panics drops the reporter, which fails the operation.
            let _ = tokio::task::spawn_blocking(move || {
                run(reporter, reader, &cancel, &root, build);
            })
            .await;
            watch.abort();
        });
        OperationStarted { operation, joined: false }
    }
}

/// A client's own file, unlike what anyone can pull, is not another's of the same name: of two at
/// once the first to be whole gets the image's name, and the second is told that it is taken.
fn is_a_file(kind: &OperationKind) -> bool {
    match kind {
        OperationKind::ImageImport { source, .. } | OperationKind::KernelImport { source, .. } => {
            source.starts_with(FILE_SOURCE)
        }
        _ => false,
    }
}

fn run(
    reporter: Reporter,
    mut reader: UploadReader,
    cancel: &CancelFlag,
    root: &std::path::Path,
    build: impl FnOnce(&mut UploadReader, &dyn Progress, &CancelFlag) -> Result<(), ApiError>,
) {
    let op_id = reporter.id();
    let progress = Reports { reporter: &reporter, last: Mutex::new(None) };
    let result = build(&mut reader, &progress, cancel).map_err(|error| {
        // Whatever the builder makes of an upload that broke off, that is the cause.
        if reader.is_broken() || cancel.check().is_err() {
            cancelled()
        } else {
            failure::with_free_space(error, root, reader.taken())
        }
    });
    match &result {
        Ok(()) => tracing::info!(op_id = op_id.as_str(), bytes = reader.taken(), "imported"),
        Err(error) if error.code == ErrorCode::Cancelled => {
            tracing::info!(op_id = op_id.as_str(), "import cancelled");
        }
        Err(error) => {
            tracing::warn!(
                op_id = op_id.as_str(),
                code = error.code.as_str(),
                error = error.message,
                causes = error.causes.join("; "),
                "import failed"
            );
        }
    }
    reporter.finish(result);
}

/// A builder's progress as the operation's, with bytes counted at a pace for people.
struct Reports<'a> {
    reporter: &'a Reporter,
    last: Mutex<Option<Instant>>,
}

impl Progress for Reports<'_> {
    fn stage(&self, name: &str) {
        self.reporter.stage(name);
    }

    fn bytes(&self, done: u64, total: Option<u64>) {
        let Ok(mut last) = self.last.lock() else { return };
        if last.is_none_or(|last| last.elapsed() >= REPORT_EVERY) {
            *last = Some(Instant::now());
            self.reporter.bytes(done, total);
        }
    }
}
