//! Begins an import in the daemon, streams its bytes and follows it to its end.

use std::io::{self, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use banger_daemon_api::error::ApiError;
use banger_daemon_api::operation::{Operation, OperationStarted};
use banger_daemon_api::routes;
use bytes::Bytes;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use rustix::event::Timespec;
use serde::Serialize;
use tokio::sync::{mpsc, oneshot};

use super::source::{Source, Stages};
use crate::client::{Client, ClientError, RequestBody};
use crate::error::CliError;
use crate::interrupt::Interrupts;
use crate::operation::{self, Followed};
use crate::progress::Progress;
use crate::ui::Ui;

const CHUNK: usize = 256 << 10;
/// Chunks between the reading thread and the connection.
const QUEUE: usize = 4;
/// How often the failed work of another command is begun again by us.
const TAKE_OVERS: usize = 3;
/// How long a source may take to end after it was told to.
const STOP_DEADLINE: Duration = Duration::from_secs(30);
/// How long the reading thread waits before it looks whether it is still wanted.
const PATIENCE: Timespec = Timespec { tv_sec: 0, tv_nsec: 100_000_000 };

/// An import into the daemon.
pub struct Transfer<'a> {
    pub ui: &'a Ui,
    pub client: &'a Client,
    /// For people: `image debian-bookworm`.
    pub subject: String,
    /// Where imports of this kind begin.
    pub path: &'static str,
}

/// How the reading thread ended.
enum Reading {
    /// Everything was read and is whole.
    Complete,
    /// The source failed.
    Failed(CliError),
    /// Nobody wanted more.
    Unwanted,
}

impl Transfer<'_> {
    /// Imports from a source that can be opened again, taking over from another command where that
    /// gives up.
    pub async fn run(
        &self,
        interrupts: &mut Interrupts,
        begin: &impl Serialize,
        open: impl Fn(Stages) -> Result<Source, CliError> + Clone + Send + 'static,
    ) -> Result<(), CliError> {
        for _ in 0..TAKE_OVERS {
            let open = open.clone();
            match self.attempt(interrupts, begin, move |stages| open(stages)).await? {
                Attempt::Ended => return Ok(()),
                Attempt::OtherStopped => self.ui.status(format_args!(
                    "{}: the other banger was stopped; taking over",
                    self.subject
                )),
                Attempt::OtherFailed(error) => self.ui.status(format_args!(
                    "{}: the other banger failed ({}); trying ourselves",
                    self.subject, error.message
                )),
            }
        }
        Err(self.others_failed())
    }

    /// Imports from a source that can be read only once.
    pub async fn run_once(
        &self,
        interrupts: &mut Interrupts,
        begin: &impl Serialize,
        open: impl FnOnce(Stages) -> Result<Source, CliError> + Send + 'static,
    ) -> Result<(), CliError> {
        match self.attempt(interrupts, begin, open).await? {
            Attempt::Ended => Ok(()),
            Attempt::OtherStopped => Err(self.others_failed()),
            Attempt::OtherFailed(error) => Err(error.into()),
        }
    }

    fn others_failed(&self) -> CliError {
        CliError::new(format!("{}: another banger works on it, and fails", self.subject))
            .hint("run the command again when that has ended")
    }

    async fn attempt(
        &self,
        interrupts: &mut Interrupts,
        begin: &impl Serialize,
        open: impl FnOnce(Stages) -> Result<Source, CliError> + Send + 'static,
    ) -> Result<Attempt, CliError> {
        let started: OperationStarted =
            self.client.post(self.path, begin).await.map_err(|error| self.client.explain(error))?;
        let progress = Arc::new(Progress::new(self.ui, self.subject.clone()));
        if started.joined {
            let show = |snapshot: &Operation| progress.of_another(snapshot);
            let end = operation::follow(self.client, started, &show, interrupts).await?;
            return match end {
                Followed::Cancelled => Ok(Attempt::OtherStopped),
                Followed::Failed(error) => Ok(Attempt::OtherFailed(error)),
                end => end.into_result(&self.subject).map(|()| Attempt::Ended),
            };
        }
        self.upload(interrupts, started, progress, open).await.map(|()| Attempt::Ended)
    }

    async fn upload(
        &self,
        interrupts: &mut Interrupts,
        started: OperationStarted,
        progress: Arc<Progress>,
        open: impl FnOnce(Stages) -> Result<Source, CliError> + Send + 'static,
    ) -> Result<(), CliError> {
        let id = started.operation.id.clone();
        let reader = Reader::start(Arc::clone(&progress), open);
        let reading = Arc::clone(&reader.reading);
        // The source's own words are more telling than the daemon's while it runs.
        let show = |snapshot: &Operation| {
            if !reading.load(Ordering::Relaxed) {
                progress.operation(snapshot);
            } else if let Some(done) = snapshot.bytes_done {
                progress.bytes(done, snapshot.bytes_total);
            }
        };
        let path = routes::operation(&id, "/upload");
        let put = self.client.put(&path, reader.body);
        let mut sent: Option<Result<(), ClientError>> = None;
        let end = {
            let follow = operation::follow(self.client, started, &show, interrupts);
            tokio::pin!(put, follow);
            loop {
                tokio::select! {
                    end = &mut follow => break end,
                    result = &mut put, if sent.is_none() => {
                        if result.is_err() {
                            // It sees the broken upload too; this makes sure of it.
                            let _ = self.client.delete::<Operation>(&routes::operation(&id, "")).await;
                        }
                        sent = Some(result);
                    }
                }
            }
        };
        reader.stop.store(true, Ordering::Relaxed);
        let read = tokio::time::timeout(STOP_DEADLINE, reader.end).await;
        match (end?, read) {
            (end @ (Followed::Succeeded | Followed::Interrupted { .. }), _) => {
                end.into_result(&self.subject)
            }
            // What the source said is the cause of what the daemon saw.
            (_, Ok(Ok(Reading::Failed(error)))) => Err(error),
            (Followed::Cancelled, _) => match sent {
                Some(Err(error)) => Err(self.client.explain(error)),
                _ => Followed::Cancelled.into_result(&self.subject),
            },
            (end, _) => end.into_result(&self.subject),
        }
    }
}

/// How one attempt ended.
enum Attempt {
    Ended,
    /// The command that had begun the work was interrupted.
    OtherStopped,
    /// The work failed for the command that had begun it.
    OtherFailed(ApiError),
}

/// A source that a thread reads.
struct Reader {
    body: RequestBody,
    end: oneshot::Receiver<Reading>,
    stop: Arc<AtomicBool>,
    reading: Arc<AtomicBool>,
}

impl Reader {
    fn start(
        progress: Arc<Progress>,
        open: impl FnOnce(Stages) -> Result<Source, CliError> + Send + 'static,
    ) -> Self {
        let (queue, mut chunks) = mpsc::channel::<io::Result<Bytes>>(QUEUE);
        let (report, end) = oneshot::channel();
        let stop = Arc::new(AtomicBool::new(false));
        let reading = Arc::new(AtomicBool::new(true));
        let (stopped, flag) = (Arc::clone(&stop), Arc::clone(&reading));
        thread::spawn(move || {
            let stages: Stages = Arc::new(move |stage: &str| progress.stage(stage));
            let end = read_all(&queue, &stopped, || open(stages));
            flag.store(false, Ordering::Relaxed);
            if matches!(end, Reading::Failed(_)) {
                // Breaks the upload off, so that a part is not taken for the whole.
                let broken = io::Error::other("the source failed");
                let _ = queue.blocking_send(Err(broken));
            }
            // Nobody waits any more when banger ends.
            let _ = report.send(end);
        });
        let stream = futures::stream::poll_fn(move |context| chunks.poll_recv(context));
        let frames = futures::StreamExt::map(stream, |chunk| chunk.map(Frame::data));
        Self { body: StreamBody::new(frames).boxed_unsync(), end, stop, reading }
    }
}

fn read_all(
    queue: &mpsc::Sender<io::Result<Bytes>>,
    stopped: &AtomicBool,
    open: impl FnOnce() -> Result<Source, CliError>,
) -> Reading {
    let mut source = match open() {
        Ok(source) => source,
        Err(error) => return Reading::Failed(error),
    };
    let mut buffer = vec![0; CHUNK];
    loop {
        if stopped.load(Ordering::Relaxed) {
            return Reading::Unwanted;
        }
        if !source.is_ready(&PATIENCE) {
            continue;
        }
        match source.read(&mut buffer) {
            Ok(0) => break,
            Ok(count) => {
                let chunk = Bytes::copy_from_slice(&buffer[..count]);
                if queue.blocking_send(Ok(chunk)).is_err() {
                    return Reading::Unwanted;
                }
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => {
                let error = CliError::new("cannot read what is to be imported").because(&error);
                return match source.finish() {
                    Ok(()) => Reading::Failed(error),
                    Err(reason) => Reading::Failed(reason),
                };
            }
        }
    }
    match source.finish() {
        Ok(()) => Reading::Complete,
        Err(error) => Reading::Failed(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::artifacts::source::NamedFile;

    fn reader_of(path: &std::path::Path) -> Reader {
        let tar = NamedFile::open(path).unwrap();
        let progress = Arc::new(Progress::hidden());
        Reader::start(progress, move |_| Ok(Source::file(tar)))
    }

    #[tokio::test]
    async fn the_body_is_the_file() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let content = vec![7; CHUNK * 3 + 1];
        std::fs::write(file.path(), &content).unwrap();
        let reader = reader_of(file.path());
        assert_eq!(reader.body.collect().await.unwrap().to_bytes(), content);
        assert!(matches!(reader.end.await.unwrap(), Reading::Complete));
        assert!(!reader.reading.load(Ordering::Relaxed));
    }

    #[tokio::test]
    async fn a_failed_source_breaks_the_upload_off() {
        let progress = Arc::new(Progress::hidden());
        let reader = Reader::start(progress, |_| Err(CliError::new("no mirror")));
        assert!(reader.body.collect().await.is_err());
        assert!(
            matches!(reader.end.await.unwrap(), Reading::Failed(error) if error.message == "no mirror")
        );
    }

    #[tokio::test]
    async fn an_upload_that_nobody_wants_ends_the_thread() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), vec![7; CHUNK * 100]).unwrap();
        let reader = reader_of(file.path());
        drop(reader.body);
        assert!(matches!(reader.end.await.unwrap(), Reading::Unwanted));
    }

    #[tokio::test]
    async fn a_reader_that_is_told_to_stop_stops() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), vec![7; CHUNK * 100]).unwrap();
        let reader = reader_of(file.path());
        reader.stop.store(true, Ordering::Relaxed);
        // Somebody still takes what it has read: a full queue would hold it.
        assert!(reader.body.collect().await.unwrap().to_bytes().len() < CHUNK * 100);
        assert!(matches!(reader.end.await.unwrap(), Reading::Unwanted));
    }
}
