//! What all VMs' tasks and the engine's handle share. Its locks are held for moments, never
//! across I/O.

use std::collections::{HashMap, HashSet};
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use banger_store::Store;
use banger_types::{LeaseId, MemoryMib, VmId, VmName};
use tokio::sync::{mpsc, oneshot, watch};

use crate::admission::{disk_room, memory_room};
use crate::error::EngineError;
use crate::fault::Faults;
use crate::operation::Operations;
use crate::seams::{Artifacts, HostFacts, Network, Ports, RootDisk, Vmm};
use crate::vm::{Details, Message, Order, View};

/// Deadlines.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    /// How long a guest may take from its first instruction to its agent's first word.
    pub agent_deadline: Duration,
    /// How long a guest may take to power off before it is killed.
    pub stop_grace: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        // A guest in software emulation takes 6 s to its agent's first word on an idle host.
        Self { agent_deadline: Duration::from_secs(180), stop_grace: Duration::from_secs(60) }
    }
}

/// A VM from outside its task.
#[derive(Clone)]
pub(crate) struct Entry {
    pub(crate) name: VmName,
    pub(crate) mailbox: mpsc::Sender<Message>,
    pub(crate) view: watch::Receiver<View>,
}

#[derive(Default)]
pub(crate) struct Table {
    pub(crate) vms: HashMap<VmId, Entry>,
    /// Names that VMs are about to have.
    pub(crate) wanted_names: HashSet<VmName>,
    pub(crate) leases: HashSet<LeaseId>,
    pub(crate) reconciled: bool,
    pub(crate) closing: bool,
}

impl Table {
    /// Whether a VM has this name, or is about to.
    pub(crate) fn is_taken(&self, name: &VmName) -> bool {
        self.wanted_names.contains(name) || self.vms.values().any(|entry| entry.name == *name)
    }
}

/// Memory promised to a VM that runs or is being started.
#[derive(Clone, Copy)]
struct Promise {
    bytes: u64,
    pid: Option<u32>,
}

pub(crate) struct Shared {
    pub(crate) store: Store,
    pub(crate) vmms: Vec<Arc<dyn Vmm>>,
    pub(crate) artifacts: Arc<dyn Artifacts>,
    pub(crate) host: Arc<dyn HostFacts>,
    pub(crate) network: Option<Arc<dyn Network>>,
    pub(crate) ports: Arc<dyn Ports>,
    pub(crate) operations: Operations,
    pub(crate) timing: Timing,
    pub(crate) faults: Faults,
    /// Whether a VM may have larger disks than the host could hold (`storage.overcommit`).
    pub(crate) overcommit: AtomicBool,
    pub(crate) vms_dir: PathBuf,
    pub(crate) runtime_root: PathBuf,
    table: Mutex<Table>,
    promises: Mutex<HashMap<VmId, Promise>>,
    /// Bytes that VMs being made are about to write.
    disk_promises: Mutex<HashMap<VmId, u64>>,
    /// Whose each number of an address is.
    addresses: Mutex<HashMap<u32, VmId>>,
}

impl Shared {
    /// Returns every kind of root disk that some VMM boots from, once.
    pub(crate) fn root_disks(&self) -> Vec<Arc<dyn RootDisk>> {
        let mut disks: Vec<Arc<dyn RootDisk>> = Vec::new();
        for disk in self.vmms.iter().flat_map(|vmm| vmm.root_disks()) {
            if disks.iter().all(|known| known.kind() != disk.kind()) {
                disks.push(disk);
            }
        }
        disks
    }

    pub(crate) fn new(config: crate::engine::EngineConfig, store: Store) -> Self {
        Self {
            vms_dir: store.vms_dir(),
            store,
            vmms: config.vmms,
            artifacts: config.artifacts,
            host: config.host,
            network: config.network,
            ports: config.ports,
            operations: Operations::default(),
            timing: config.timing,
            faults: config.faults,
            overcommit: AtomicBool::new(config.overcommit),
            runtime_root: config.runtime_dir.join("vms"),
            table: Mutex::default(),
            promises: Mutex::default(),
            disk_promises: Mutex::default(),
            addresses: Mutex::default(),
        }
    }

    pub(crate) fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns how a VM looks now.
    pub(crate) fn view(&self, id: &VmId) -> Option<View> {
        self.table().vms.get(id).map(|entry| entry.view.borrow().clone())
    }

    /// Frees the name of a VM that is gone.
    pub(crate) fn forget(&self, id: &VmId) {
        self.table().vms.remove(id);
        self.release_memory(id);
        self.ports.withdraw(id);
        self.addresses().retain(|_, owner| owner != id);
    }

    /// Asks all VMs but one of which something is left, or that are half deleted, to try again. Nobody
    /// waits for it.
    pub(crate) fn retry_cleaning(&self, except: &VmId) {
        let table = self.table();
        if table.closing {
            return;
        }
        for (_, entry) in table.vms.iter().filter(|(id, _)| *id != except) {
            let Some(request) = entry.view.borrow().cleaning() else { continue };
            let op_id = banger_types::OperationId::random();
            let order = Order { request, details: Details::default(), op_id };
            // A VM with a full mailbox has enough to do.
            let _ = entry.mailbox.try_send(Message::Order(order, oneshot::channel().0));
        }
    }

    fn addresses(&self) -> MutexGuard<'_, HashMap<u32, VmId>> {
        self.addresses.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the number of a VM's address: `known` if it is free or the VM's, else the first that
    /// nobody has. It is the VM's until it is forgotten.
    pub(crate) fn address_number(&self, id: &VmId, known: Option<u32>) -> u32 {
        let mut addresses = self.addresses();
        let is_open = |number: &u32| addresses.get(number).is_none_or(|owner| owner == id);
        let number = known.filter(is_open).unwrap_or_else(|| {
            let own = addresses.iter().find(|(_, owner)| *owner == id).map(|(number, _)| *number);
            own.or_else(|| (0..).find(|number| !addresses.contains_key(number))).unwrap_or(u32::MAX)
        });
        addresses.insert(number, id.clone());
        number
    }

    fn promises(&self) -> MutexGuard<'_, HashMap<VmId, Promise>> {
        self.promises.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Promises memory to a VM about to start, and `overhead` bytes to its VMM, if the host has it.
    pub(crate) fn promise_memory(
        &self,
        id: &VmId,
        memory: MemoryMib,
        overhead: u64,
    ) -> Result<(), EngineError> {
        let host = self.host.memory()?;
        let others: Vec<Promise> = self
            .promises()
            .iter()
            .filter(|(other, _)| *other != id)
            .map(|(_, promise)| *promise)
            .collect();
        // Read without the lock; the VMMs only ever take more of what they were promised.
        let in_use: HashMap<u32, u64> = others
            .iter()
            .filter_map(|promise| promise.pid)
            .map(|pid| (pid, self.host.resident(pid)))
            .collect();
        let needed = memory.bytes().saturating_add(overhead);
        let mut promises = self.promises();
        let running = promises.iter().filter(|(other, _)| *other != id).map(|(_, promise)| {
            let taken = promise.pid.and_then(|pid| in_use.get(&pid)).copied().unwrap_or(0);
            (promise.bytes, taken)
        });
        memory_room(host, needed, running)?;
        promises.insert(id.clone(), Promise { bytes: needed, pid: None });
        Ok(())
    }

    /// Notes a promise to a VM that runs already.
    pub(crate) fn note_memory(&self, id: &VmId, memory: MemoryMib, overhead: u64, pid: u32) {
        let bytes = memory.bytes().saturating_add(overhead);
        self.promises().insert(id.clone(), Promise { bytes, pid: Some(pid) });
    }

    /// Promises `needed` bytes of disk to a VM about to be made, if the host has them.
    pub(crate) fn promise_disk(&self, id: &VmId, needed: u64) -> Result<(), EngineError> {
        let free = self.host.free_disk(&self.vms_dir)?;
        let mut promises = self.disk_promises.lock().unwrap_or_else(PoisonError::into_inner);
        let others = promises.iter().filter(|(other, _)| *other != id).map(|(_, bytes)| *bytes);
        disk_room(free, needed, others, &self.vms_dir)?;
        promises.insert(id.clone(), needed);
        Ok(())
    }

    /// Takes a promise of disk back: it has been taken, or will not be.
    pub(crate) fn release_disk(&self, id: &VmId) {
        self.disk_promises.lock().unwrap_or_else(PoisonError::into_inner).remove(id);
    }

    /// Says which process the promise is kept to.
    pub(crate) fn promise_belongs_to(&self, id: &VmId, pid: u32) {
        if let Some(promise) = self.promises().get_mut(id) {
            promise.pid = Some(pid);
        }
    }

    /// Takes a promise back.
    pub(crate) fn release_memory(&self, id: &VmId) {
        self.promises().remove(id);
    }
}
