//! The engine over a scripted host.

mod crash;
mod leftovers;
mod lifecycle;
mod machine;
mod main_process;
mod network;
mod orphans;
mod ports;
mod rename;
mod set;
mod stats;
mod undo;

use std::sync::Arc;
use std::time::Duration;

use banger_daemon_api::operation::{Operation, OperationState};
use banger_daemon_api::vm::{
    CreateVm, DiskLimits, NetLimits, StopVm, Vm, VmSpec, VmState, VmmChoice,
};
use banger_store::StateLock;
use banger_types::{OperationId, VmReference};

use crate::{Engine, EngineConfig, EngineError, Faults, OperationHandle, ReconcileReport, Timing};
use machine::{FakeArtifacts, FakeFacts, FakeVmm, Machine, SOON};
use network::FakeNetwork;
use ports::FakePorts;

fn timing() -> Timing {
    Timing { agent_deadline: Duration::from_secs(5), stop_grace: Duration::from_secs(5) }
}

fn config(machine: &Arc<Machine>, faults: Faults, timing: Timing) -> EngineConfig {
    EngineConfig {
        runtime_dir: machine.dir.path().join("run"),
        vmms: vec![Arc::new(FakeVmm(Arc::clone(machine)))],
        artifacts: Arc::new(FakeArtifacts(Arc::clone(machine))),
        host: Arc::new(FakeFacts(Arc::clone(machine))),
        network: Some(Arc::new(FakeNetwork(Arc::clone(machine)))),
        ports: Arc::new(FakePorts::new(machine)),
        overcommit: false,
        timing,
        faults,
    }
}

/// Takes the lock once the engine before has let go of everything.
async fn lock(machine: &Machine) -> StateLock {
    loop {
        match StateLock::acquire(&machine.state_dir()) {
            Ok(lock) => return lock,
            Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
        }
    }
}

async fn open_with(
    machine: &Arc<Machine>,
    faults: Faults,
    timing: Timing,
) -> (Engine, ReconcileReport) {
    let lock = lock(machine).await;
    let (engine, _) = Engine::open(config(machine, faults, timing), lock).await.unwrap();
    let report = engine.reconcile().await.unwrap();
    (engine, report)
}

async fn open(machine: &Arc<Machine>, faults: Faults) -> (Engine, ReconcileReport) {
    open_with(machine, faults, timing()).await
}

fn request(name: Option<&str>) -> CreateVm {
    CreateVm {
        name: name.map(|name| name.parse().unwrap()),
        image: "image".parse().unwrap(),
        kernel: "kernel".parse().unwrap(),
        spec: VmSpec {
            vcpus: 1.try_into().unwrap(),
            memory_mib: 512.try_into().unwrap(),
            root_size: "1G".parse().unwrap(),
            work_size: "1G".parse().unwrap(),
            nat: true,
            allow_lan: false,
            group: None,
            ports: Vec::new(),
            vmm: VmmChoice::Auto,
            disk_limits: DiskLimits::default(),
            net_limits: NetLimits::default(),
        },
        lease: None,
        workspace: None,
        main: banger_daemon_api::vm::MainOptions::default(),
    }
}

fn vm(text: &str) -> VmReference {
    text.parse().unwrap()
}

fn op() -> OperationId {
    OperationId::random()
}

async fn ended(operation: &OperationHandle) -> Operation {
    tokio::time::timeout(SOON, operation.ended()).await.expect("the operation hangs")
}

async fn succeed(operation: &OperationHandle) {
    let operation = ended(operation).await;
    assert_eq!(operation.state, OperationState::Succeeded, "{operation:?}");
}

async fn create(engine: &Engine, name: &str) -> Vm {
    succeed(&engine.create(request(Some(name)), op()).unwrap()).await;
    engine.get(&vm(name)).await.unwrap()
}

async fn stop(engine: &Engine, name: &str) {
    succeed(&engine.stop(&vm(name), &StopVm::default(), op()).await.unwrap().operation).await;
}

async fn start(engine: &Engine, name: &str) {
    succeed(&engine.start(&vm(name), op()).await.unwrap().operation).await;
}

async fn delete(engine: &Engine, name: &str) {
    succeed(&engine.delete(&vm(name), op()).await.unwrap().operation).await;
}

/// Waits until a VM is deleted and its name is free.
async fn gone(engine: &Engine, name: &str) {
    let until = async {
        while engine.get(&vm(name)).await.is_ok() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(SOON, until).await.expect("the VM stays");
}

async fn until_state(engine: &Engine, name: &str, state: VmState) -> Vm {
    let until = async {
        loop {
            let vm = engine.get(&vm(name)).await.unwrap();
            if vm.state == state {
                return vm;
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(SOON, until).await.expect("the VM never gets there")
}
