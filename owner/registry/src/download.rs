//! The task that fetches one blob, going on where it was cut off.

use std::sync::Weak;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use banger_types::Digest;
use http_body_util::BodyExt;
use hyper::header::CONTENT_LENGTH;
use hyper::{Method, StatusCode};
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use crate::client::{Ask, Repository};
use crate::error::RegistryError;
use crate::headers::content_range;
use crate::settings::Deadlines;
use crate::store::{Blob, BlobStore, Phase, Turn};
use crate::writer::{self, Part, Sender, Verdict};

/// Chunks between the connection and the disk; a chunk is at most what one read of the socket gives.
const QUEUE: usize = 8;

/// One blob to fetch.
pub(crate) struct Job {
    pub(crate) store: BlobStore,
    pub(crate) blob: Weak<Blob>,
    pub(crate) digest: Digest,
    pub(crate) size: u64,
    pub(crate) repository: Repository,
    /// For people: `layer 3 of docker.io/library/alpine:3.20`.
    pub(crate) what: String,
    pub(crate) sender: Sender,
    /// The place that answered last.
    pub(crate) place: AtomicUsize,
}

impl Job {
    /// Fetches it and says how it ended to all who follow.
    pub(crate) async fn run(self, turn: Turn) {
        let end = self.fetch(turn).await;
        self.sender.send_modify(|follow| match end {
            Ok(()) => {
                follow.visible = self.size;
                follow.phase = Phase::Complete;
            }
            Err(error) => follow.phase = Phase::Failed(error),
        });
    }

    async fn fetch(&self, turn: Turn) -> Result<(), RegistryError> {
        let _slot = turn.await;
        loop {
            let (found, resumed) = match self.once().await {
                Ok(end) => end,
                // What an earlier run left is longer than what the server has: not of this blob.
                Err((RegistryError::Status { status: 416, .. }, true)) => (None, true),
                Err((error, _)) => return Err(self.without_trace(error)),
            };
            if found.as_ref() == Some(&self.digest) {
                return self.store.publish(&self.digest, &self.blob);
            }
            self.store.remove(&self.digest);
            if resumed {
                tracing::info!(blob = %self.digest, "what was left of it is damaged; fetching it anew");
            } else {
                // What has been read of it cannot be taken back: the next pull asks another place.
                self.pass_over();
                let found = found.unwrap_or_else(|| self.digest.clone());
                let (what, expected) = (self.what.clone(), self.digest.clone());
                return Err(RegistryError::Digest { what, expected, found });
            }
        }
    }

    /// Asks the next place from now on; returns whether there is one.
    fn pass_over(&self) -> bool {
        self.repository.pass_over(self.place.load(Ordering::Relaxed))
    }

    /// Keeps what may be gone on with, and removes what a liar sent and what fills the disk.
    fn without_trace(&self, error: RegistryError) -> RegistryError {
        let empty = self.sender.borrow().received == 0;
        if empty || error.is_full() || matches!(error, RegistryError::Protocol { .. }) {
            self.store.remove(&self.digest);
        }
        error
    }

    /// Returns the digest of what is on disk then, and whether an earlier run wrote some of it; the
    /// latter with a failure, too.
    async fn once(&self) -> Result<(Option<Digest>, bool), (RegistryError, bool)> {
        let (parts, queue) = mpsc::channel(QUEUE);
        let (opened, begin) = oneshot::channel();
        let (path, size, sender) =
            (self.store.partial(&self.digest), self.size, Sender::clone(&self.sender));
        let writer =
            tokio::task::spawn_blocking(move || writer::write(&path, size, &sender, queue, opened));
        let sent = match begin.await {
            Ok(at) => (self.receive(at, &parts).await, at > 0),
            // The writer's own error says why.
            Err(_) => (Ok(()), false),
        };
        if sent.0.is_ok() {
            // A writer that has failed takes none.
            let _ = parts.send(Part::End).await;
        }
        drop(parts);
        let written = writer.await.unwrap_or(Ok(Verdict::Abandoned));
        match (written, sent) {
            (Err(error), (_, resumed)) | (Ok(_), (Err(error), resumed)) => Err((error, resumed)),
            (Ok(Verdict::Whole { found, resumed }), _) => Ok((Some(found), resumed)),
            (Ok(Verdict::Abandoned), (_, resumed)) => Err((RegistryError::Cancelled, resumed)),
        }
    }

    /// Sends all from `at` on to the writer.
    async fn receive(&self, mut at: u64, parts: &mpsc::Sender<Part>) -> Result<(), RegistryError> {
        let deadlines = *self.repository.deadlines();
        let (mut attempt, mut pause) = (0, deadlines.pause);
        let mut pace = Pace::new(&deadlines, self.size);
        while at < self.size {
            let before = at;
            let error = match self.stream(&mut at, parts, &mut pace).await {
                Ok(Ok(())) => return Ok(()),
                Ok(Err(error)) => {
                    let is_mirror = self.pass_over();
                    if pace.is_too_slow() {
                        if !is_mirror {
                            return Err(self.too_slow());
                        }
                        pace = Pace::new(&deadlines, self.size);
                    }
                    error
                }
                Err(error @ RegistryError::Protocol { .. }) if self.pass_over() => error,
                Err(error) => return Err(error),
            };
            if at - before >= deadlines.least {
                (attempt, pause) = (0, deadlines.pause);
            }
            if attempt >= deadlines.retries {
                return Err(error);
            }
            attempt += 1;
            tracing::debug!(blob = %self.digest, at, error = %error, "cut off; going on");
            tokio::time::sleep(pause).await;
            pause = pause.saturating_mul(2).min(deadlines.longest_pause);
        }
        Ok(())
    }

    /// Receives one answer. The inner error is one of a body that was cut off, after which it may go on.
    async fn stream(
        &self,
        at: &mut u64,
        parts: &mpsc::Sender<Part>,
        pace: &mut Pace,
    ) -> Result<Result<(), RegistryError>, RegistryError> {
        let path = format!("blobs/{}", self.digest);
        let ask =
            Ask { method: &Method::GET, path: &path, accept: "*/*", from: *at, what: &self.what };
        let (place, response) = self.repository.ask_places(ask).await?;
        self.place.store(place, Ordering::Relaxed);
        // A server without ranges begins at the beginning.
        let mut skip = match response.status() {
            StatusCode::PARTIAL_CONTENT => {
                let begins = content_range(response.headers()).map(|(from, _)| from);
                if begins != Some(*at) {
                    return Err(self.liar(format!("another part than that from byte {at} on")));
                }
                0
            }
            _ => *at,
        };
        let rest = self.size - *at + skip;
        let length = response.headers().get(CONTENT_LENGTH);
        if let Some(length) = length.and_then(|value| value.to_str().ok()?.parse::<u64>().ok())
            && length != rest
        {
            return Err(self.liar(format!("{length} bytes, not the {rest} that it should have")));
        }
        let place = self.repository.name_of_registry();
        let cut_off = |source: Box<dyn std::error::Error + Send + Sync>| RegistryError::CutOff {
            place: place.clone(),
            source: source.into(),
        };
        let deadlines = *self.repository.deadlines();
        let slow =
            |what, after: Duration| RegistryError::Slow { place: place.clone(), what, after };
        let mut body = response.into_body();
        let (mut window, mut received) = (Instant::now(), 0);
        loop {
            let frame = match tokio::time::timeout(deadlines.stall, body.frame()).await {
                Err(_) => return Ok(Err(slow("sends nothing", deadlines.stall))),
                Ok(Some(Err(error))) => return Ok(Err(cut_off(error.into()))),
                Ok(Some(Ok(frame))) => frame,
                Ok(None) if *at == self.size => return Ok(Ok(())),
                Ok(None) => {
                    let text = format!("it ends after {at} of {} bytes", self.size);
                    return Ok(Err(cut_off(text.into())));
                }
            };
            let Ok(mut chunk) = frame.into_data() else { continue };
            // What is skipped arrives, too.
            received += chunk.len() as u64;
            pace.received += chunk.len() as u64;
            let skipped = usize::try_from(skip).unwrap_or(usize::MAX).min(chunk.len());
            skip -= skipped as u64;
            chunk = chunk.split_off(skipped);
            if chunk.len() as u64 > self.size - *at {
                return Err(self.liar(format!("more than its {} bytes", self.size)));
            }
            *at += chunk.len() as u64;
            if !chunk.is_empty() && parts.send(Part::Chunk(chunk)).await.is_err() {
                // The writer has failed, and says why.
                return Err(RegistryError::Cancelled);
            }
            if *at == self.size {
                return Ok(Ok(()));
            }
            if window.elapsed() >= deadlines.window {
                if received < deadlines.least {
                    return Ok(Err(slow("sends next to nothing", deadlines.window)));
                }
                (window, received) = (Instant::now(), 0);
            }
            if pace.is_too_slow() {
                return Ok(Err(self.too_slow()));
            }
        }
    }

    fn too_slow(&self) -> RegistryError {
        RegistryError::Slow {
            place: self.repository.name_of_registry(),
            what: "sends too little of a layer",
            after: self.repository.deadlines().floor_window,
        }
    }

    fn liar(&self, problem: String) -> RegistryError {
        let registry = self.repository.name_of_registry();
        RegistryError::Protocol { registry, what: self.what.clone(), problem }
    }
}

/// How fast a layer comes in all, over connections that break off and the pauses between them: who
/// goes on just before each other deadline would otherwise hold a pull for ever.
struct Pace {
    /// How long a window is.
    length: Duration,
    /// Bytes that a window must bring.
    floor: u64,
    began: Instant,
    /// Bytes since then.
    received: u64,
}

impl Pace {
    fn new(deadlines: &Deadlines, size: u64) -> Self {
        let (length, floor) = (deadlines.floor_window, deadlines.floor_of(size));
        Self { length, floor, began: Instant::now(), received: 0 }
    }

    /// Looks at a window that is over, and begins another if it brought enough.
    fn is_too_slow(&mut self) -> bool {
        if self.began.elapsed() < self.length {
            return false;
        }
        if self.received < self.floor {
            return true;
        }
        (self.began, self.received) = (Instant::now(), 0);
        false
    }
}
