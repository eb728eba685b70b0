//! The registry of long work: what clients poll, watch and cancel.
//!
//! A [`Reporter`] belongs to the work and writes, an [`OperationHandle`] belongs to whoever looks.
//! Work that ends without a word (its task died) is failed by the reporter's drop, so that nobody
//! waits for ever. Ended operations are kept for [`KEEP_FOR`], at most [`KEEP_MOST`] of them.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use banger_daemon_api::error::{ApiError, ErrorCode};
use banger_daemon_api::operation::{Operation, OperationKind, OperationPart, OperationState};
use banger_types::OperationId;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// How long an ended operation can still be asked about.
pub const KEEP_FOR: Duration = Duration::from_secs(600);
/// Most ended operations that are kept.
pub const KEEP_MOST: usize = 100;

#[derive(Clone, Debug)]
struct Progress {
    operation: Operation,
    began: Instant,
    ended: Option<Instant>,
}

impl Progress {
    fn snapshot(&self) -> Operation {
        let elapsed = self.ended.unwrap_or_else(Instant::now).duration_since(self.began);
        let mut operation = self.operation.clone();
        operation.elapsed_ms = u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX);
        operation
    }
}

/// One operation, for those who look at it.
#[derive(Clone, Debug)]
pub struct OperationHandle {
    progress: watch::Receiver<Progress>,
    cancel: CancellationToken,
}

impl OperationHandle {
    /// Returns the operation's id.
    #[must_use]
    pub fn id(&self) -> OperationId {
        self.progress.borrow().operation.id.clone()
    }

    /// Returns how far it is.
    #[must_use]
    pub fn snapshot(&self) -> Operation {
        self.progress.borrow().snapshot()
    }

    /// Waits until the operation's generation exceeds `generation`, or it has ended, and returns
    /// its snapshot. Cancel safe.
    pub async fn changed_after(&self, generation: u64) -> Operation {
        let mut progress = self.progress.clone();
        let past = |progress: &Progress| {
            progress.operation.generation > generation || progress.operation.state.is_done()
        };
        match progress.wait_for(past).await {
            Ok(progress) => progress.snapshot(),
            // The reporter is gone; its drop has written the end.
            Err(_) => self.snapshot(),
        }
    }

    /// Waits until the operation has left this stage, or has ended. Cancel safe.
    pub async fn left(&self, stage: &str) {
        let mut progress = self.progress.clone();
        let past = |progress: &Progress| {
            progress.operation.stage != stage || progress.operation.state.is_done()
        };
        // Without a reporter it has ended.
        let _ = progress.wait_for(past).await;
    }

    /// Waits until the operation has ended and returns its final snapshot. Cancel safe.
    pub async fn ended(&self) -> Operation {
        self.changed_after(u64::MAX).await
    }

    /// Asks the operation to end; what can be undone will be.
    pub fn cancel(&self) {
        self.cancel.cancel();
    }

    /// Returns whether the operation was asked to end.
    #[must_use]
    pub fn is_cancelled(&self) -> bool {
        self.cancel.is_cancelled()
    }
}

/// One operation, for the work that it stands for.
#[derive(Debug)]
pub struct Reporter {
    progress: watch::Sender<Progress>,
    cancel: CancellationToken,
}

impl Reporter {
    /// Returns the operation's id.
    #[must_use]
    pub fn id(&self) -> OperationId {
        self.progress.borrow().operation.id.clone()
    }

    /// Returns the token that is cancelled when a client asks the operation to end.
    #[must_use]
    pub fn cancellation(&self) -> CancellationToken {
        self.cancel.clone()
    }

    /// Returns a handle for those who look.
    #[must_use]
    pub fn handle(&self) -> OperationHandle {
        OperationHandle { progress: self.progress.subscribe(), cancel: self.cancel.clone() }
    }

    /// Says that a new stage is under way, in words. The first stage makes the operation running.
    pub fn stage(&self, stage: &str) {
        self.change(|operation| {
            operation.state = OperationState::Running;
            stage.clone_into(&mut operation.stage);
            operation.bytes_done = None;
            operation.bytes_total = None;
            operation.parts.clear();
        });
    }

    /// Counts the bytes of this stage. Callers bound how often they call: each call wakes watchers.
    pub fn bytes(&self, done: u64, total: Option<u64>) {
        self.change(|operation| {
            operation.state = OperationState::Running;
            operation.bytes_done = Some(done);
            operation.bytes_total = total;
        });
    }

    /// Counts the bytes of this stage part by part. Callers bound how often they call, too.
    pub fn parts(&self, parts: Vec<OperationPart>) {
        self.change(|operation| {
            operation.state = OperationState::Running;
            let sum = |bytes: fn(&OperationPart) -> u64| {
                parts.iter().map(bytes).fold(0, u64::saturating_add)
            };
            operation.bytes_done = Some(sum(|part| part.bytes_done));
            operation.bytes_total = Some(sum(|part| part.bytes_total));
            operation.parts = parts;
        });
    }

    /// Ends the operation.
    pub fn finish(self, result: Result<(), ApiError>) {
        self.end(result);
    }

    fn end(&self, result: Result<(), ApiError>) {
        self.progress.send_if_modified(|progress| {
            if progress.operation.state.is_done() {
                return false;
            }
            progress.ended = Some(Instant::now());
            progress.operation.generation += 1;
            match result {
                Ok(()) => {
                    progress.operation.state = OperationState::Succeeded;
                    "done".clone_into(&mut progress.operation.stage);
                }
                Err(mut error) => {
                    progress.operation.state = if error.code == ErrorCode::Cancelled {
                        OperationState::Cancelled
                    } else {
                        OperationState::Failed
                    };
                    error.op_id.get_or_insert_with(|| progress.operation.id.clone());
                    progress.operation.error = Some(error);
                }
            }
            true
        });
    }

    fn change(&self, change: impl FnOnce(&mut Operation)) {
        self.progress.send_if_modified(|progress| {
            if progress.operation.state.is_done() {
                return false;
            }
            let before = progress.operation.clone();
            change(&mut progress.operation);
            if progress.operation == before {
                return false;
            }
            progress.operation.generation += 1;
            true
        });
    }
}

impl Drop for Reporter {
    fn drop(&mut self) {
        self.end(Err(ApiError::new(ErrorCode::Internal, "the work ended without a result")));
    }
}

/// What [`Operations::begin_or_join`] found.
#[derive(Debug)]
pub enum Begun {
    /// A new operation: the caller does the work.
    New(Reporter),
    /// The same work is under way: the caller only watches.
    Joined(OperationHandle),
    /// Work is under way that ours cannot be done beside.
    Conflicting(OperationHandle),
}

/// All operations of the daemon.
#[derive(Clone, Debug, Default)]
pub struct Operations {
    all: Arc<Mutex<HashMap<OperationId, OperationHandle>>>,
}

impl Operations {
    fn lock(&self) -> MutexGuard<'_, HashMap<OperationId, OperationHandle>> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins an operation. `id` is the request's own; where an operation has it already (a client
    /// may use one id for several requests), a new one is made.
    #[must_use]
    pub fn begin(&self, kind: OperationKind, id: OperationId) -> Reporter {
        let mut all = self.lock();
        prune(&mut all);
        insert(&mut all, kind, id)
    }

    /// Begins an operation, unless one of exactly this kind (the same image, say), or one that
    /// `conflicts`, is under way.
    #[must_use]
    pub fn begin_or_join(
        &self,
        kind: OperationKind,
        id: OperationId,
        conflicts: impl Fn(&OperationKind) -> bool,
    ) -> Begun {
        let mut all = self.lock();
        prune(&mut all);
        let find = |is_it: &dyn Fn(&OperationKind) -> bool| {
            let found = all.values().find(|handle| {
                let progress = handle.progress.borrow();
                !progress.operation.state.is_done() && is_it(&progress.operation.kind)
            });
            found.cloned()
        };
        if let Some(handle) = find(&|other| *other == kind) {
            return Begun::Joined(handle);
        }
        match find(&conflicts) {
            Some(handle) => Begun::Conflicting(handle),
            None => Begun::New(insert(&mut all, kind, id)),
        }
    }

    /// Finds an operation.
    #[must_use]
    pub fn get(&self, id: &OperationId) -> Option<OperationHandle> {
        self.lock().get(id).cloned()
    }

    /// Returns snapshots of all operations, the longest-running first.
    #[must_use]
    pub fn list(&self) -> Vec<Operation> {
        let mut all = self.lock();
        prune(&mut all);
        let mut progress: Vec<Progress> =
            all.values().map(|handle| handle.progress.borrow().clone()).collect();
        drop(all);
        progress.sort_by_key(|progress| progress.began);
        progress.iter().map(Progress::snapshot).collect()
    }

    /// Returns the operations that have not ended.
    #[must_use]
    pub fn active(&self) -> Vec<OperationHandle> {
        self.lock()
            .values()
            .filter(|handle| !handle.progress.borrow().operation.state.is_done())
            .cloned()
            .collect()
    }
}

fn insert(
    all: &mut HashMap<OperationId, OperationHandle>,
    kind: OperationKind,
    mut id: OperationId,
) -> Reporter {
    while all.contains_key(&id) {
        id = OperationId::random();
    }
    let operation = Operation {
        id: id.clone(),
        kind,
        state: OperationState::Pending,
        generation: 1,
        stage: "waiting".to_owned(),
        bytes_done: None,
        bytes_total: None,
        parts: Vec::new(),
        elapsed_ms: 0,
        error: None,
    };
    let (progress, _) = watch::channel(Progress { operation, began: Instant::now(), ended: None });
    let reporter = Reporter { progress, cancel: CancellationToken::new() };
    all.insert(id, reporter.handle());
    reporter
}

fn prune(all: &mut HashMap<OperationId, OperationHandle>) {
    let mut ended: Vec<(Instant, OperationId)> = all
        .values()
        .filter_map(|handle| {
            let progress = handle.progress.borrow();
            progress.ended.map(|ended| (ended, progress.operation.id.clone()))
        })
        .collect();
    ended.sort_unstable_by_key(|(at, _)| std::cmp::Reverse(*at));
    for (index, (at, id)) in ended.iter().enumerate() {
        if index >= KEEP_MOST || at.elapsed() > KEEP_FOR {
            all.remove(id);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kind(name: &str) -> OperationKind {
        OperationKind::ImageImport { image: name.parse().unwrap(), source: "x".to_owned() }
    }

    #[tokio::test]
    async fn work_that_dies_is_told_to_those_who_wait() {
        let operations = Operations::default();
        let reporter = operations.begin(kind("a"), OperationId::random());
        let handle = reporter.handle();
        let waiter = tokio::spawn(async move { handle.ended().await });
        drop(reporter);
        let ended = waiter.await.unwrap();
        assert_eq!(ended.state, OperationState::Failed);
        assert_eq!(ended.error.unwrap().code, ErrorCode::Internal);
    }

    #[tokio::test]
    async fn watchers_see_each_stage_and_the_end() {
        let operations = Operations::default();
        let reporter = operations.begin(kind("a"), OperationId::random());
        let handle = operations.get(&reporter.id()).unwrap();
        assert_eq!(handle.snapshot().state, OperationState::Pending);
        reporter.stage("unpacking");
        reporter.bytes(5, Some(10));
        reporter.bytes(5, Some(10));
        let now = handle.changed_after(1).await;
        assert_eq!((now.generation, now.stage.as_str(), now.bytes_done), (3, "unpacking", Some(5)));
        reporter.finish(Ok(()));
        assert_eq!(handle.changed_after(now.generation).await.state, OperationState::Succeeded);
        assert!(operations.active().is_empty());
    }

    #[test]
    fn an_id_is_never_shared_and_cancelling_is_a_state_of_its_own() {
        let operations = Operations::default();
        let id = OperationId::random();
        let first = operations.begin(kind("a"), id.clone());
        let second = operations.begin(kind("b"), id.clone());
        assert_ne!(first.id(), second.id());
        operations.get(&id).unwrap().cancel();
        assert!(first.cancellation().is_cancelled() && !second.cancellation().is_cancelled());
        let handle = first.handle();
        first.finish(Err(ApiError::new(ErrorCode::Cancelled, "cancelled")));
        assert_eq!(handle.snapshot().state, OperationState::Cancelled);
        assert_eq!(handle.snapshot().error.unwrap().op_id, Some(id));
    }

    #[test]
    fn the_same_import_is_joined_and_begun_anew_after_its_end() {
        let operations = Operations::default();
        let begin = |name: &str, conflicts: bool| {
            operations.begin_or_join(kind(name), OperationId::random(), |_| conflicts)
        };
        let Begun::New(reporter) = begin("a", true) else {
            panic!("nothing is under way");
        };
        let is_first = |handle: &OperationHandle| handle.id() == reporter.id();
        assert!(matches!(begin("a", true), Begun::Joined(handle) if is_first(&handle)));
        assert!(matches!(begin("b", true), Begun::Conflicting(handle) if is_first(&handle)));
        assert!(matches!(begin("b", false), Begun::New(_)));
        reporter.finish(Ok(()));
        assert!(matches!(begin("a", true), Begun::New(_)));
    }

    #[test]
    fn ended_operations_do_not_pile_up() {
        let operations = Operations::default();
        for _ in 0..300 {
            operations.begin(kind("a"), OperationId::random()).finish(Ok(()));
        }
        assert_eq!(operations.list().len(), KEEP_MOST);
    }
}
