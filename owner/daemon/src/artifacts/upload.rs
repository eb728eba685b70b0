//! Uploads: an uploaded byte stream, fed to a builder of `banger-image` on a blocking thread.
//!
//! ```text
//! POST /v1/images --> Operation (pending) + Uploader, kept here for PUT .../upload
//! PUT             --> pump: HTTP body --(bounded channel)--> UploadReader: Read --> builder
//! ```
//! The channel holds a few chunks, so a builder that is slower than the network stops the socket,
//! not the memory. The end of the body is said, not implied: a lost connection, a cancelled
//! operation and a daemon that ends all drop the sender, and the reader fails instead of taking
//! what came so far for the whole.

use std::collections::HashMap;
use std::io::{self, Read};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::body::Body;
use banger_daemon_api::error::{ApiError, ErrorCode};
use banger_types::OperationId;
use bytes::{Buf, Bytes};
use http_body_util::BodyExt;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

/// Chunks between the socket and the builder; one is at most hyper's buffer, 256 KiB.
const CHUNKS: usize = 8;

/// How long a pending import waits for its upload to begin.
const UPLOAD_DEADLINE: Duration = Duration::from_secs(60);

/// The uploads that have not begun.
#[derive(Clone, Debug, Default)]
pub struct Uploads {
    waiting: Arc<Mutex<HashMap<OperationId, Uploader>>>,
}

/// The socket's end of an upload.
#[derive(Debug)]
pub struct Uploader {
    begun: Option<oneshot::Sender<()>>,
    cancel: CancellationToken,
    chunks: mpsc::Sender<Part>,
}

/// The builder's end of an upload.
#[derive(Debug)]
pub struct Upload {
    id: OperationId,
    cancel: CancellationToken,
    begun: oneshot::Receiver<()>,
    reader: UploadReader,
}

#[derive(Debug)]
enum Part {
    Chunk(Bytes),
    End,
}

impl Uploads {
    /// Expects an upload for operation `id`; `cancel` calls it off.
    pub fn expect_upload(&self, id: OperationId, cancel: CancellationToken) -> Upload {
        let (begun_sender, begun) = oneshot::channel();
        let (chunks, parts) = mpsc::channel(CHUNKS);
        let uploader = Uploader { begun: Some(begun_sender), cancel: cancel.clone(), chunks };
        self.lock().insert(id.clone(), uploader);
        let reader =
            UploadReader { parts, current: Bytes::new(), ended: false, broken: false, taken: 0 };
        Upload { id, cancel, begun, reader }
    }

    /// Takes the uploader of operation `id`; each operation has one, once.
    pub fn take_uploader(&self, id: &OperationId) -> Option<Uploader> {
        self.lock().remove(id)
    }

    /// Waits until the upload has begun and returns its reader.
    pub async fn begun(&self, upload: Upload) -> Result<UploadReader, ApiError> {
        let begun = tokio::select! {
            begun = tokio::time::timeout(UPLOAD_DEADLINE, upload.begun) => Some(begun),
            () = upload.cancel.cancelled() => None,
        };
        self.lock().remove(&upload.id);
        match begun {
            Some(Ok(Ok(()))) => Ok(upload.reader),
            None | Some(Ok(Err(_))) => Err(cancelled()),
            Some(Err(_)) => Err(ApiError::new(
                ErrorCode::Timeout,
                format!("no upload began within {} s", UPLOAD_DEADLINE.as_secs()),
            )),
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<OperationId, Uploader>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The error of an import that was called off.
pub fn cancelled() -> ApiError {
    ApiError::new(ErrorCode::Cancelled, "the import was cancelled")
}

impl Uploader {
    /// Feeds `body` to the builder until its end, or until the operation is called off.
    pub async fn pump(&mut self, body: Body) -> Result<(), ApiError> {
        let cancel = self.cancel.clone();
        tokio::select! {
            // What has arrived whole counts, whatever happens at the same moment.
            biased;
            taken = self.pump_all(body) => taken,
            () = cancel.cancelled() => Err(cancelled()),
        }
    }

    async fn pump_all(&mut self, mut body: Body) -> Result<(), ApiError> {
        if let Some(begun) = self.begun.take() {
            // The importer has ended: the first send below finds out too.
            let _ = begun.send(());
        }
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|error| {
                ApiError::new(ErrorCode::BadRequest, format!("the upload broke off: {error}"))
            })?;
            let Ok(mut chunk) = frame.into_data() else { continue };
            while !chunk.is_empty() {
                let part = chunk.split_to(chunk.len().min(256 << 10));
                self.send(Part::Chunk(part)).await?;
            }
        }
        self.send(Part::End).await
    }

    async fn send(&self, part: Part) -> Result<(), ApiError> {
        if self.chunks.send(part).await.is_ok() {
            return Ok(());
        }
        // The builder wants no more; the operation's own error says why and wins over this one.
        std::future::pending().await
    }
}

/// The uploaded bytes, for a builder on a blocking thread.
#[derive(Debug)]
pub struct UploadReader {
    parts: mpsc::Receiver<Part>,
    current: Bytes,
    ended: bool,
    broken: bool,
    taken: u64,
}

impl Read for UploadReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        while self.current.is_empty() {
            if self.ended {
                return Ok(0);
            }
            match self.parts.blocking_recv() {
                Some(Part::Chunk(chunk)) => self.current = chunk,
                Some(Part::End) => self.ended = true,
                None => {
                    self.broken = true;
                    return Err(io::Error::new(
                        io::ErrorKind::ConnectionAborted,
                        "the upload was broken off",
                    ));
                }
            }
        }
        let count = buffer.len().min(self.current.len());
        self.current.copy_to_slice(&mut buffer[..count]);
        self.taken = self.taken.saturating_add(count as u64);
        Ok(count)
    }
}

impl UploadReader {
    /// Returns whether the body ended before its end, seen by the builder.
    pub const fn is_broken(&self) -> bool {
        self.broken
    }

    /// Returns how many bytes the builder has taken.
    pub const fn taken(&self) -> u64 {
        self.taken
    }
}
