//! A VMM that is held by its pidfd alone: what can be done with one that does not answer.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use async_trait::async_trait;
use banger_engine::seams::{NetLimits, VmmError, VmmIdentity, VmmKind, VmmProcess, VmmState};
use banger_guest_client::{BoxedStream, ChannelError, GuestChannel};
use rustix::process::Signal;

use crate::held::{self, HeldProcess};

/// A VMM that runs, or has ended, and with which nobody talks.
struct SilentProcess {
    identity: VmmIdentity,
    held: Arc<HeldProcess>,
    /// We killed it, so that its end is no surprise.
    killed: AtomicBool,
}

/// Its guest, which cannot be reached.
#[derive(Debug)]
struct NoChannel(Arc<HeldProcess>);

/// Takes hold of the VMM that `identity` names; `None` where it has ended.
pub(crate) fn hold(
    identity: &VmmIdentity,
    kind: VmmKind,
) -> Result<Option<Arc<dyn VmmProcess>>, VmmError> {
    let held = held::hold_named(identity, kind)?;
    Ok(held.map(|held| {
        let killed = AtomicBool::new(false);
        let process = SilentProcess { identity: identity.clone(), held: Arc::new(held), killed };
        Arc::new(process) as Arc<dyn VmmProcess>
    }))
}

impl SilentProcess {
    fn name(&self) -> &'static str {
        held::name(self.identity.kind)
    }

    fn unanswered(&self) -> VmmError {
        VmmError::Unavailable {
            what: format!("{}, process {},", self.name(), self.identity.pid),
            why: "it runs and does not answer".to_owned(),
            hint: "try again once it does, or end it: banger vm stop --force".to_owned(),
        }
    }

    fn end(&self) -> VmmState {
        let is_ours = self.killed.load(Ordering::Acquire);
        let reason = (!is_ours).then(|| format!("{} ended without having answered", self.name()));
        VmmState::Dead { reason }
    }
}

#[async_trait]
impl VmmProcess for SilentProcess {
    fn identity(&self) -> &VmmIdentity {
        &self.identity
    }

    async fn resume(&self) -> Result<(), VmmError> {
        Err(self.unanswered())
    }

    fn channel(&self) -> Arc<dyn GuestChannel> {
        Arc::new(NoChannel(Arc::clone(&self.held)))
    }

    async fn console(&self) -> Result<BoxedStream, VmmError> {
        Err(self.unanswered())
    }

    fn state(&self) -> VmmState {
        if self.held.has_ended() { self.end() } else { VmmState::Alive }
    }

    async fn limit_network(&self, _: &NetLimits) -> Result<(), VmmError> {
        Err(self.unanswered())
    }

    async fn wait(&self) -> VmmState {
        self.held.ended().await;
        self.end()
    }

    fn signal(&self, signal: Signal) -> Result<bool, VmmError> {
        self.held.signal(signal).map_err(|source| VmmError::Io {
            act: format!("sending a signal to {}, process {}", self.name(), self.identity.pid),
            source,
        })
    }

    async fn kill(&self) -> Result<(), VmmError> {
        if !self.held.has_ended() {
            self.killed.store(true, Ordering::Release);
        }
        held::kill(&self.held, self.identity.pid, self.identity.kind).await.map(drop)
    }
}

#[async_trait]
impl GuestChannel for NoChannel {
    async fn open(&self) -> Result<BoxedStream, ChannelError> {
        if self.0.has_ended() { Err(ChannelError::Closed) } else { Err(ChannelError::Detached) }
    }

    async fn wait_ready(&self) -> Result<(), ChannelError> {
        self.0.ended().await;
        Err(ChannelError::Closed)
    }

    async fn closed(&self) {
        self.0.ended().await;
    }
}

#[cfg(test)]
mod tests {
    use banger_engine::seams::Acceleration;

    use super::*;

    #[tokio::test]
    async fn one_that_says_nothing_is_seen_and_killed_and_no_other_is() {
        let mut child = std::process::Command::new("/bin/sleep").arg("600").spawn().unwrap();
        let start_time = HeldProcess::open(child.id()).unwrap().unwrap().start_time();
        let identity = VmmIdentity {
            kind: VmmKind::Qemu,
            acceleration: Acceleration::Tcg,
            pid: child.id(),
            start_time,
            host_boot_id: held::host_boot_id().unwrap(),
        };
        let earlier = VmmIdentity { start_time: start_time - 1, ..identity.clone() };
        assert!(hold(&earlier, VmmKind::Qemu).unwrap().is_none());
        assert!(hold(&identity, VmmKind::Firecracker).is_err());

        let process = hold(&identity, VmmKind::Qemu).unwrap().unwrap();
        assert!(process.signal(Signal::STOP).unwrap());
        assert_eq!((process.identity(), process.state()), (&identity, VmmState::Alive));
        let error = process.resume().await.unwrap_err().to_string();
        assert!(error.contains("does not answer"), "{error}");
        let channel = process.channel();
        assert!(matches!(channel.open().await, Err(ChannelError::Detached)));
        // It is stopped, and killed all the same.
        process.kill().await.unwrap();
        assert_eq!(process.wait().await, VmmState::Dead { reason: None });
        channel.closed().await;
        assert!(matches!(channel.open().await, Err(ChannelError::Closed)));
        child.wait().unwrap();
    }
}
