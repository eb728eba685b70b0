//! Guests that never run, for crash tests (feature `fault-hooks`): with a file `held-guests` in the
//! state directory each VMM is a real one and its guest's CPUs stay held, where it can hold them.
//! What a guest's agent would answer is answered here.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use banger_agent_api::{
    Call, Empty, ExecStarted, ExitStatus, Frame, FrameReader, FrameWriter, HealthReply, InitKind,
    MAX_REQUEST, MAX_RESPONSE, NetworkState, Outcome, Request, Response, WireError, read_message,
    write_message,
};
use banger_daemon_api::orphan::Orphan;
use banger_engine::seams::{
    Acceleration, LaunchPlan, NetLimits, RootDisk, Vmm, VmmError, VmmIdentity, VmmKind, VmmProcess,
    VmmState,
};
use banger_guest_client::{BoxedStream, ChannelError, GuestChannel};
use rustix::process::Signal;
use tokio::io::{AsyncWriteExt, DuplexStream};

/// Bytes under way between the daemon and a stand-in.
const BUFFER: usize = 64 << 10;

/// Returns whether guests are to be held.
pub fn wanted(state_dir: &Path) -> bool {
    state_dir.join("held-guests").exists()
}

/// A driver whose guests never run.
pub struct HeldGuests(pub Arc<dyn Vmm>);

struct Process(Arc<dyn VmmProcess>);

#[async_trait]
impl Vmm for HeldGuests {
    fn kind(&self) -> VmmKind {
        self.0.kind()
    }

    async fn probe(&self) -> Result<Acceleration, VmmError> {
        self.0.probe().await
    }

    fn root_disks(&self) -> Vec<Arc<dyn RootDisk>> {
        self.0.root_disks()
    }

    fn holds(&self) -> bool {
        self.0.holds()
    }

    fn has_power_switch(&self) -> bool {
        self.0.has_power_switch()
    }

    fn takes_open_tap(&self) -> bool {
        self.0.takes_open_tap()
    }

    fn has_user_network(&self) -> bool {
        self.0.has_user_network()
    }

    fn limits_network(&self) -> bool {
        self.0.limits_network()
    }

    async fn launch(&self, plan: LaunchPlan) -> Result<Arc<dyn VmmProcess>, VmmError> {
        Ok(Arc::new(Process(self.0.launch(plan).await?)))
    }

    async fn adopt(
        &self,
        identity: &VmmIdentity,
        runtime_dir: &Path,
        console_log: &Path,
    ) -> Result<Option<Arc<dyn VmmProcess>>, VmmError> {
        let found = self.0.adopt(identity, runtime_dir, console_log).await?;
        Ok(found.map(|process| Arc::new(Process(process)) as Arc<dyn VmmProcess>))
    }

    fn hold(&self, identity: &VmmIdentity) -> Result<Option<Arc<dyn VmmProcess>>, VmmError> {
        let held = self.0.hold(identity)?;
        Ok(held.map(|process| Arc::new(Process(process)) as Arc<dyn VmmProcess>))
    }

    async fn end(&self, identity: &VmmIdentity) -> Result<bool, VmmError> {
        self.0.end(identity).await
    }

    async fn clean(&self, runtime_dir: &Path) -> Result<bool, VmmError> {
        self.0.clean(runtime_dir).await
    }

    async fn find(&self, runtime_root: &Path) -> Result<Vec<(PathBuf, VmmIdentity)>, VmmError> {
        self.0.find(runtime_root).await
    }

    async fn traces(&self, vms_dir: &Path) -> Result<Vec<Orphan>, VmmError> {
        self.0.traces(vms_dir).await
    }

    async fn erase(&self, orphan: &Orphan, vms_dir: &Path) -> Result<(), VmmError> {
        self.0.erase(orphan, vms_dir).await
    }
}

#[async_trait]
impl VmmProcess for Process {
    fn identity(&self) -> &VmmIdentity {
        self.0.identity()
    }

    async fn resume(&self) -> Result<(), VmmError> {
        Ok(())
    }

    fn channel(&self) -> Arc<dyn GuestChannel> {
        Arc::new(StandIn(Arc::clone(&self.0)))
    }

    async fn console(&self) -> Result<BoxedStream, VmmError> {
        self.0.console().await
    }

    fn state(&self) -> VmmState {
        self.0.state()
    }

    fn stall(&self) -> Option<&'static str> {
        self.0.stall()
    }

    async fn limit_network(&self, limits: &NetLimits) -> Result<(), VmmError> {
        self.0.limit_network(limits).await
    }

    async fn wait(&self) -> VmmState {
        self.0.wait().await
    }

    fn signal(&self, signal: Signal) -> Result<bool, VmmError> {
        self.0.signal(signal)
    }

    async fn kill(&self) -> Result<(), VmmError> {
        self.0.kill().await
    }
}

/// The agent of a guest that does not run.
#[derive(Clone)]
struct StandIn(Arc<dyn VmmProcess>);

impl std::fmt::Debug for StandIn {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_tuple("StandIn").field(self.0.identity()).finish()
    }
}

#[async_trait]
impl GuestChannel for StandIn {
    async fn open(&self) -> Result<BoxedStream, ChannelError> {
        self.wait_ready().await?;
        let (ours, theirs) = tokio::io::duplex(BUFFER);
        let agent = self.clone();
        tokio::spawn(async move {
            if let Err(error) = agent.answer(theirs).await {
                tracing::debug!(%error, "a stand-in's client went away");
            }
        });
        Ok(Box::new(ours))
    }

    async fn wait_ready(&self) -> Result<(), ChannelError> {
        match self.0.state() {
            VmmState::Alive => Ok(()),
            VmmState::Dead { .. } => Err(ChannelError::Closed),
        }
    }

    async fn closed(&self) {
        self.0.wait().await;
    }
}

impl StandIn {
    async fn answer(&self, mut stream: DuplexStream) -> Result<(), WireError> {
        let request: Request = read_message(&mut stream, MAX_REQUEST).await?;
        match request.call {
            Call::Health => reply(&mut stream, self.health()).await?,
            Call::Exec(_) => {
                reply(&mut stream, ExecStarted { pid: 2 }).await?;
                let (reader, writer) = tokio::io::split(stream);
                let mut writer = FrameWriter::new(writer);
                writer.send(&Frame::Exit(ExitStatus::Code(0))).await?;
                writer.shutdown().await?;
                // To the end of what the client says.
                let mut reader = FrameReader::new(reader);
                while reader.next().await?.is_some() {}
                return Ok(());
            }
            Call::PowerOff(_) => {
                reply(&mut stream, Empty {}).await?;
                if let Err(error) = self.0.kill().await {
                    tracing::warn!(%error, "a held guest was not switched off");
                }
            }
            _ => reply(&mut stream, Empty {}).await?,
        }
        let _ = stream.shutdown().await;
        Ok(())
    }

    fn health(&self) -> HealthReply {
        let identity = self.0.identity();
        HealthReply {
            agent_version: "stand-in".to_owned(),
            boot_id: format!("{}-{}", identity.pid, identity.start_time),
            kernel: "none".to_owned(),
            hostname: "held".to_owned(),
            uptime_millis: 0,
            init: InitKind::Other,
            network: NetworkState::None,
            session: None,
            execs: 0,
        }
    }
}

async fn reply<T: serde::Serialize>(stream: &mut DuplexStream, answer: T) -> Result<(), WireError> {
    write_message(stream, &Response::new(Outcome::Ok(answer)), MAX_RESPONSE).await
}
