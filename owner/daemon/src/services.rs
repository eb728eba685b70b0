//! The parts that do the work, wired together: only the daemon knows all of them.

use std::sync::Arc;
use std::time::Duration;

use banger_daemon_api::config::Config;
use banger_daemon_api::error::{ApiError, ErrorCode};
use banger_daemon_api::vm::Vm;
use banger_engine::seams::{Network, Vmm};
use banger_engine::{
    Engine, EngineConfig, EngineError, Faults, LinuxHost, Operations, ReconcileReport, Timing,
};
use banger_guest_client::{BoxedStream, ChannelError};
use banger_helper_client::HelperClient;
use banger_network::{HelperNetwork, PublishedPorts};
use banger_registry::BlobStore;
use banger_store::StateLock;
use banger_types::VmReference;
use banger_vmm::firecracker::FirecrackerVmm;
use banger_vmm::probe::AccelerationChoice;
use banger_vmm::qemu::QemuVmm;

use crate::artifacts::{ArtifactStores, Importer, Puller, blob_store_failure};
use crate::config_file::ConfigFile;
use crate::directories::Directories;
use crate::start_error::StartError;

/// How long a running guest's agent may take to accept a new stream.
const AGENT_DEADLINE: Duration = Duration::from_secs(30);

/// How long the end of taps that wait for guests may take.
const TAPS_DEADLINE: Duration = Duration::from_secs(10);

/// The parts that do the work.
#[derive(Debug)]
pub struct Services {
    engine: Engine,
    artifacts: ArtifactStores,
    importer: Importer,
    puller: Puller,
    acceleration: AccelerationChoice,
    firecracker: Option<FirecrackerVmm>,
    config: ConfigFile,
    network: Option<Arc<HelperNetwork>>,
    notices: Notices,
}

/// What the daemon's start had to say, for `doctor`.
#[derive(Debug)]
pub struct Notices {
    /// About the store.
    pub store: Vec<String>,
    /// About the VMs.
    pub reconciled: ReconcileReport,
}

impl Services {
    /// Starts all parts and reconciles what they remember with what the host has.
    pub async fn start(
        directories: &Directories,
        lock: StateLock,
        acceleration: AccelerationChoice,
        firecracker: Option<FirecrackerVmm>,
        helper: Option<(HelperClient, String)>,
    ) -> Result<Self, StartError> {
        let config = ConfigFile::open(&directories.state)?;
        let settings = config.now().await;
        let overcommit = settings.storage.overcommit;
        let network = helper.map(|(helper, bridge)| {
            Arc::new(HelperNetwork::new(helper, bridge, &directories.state, settings.network))
        });
        let artifacts = ArtifactStores::open(directories)?;
        let mut vmms: Vec<Arc<dyn Vmm>> = vec![Arc::new(QemuVmm::new(acceleration))];
        if let Some(driver) = &firecracker {
            vmms.push(Arc::new(driver.clone()));
        }
        #[cfg(feature = "fault-hooks")]
        if crate::held_guests::wanted(&directories.state) {
            let held = |vmm| Arc::new(crate::held_guests::HeldGuests(vmm)) as Arc<dyn Vmm>;
            vmms = vmms.into_iter().map(held).collect();
        }
        let engine_config = EngineConfig {
            runtime_dir: directories.runtime.clone(),
            vmms,
            artifacts: Arc::new(artifacts.clone()),
            host: Arc::new(LinuxHost),
            network: network.clone().map(|network| network as Arc<dyn Network>),
            ports: Arc::new(PublishedPorts::default()),
            overcommit,
            timing: Timing::default(),
            faults: Faults::of_state(&directories.state),
        };
        let part = |error: banger_engine::EngineError| StartError::Part(error.to_api());
        let (engine, store) = Engine::open(engine_config, lock).await.map_err(part)?;
        for warning in &store {
            tracing::warn!(warning, "store");
        }
        let reconciled = engine.reconcile().await.map_err(part)?;
        tracing::info!(
            adopted = reconciled.adopted.len(),
            ended = reconciled.ended.len(),
            removed = reconciled.removed.len(),
            "reconciled"
        );
        for warning in &reconciled.warnings {
            tracing::warn!(warning, "reconciling");
        }
        for orphan in &reconciled.orphans {
            tracing::warn!(%orphan, vm = orphan.vm, "it belongs to no VM; see `banger doctor`");
        }
        engine.watch_disks();
        let importer = Importer::new(
            artifacts.clone(),
            engine.operations().clone(),
            directories.state.clone(),
        );
        let blobs = BlobStore::open(&directories.cache)
            .map_err(|error| StartError::Part(blob_store_failure(&error)))?;
        let puller = Puller::new(artifacts.clone(), blobs, engine.operations().clone());
        if let Some(network) = network.clone() {
            // Nobody waits for it but those who ask for names.
            tokio::spawn(async move { tokio::join!(network.follow_routes(), network.wake()) });
        }
        let notices = Notices { store, reconciled };
        Ok(Self {
            engine,
            artifacts,
            importer,
            puller,
            acceleration,
            firecracker,
            config,
            network,
            notices,
        })
    }

    /// Returns whether anything runs that the daemon must stay for.
    pub fn is_busy(&self) -> bool {
        self.running_vms() > 0 || self.active_operations() > 0
    }

    /// Returns how many VMMs run.
    pub fn running_vms(&self) -> u32 {
        u32::try_from(self.engine.running_vms()).unwrap_or(u32::MAX)
    }

    /// Returns how many operations have not ended.
    pub fn active_operations(&self) -> u32 {
        u32::try_from(self.operations().active().len()).unwrap_or(u32::MAX)
    }

    /// Returns the engine.
    pub const fn engine(&self) -> &Engine {
        &self.engine
    }

    /// Returns the registry of long work.
    pub fn operations(&self) -> &Operations {
        self.engine.operations()
    }

    /// Returns the images and kernels.
    pub const fn artifacts(&self) -> &ArtifactStores {
        &self.artifacts
    }

    /// Returns what begins imports.
    pub const fn importer(&self) -> &Importer {
        &self.importer
    }

    /// Returns what begins pulls.
    pub const fn puller(&self) -> &Puller {
        &self.puller
    }

    /// Returns how the user wants guest instructions to run.
    pub const fn acceleration(&self) -> AccelerationChoice {
        self.acceleration
    }

    /// Returns the Firecracker driver, where there is a root helper.
    pub const fn firecracker(&self) -> Option<&FirecrackerVmm> {
        self.firecracker.as_ref()
    }

    /// Returns the daemon's settings.
    pub const fn config(&self) -> &ConfigFile {
        &self.config
    }

    /// Returns the guests' network, where there is a root helper.
    pub fn network(&self) -> Option<&HelperNetwork> {
        self.network.as_deref()
    }

    /// Makes settings true.
    pub async fn apply(&self, config: &Config) -> Result<(), ApiError> {
        if let Some(network) = &self.network {
            let vms = self.engine.list().await.into_iter();
            let users = vms.filter(|vm| vm.runtime.is_some() && vm.network == "tap");
            let users = users.map(|vm| vm.name.to_string()).collect();
            let applied = network.configure(config.network.clone(), users).await;
            applied.map_err(|error| EngineError::from(error).to_api())?;
        }
        self.engine.set_overcommit(config.storage.overcommit);
        Ok(())
    }

    /// Returns what the daemon's start had to say.
    pub const fn notices(&self) -> &Notices {
        &self.notices
    }

    /// Returns one VM.
    pub async fn vm(&self, vm: &VmReference) -> Result<Vm, ApiError> {
        self.engine.get(vm).await.map_err(|error| error.to_api())
    }

    /// Opens a stream to the agent of a running VM.
    pub async fn open_agent(&self, vm: &VmReference) -> Result<BoxedStream, ApiError> {
        let channel = self.engine.agent(vm).map_err(|error| error.to_api())?;
        let unreachable = |error: &ChannelError| {
            ApiError::new(ErrorCode::AgentUnreachable, format!("the agent of VM {vm}: {error}"))
                .caused_by(error)
                .hint(format!("`banger vm logs {vm}` shows the guest's console"))
        };
        let open = async {
            match channel.open().await {
                // Just adopted: the session is being taken up again.
                Err(ChannelError::Detached) => {
                    channel.wait_ready().await?;
                    channel.open().await
                }
                opened => opened,
            }
        };
        match tokio::time::timeout(AGENT_DEADLINE, open).await {
            Ok(Ok(stream)) => Ok(stream),
            Ok(Err(error)) => Err(unreachable(&error)),
            Err(_) => Err(ApiError::new(
                ErrorCode::AgentUnreachable,
                format!("the agent of VM {vm} took longer than {} s", AGENT_DEADLINE.as_secs()),
            )
            .hint(format!("`banger vm logs {vm}` shows the guest's console"))),
        }
    }

    /// Ends all parts; VMs keep running.
    pub async fn end(&self) {
        self.engine.shutdown().await;
        if let Some(network) = &self.network
            && tokio::time::timeout(TAPS_DEADLINE, network.close()).await.is_err()
        {
            tracing::warn!("taps that wait for guests are left; the next daemon ends them");
        }
        self.importer.end().await;
        self.puller.end().await;
    }
}
