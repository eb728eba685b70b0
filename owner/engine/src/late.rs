//! A VMM that runs and has not answered: it is its VM's all the same.
//!
//! After the daemon's start a VMM is known by its pid and start time before it has said a word. One that
//! is stopped, or that a loaded host keeps waiting, is held by these; it is asked until it answers or
//! ends, and from its answer on everything goes to the process that its driver has adopted. Whoever
//! has it need not notice.
//!
//! ```text
//! hold ──► ask ── answers in time ──────────────────────► the adopted process
//!           └──── does not ──► LateProcess ── answers ──► the same, behind it
//!                                    └─────── ends ─────► as any VMM's end
//! ```

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use banger_daemon_api::vm::NetLimits;
use banger_guest_client::{BoxedStream, ChannelError, GuestChannel};
use rustix::process::Signal;
use tokio::sync::watch;
use tokio::task::AbortHandle;
use tokio::time::timeout;

use crate::seams::{Vmm, VmmError, VmmIdentity, VmmProcess, VmmState};

/// How long the daemon's start waits for a VMM's answer, which usually takes less than 0.1 s.
const FIRST_ANSWER: Duration = Duration::from_secs(2);
/// How long a call into the guest waits for its VMM's answer.
const CALL_PATIENCE: Duration = Duration::from_secs(10);
/// Between two tries at a VMM whose sockets refuse: at first, and at most.
const AGAIN: Duration = Duration::from_secs(1);
const AGAIN_AT_MOST: Duration = Duration::from_secs(15);
/// What is said of it.
const UNANSWERED: &str = "its VMM runs and does not answer; its guest can be reached once it does, and \
    banger vm stop --force ends it";

/// The process that answers, once there is one. The sender goes when nobody asks any more.
type Answered = watch::Receiver<Option<Arc<dyn VmmProcess>>>;

/// What is known of a VMM after it was asked.
pub(crate) enum Taken {
    /// It has ended.
    Ended,
    /// It answers.
    Answering(Arc<dyn VmmProcess>),
    /// It runs.
    Silent(Arc<dyn VmmProcess>),
}

/// Takes hold of the VMM that `identity` names and asks it. `runtime_dir` and `console_log` are those of
/// its plan.
///
/// # Errors
/// Whether it runs cannot be told.
pub(crate) async fn take(
    vmm: Arc<dyn Vmm>,
    identity: &VmmIdentity,
    runtime_dir: PathBuf,
    console_log: PathBuf,
) -> Result<Taken, VmmError> {
    let Some(held) = vmm.hold(identity)? else { return Ok(Taken::Ended) };
    let (teller, mut answered) = watch::channel(None);
    let place = Place { identity: identity.clone(), runtime_dir, console_log };
    let asking = tokio::spawn(ask(vmm, place, Arc::clone(&held), teller)).abort_handle();
    let late = LateProcess { held, answered: answered.clone(), asking };
    let first = timeout(FIRST_ANSWER, answered.wait_for(Option::is_some)).await;
    match first.map(|known| known.map(|process| process.clone())) {
        Ok(Ok(Some(process))) => Ok(Taken::Answering(process)),
        // Nobody asks any more: it ended meanwhile.
        Ok(_) => Ok(Taken::Ended),
        Err(_) if late.held.state() != VmmState::Alive => Ok(Taken::Ended),
        Err(_) => Ok(Taken::Silent(Arc::new(late))),
    }
}

/// What it takes to ask a VMM.
struct Place {
    identity: VmmIdentity,
    runtime_dir: PathBuf,
    console_log: PathBuf,
}

/// Asks until there is an answer or the VMM has ended.
async fn ask(
    vmm: Arc<dyn Vmm>,
    place: Place,
    held: Arc<dyn VmmProcess>,
    teller: watch::Sender<Option<Arc<dyn VmmProcess>>>,
) {
    let pid = place.identity.pid;
    let mut pause = AGAIN;
    loop {
        match vmm.adopt(&place.identity, &place.runtime_dir, &place.console_log).await {
            Ok(Some(process)) => {
                teller.send_replace(Some(process));
                return;
            }
            Ok(None) => return,
            Err(error) => {
                let cause = std::error::Error::source(&error).map(ToString::to_string);
                tracing::info!(pid, %error, cause, "a VMM that runs does not answer");
            }
        }
        tokio::select! {
            () = tokio::time::sleep(pause) => pause = (pause * 2).min(AGAIN_AT_MOST),
            _ = held.wait() => return,
        }
    }
}

/// A VMM that did not answer in time, and may have since.
struct LateProcess {
    held: Arc<dyn VmmProcess>,
    answered: Answered,
    asking: AbortHandle,
}

impl Drop for LateProcess {
    fn drop(&mut self) {
        self.asking.abort();
    }
}

impl LateProcess {
    fn answering(&self) -> Option<Arc<dyn VmmProcess>> {
        self.answered.borrow().clone()
    }

    /// The best that there is of it now.
    fn now(&self) -> Arc<dyn VmmProcess> {
        self.answering().unwrap_or_else(|| Arc::clone(&self.held))
    }
}

#[async_trait]
impl VmmProcess for LateProcess {
    fn identity(&self) -> &VmmIdentity {
        self.held.identity()
    }

    async fn resume(&self) -> Result<(), VmmError> {
        self.now().resume().await
    }

    fn channel(&self) -> Arc<dyn GuestChannel> {
        let (held, answered) = (self.held.channel(), self.answered.clone());
        Arc::new(LateChannel { held, answered })
    }

    async fn console(&self) -> Result<BoxedStream, VmmError> {
        self.now().console().await
    }

    fn state(&self) -> VmmState {
        self.now().state()
    }

    fn stall(&self) -> Option<&'static str> {
        match self.answering() {
            Some(process) => process.stall(),
            None => Some(UNANSWERED),
        }
    }

    async fn limit_network(&self, limits: &NetLimits) -> Result<(), VmmError> {
        self.now().limit_network(limits).await
    }

    async fn wait(&self) -> VmmState {
        let end = self.held.wait().await;
        // One that answered has said more of its end.
        match self.answering() {
            Some(process) => process.wait().await,
            None => end,
        }
    }

    fn signal(&self, signal: Signal) -> Result<bool, VmmError> {
        self.now().signal(signal)
    }

    async fn kill(&self) -> Result<(), VmmError> {
        self.now().kill().await
    }
}

/// The way into the guest of a VMM that has yet to answer.
struct LateChannel {
    held: Arc<dyn GuestChannel>,
    answered: Answered,
}

impl std::fmt::Debug for LateChannel {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_tuple("LateChannel").field(&self.held).finish()
    }
}

impl LateChannel {
    /// Waits for the VMM's answer and returns the way into its guest.
    async fn answering(&self) -> Result<Arc<dyn GuestChannel>, ChannelError> {
        let mut answered = self.answered.clone();
        let known = answered.wait_for(Option::is_some).await.map(|process| process.clone());
        match known {
            Ok(Some(process)) => Ok(process.channel()),
            // Nobody asks any more.
            _ => Err(ChannelError::Closed),
        }
    }
}

#[async_trait]
impl GuestChannel for LateChannel {
    async fn open(&self) -> Result<BoxedStream, ChannelError> {
        match timeout(CALL_PATIENCE, self.answering()).await {
            Ok(channel) => channel?.open().await,
            Err(_) => Err(ChannelError::Timeout { seconds: CALL_PATIENCE.as_secs() }),
        }
    }

    async fn wait_ready(&self) -> Result<(), ChannelError> {
        self.answering().await?.wait_ready().await
    }

    async fn closed(&self) {
        self.held.closed().await;
    }
}
