//! The engine's handle: what the daemon calls.

mod change;
mod console;
mod ports;
mod rename;
mod shown;
mod stats;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use banger_daemon_api::operation::OperationKind;
use banger_daemon_api::orphan::{Orphan, OrphansRemoved};
use banger_daemon_api::vm::{CreateVm, SetVm, StopVm, Vm, VmState};
use banger_guest_client::GuestChannel;
use banger_store::{StateLock, Store};
use banger_types::{
    ByteSize, ImageName, KernelName, LeaseId, OperationId, VmId, VmName, VmReference,
};
use jiff::Timestamp;
use rustix::process::Signal;
use tokio::sync::{mpsc, oneshot, watch};

use crate::admission::{self, Request};
use crate::error::EngineError;
use crate::fault::Faults;
use crate::layout::VmFiles;
use crate::main_process::Programs;
use crate::names;
use crate::operation::{OperationHandle, Operations};
use crate::orphans;
use crate::reconcile::{self, ReconcileReport};
use crate::record::VmRecord;
use crate::seams::{Artifacts, HostFacts, Network, Ports, Vmm};
use crate::shared::{Entry, Shared, Timing};
use crate::vm::{self, Begin, Body, Details, Message, Order, View};

/// Messages a VM's mailbox holds; senders wait beyond it.
const MAILBOX: usize = 32;
/// Tries at a generated name before a number is put behind it.
const NAME_TRIES: usize = 20;
/// How long the daemon's end waits for what is under way.
const SHUTDOWN_WAIT: Duration = Duration::from_secs(90);

/// What the engine works on.
pub struct EngineConfig {
    /// The daemon's private directory for sockets; short (see `LaunchPlan::runtime_dir`).
    pub runtime_dir: PathBuf,
    /// The drivers there are, at most one of a kind.
    pub vmms: Vec<Arc<dyn Vmm>>,
    /// Images and kernels.
    pub artifacts: Arc<dyn Artifacts>,
    /// The host's memory and disk.
    pub host: Arc<dyn HostFacts>,
    /// The host's bridge, where there can be one.
    pub network: Option<Arc<dyn Network>>,
    /// The host's ports.
    pub ports: Arc<dyn Ports>,
    /// Whether a VM may have larger disks than the host could hold once they are full.
    pub overcommit: bool,
    /// Deadlines.
    pub timing: Timing,
    /// Failures at will, in builds for crash tests.
    pub faults: Faults,
}

impl std::fmt::Debug for EngineConfig {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("EngineConfig")
            .field("runtime_dir", &self.runtime_dir)
            .field("timing", &self.timing)
            .finish_non_exhaustive()
    }
}

/// An operation that a request began or joined.
#[derive(Debug)]
pub struct Started {
    /// The operation; ended already where the VM was as asked.
    pub operation: OperationHandle,
    /// Another request began it, or there was nothing to do.
    pub joined: bool,
}

/// The most that the writer of file systems makes (`banger_image`); a guest's kernel grows one further.
const LARGEST_WORK_DISK: ByteSize = ByteSize::from_bytes(1 << 40);

/// The engine. Clones are handles to the same one; dropping the last leaves VMs running.
#[derive(Clone)]
pub struct Engine {
    shared: Arc<Shared>,
    _last: Arc<LastHandle>,
}

/// Lets the VMs' tasks end when the last handle goes: they hold what holds their mailboxes.
struct LastHandle(Arc<Shared>);

impl Drop for LastHandle {
    fn drop(&mut self) {
        let entries = std::mem::take(&mut self.0.table().vms);
        drop(entries);
    }
}

impl std::fmt::Debug for Engine {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Engine").finish_non_exhaustive()
    }
}

impl Engine {
    /// Opens the store of the locked state directory; returns warnings for people (a store that
    /// was rebuilt). No VM is known before [`Engine::reconcile`].
    pub async fn open(
        config: EngineConfig,
        lock: StateLock,
    ) -> Result<(Self, Vec<String>), EngineError> {
        let (store, warnings) = Store::open(lock).await?;
        let shared = Shared::new(config, store);
        for dir in [shared.runtime_root.parent(), Some(shared.runtime_root.as_path())] {
            let Some(dir) = dir else { continue };
            match tokio::fs::DirBuilder::new().mode(0o700).create(dir).await {
                Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
                other => other.map_err(|source| EngineError::Io {
                    act: "making directory",
                    object: dir.display().to_string(),
                    source,
                })?,
            }
        }
        let shared = Arc::new(shared);
        let last = Arc::new(LastHandle(Arc::clone(&shared)));
        Ok((Self { shared, _last: last }, warnings))
    }

    /// Brings every recorded VM and the host together: adopts VMMs that run, tears down those that
    /// are gone, undoes what was half created and finishes what was half deleted. To be called
    /// once, before requests are taken.
    pub async fn reconcile(&self) -> Result<ReconcileReport, EngineError> {
        if self.shared.table().reconciled {
            return Err(EngineError::Defect("reconcile was called twice"));
        }
        let (bodies, mut report) = reconcile::reconcile(&self.shared).await?;
        self.take_over(bodies);
        match orphans::find(&self.shared, &[]).await {
            Ok(found) => report.orphans = found,
            Err(error) => report.warnings.push(format!("looking for orphans: {error}")),
        }
        Ok(report)
    }

    /// Gives each VM its task.
    fn take_over(&self, bodies: Vec<Body>) {
        let mut table = self.shared.table();
        for body in bodies {
            let (sender, mailbox) = mpsc::channel(MAILBOX);
            let entry =
                Entry { name: body.record.name.clone(), mailbox: sender, view: body.watch() };
            table.vms.insert(body.id().clone(), entry);
            vm::spawn(body, Begin::Idle, mailbox);
        }
        table.reconciled = true;
    }

    /// Lists what of ours is on the host and belongs to no VM, in the order in which it would be
    /// removed. `told` are things of which only somebody else knows that they are there.
    ///
    /// # Errors
    /// Whose things are is not known for certain: the store or the host cannot be read.
    pub async fn orphans(&self, told: &[Orphan]) -> Result<Vec<Orphan>, EngineError> {
        orphans::find(&self.shared, told).await
    }

    /// Lists what is on the host of VMs that do not run, with their names: their end could not remove
    /// it, and is tried again.
    ///
    /// # Errors
    /// The host cannot be read.
    pub async fn left_by_resting(&self) -> Result<Vec<(VmName, Orphan)>, EngineError> {
        orphans::of_resting(&self.shared).await
    }

    /// Removes what [`Self::orphans`] lists, after what VMs that do not run have left, and nothing
    /// else.
    ///
    /// # Errors
    /// As for [`Self::orphans`]; nothing is removed then.
    pub async fn remove_orphans(&self, told: &[Orphan]) -> Result<OrphansRemoved, EngineError> {
        orphans::remove(self, &self.shared, told).await
    }

    /// Returns directories of VMs that are whole and that the store does not have; they are no
    /// orphans.
    pub async fn unlisted(&self) -> Vec<String> {
        self.shared.unlisted().await
    }

    /// Returns the registry of operations, which imports of images and kernels share.
    #[must_use]
    pub fn operations(&self) -> &Operations {
        &self.shared.operations
    }

    /// Returns the damaged databases that were moved aside, for `doctor`.
    #[must_use]
    pub fn stores_set_aside(&self) -> Vec<PathBuf> {
        self.shared.store.set_aside()
    }

    /// Returns the names of the VMMs there are drivers for, as users write them.
    pub fn vmm_names(&self) -> impl Iterator<Item = &'static str> {
        self.shared.vmms.iter().map(|vmm| crate::record::vmm_name(vmm.kind()))
    }

    /// Reserves the name and creates and starts the VM. If it fails, nothing of it is left.
    ///
    /// Nothing is awaited between the reservation and the start of its task, so a caller that goes
    /// away leaves no half-made VM.
    pub fn create(
        &self,
        request: CreateVm,
        op_id: OperationId,
    ) -> Result<OperationHandle, EngineError> {
        vm::ports::check(&request.spec.ports)?;
        let wanted = request.spec.work_size;
        if wanted.bytes() > LARGEST_WORK_DISK.bytes() {
            return Err(EngineError::WorkDiskTooLarge { wanted, most: LARGEST_WORK_DISK });
        }
        let now = Timestamp::now();
        let mut table = self.shared.table();
        if table.closing || !table.reconciled {
            return Err(EngineError::ShuttingDown);
        }
        if let Some(lease) = &request.lease
            && !table.leases.contains(lease)
        {
            return Err(EngineError::NoSuchLease { lease: lease.clone() });
        }
        // The tap is named after the beginning of the id.
        let is_taken = |id: &VmId| table.vms.keys().any(|one| one.short()[..8] == id.short()[..8]);
        let id = std::iter::repeat_with(VmId::random)
            .find(|id| !is_taken(id))
            .ok_or(EngineError::Defect("no id is free"))?;
        let name = match request.name {
            Some(name) if table.is_taken(&name) => return Err(EngineError::NameTaken { name }),
            Some(name) => name,
            None => (0..)
                .map(|attempt| names::generate(names::random(), attempt >= NAME_TRIES))
                .find(|name| !table.is_taken(name))
                .ok_or(EngineError::Defect("no name is free"))?,
        };
        let record = VmRecord {
            id: id.clone(),
            name: name.clone(),
            state: VmState::Starting,
            complete: false,
            image: request.image,
            kernel: request.kernel,
            spec: request.spec,
            lease: request.lease,
            workspace: request.workspace,
            main_options: request.main,
            programs: Programs::default(),
            main_exit: None,
            disks: None,
            address_number: Some(self.shared.address_number(&id, None)),
            running: None,
            leftovers: None,
            last_error: None,
            notes: BTreeMap::new(),
            created_at: now,
            updated_at: now,
        };
        let body = Body::new(Arc::clone(&self.shared), record, None);
        let (sender, mailbox) = mpsc::channel(MAILBOX);
        let entry = Entry { name: name.clone(), mailbox: sender, view: body.watch() };
        table.vms.insert(id.clone(), entry);
        drop(table);
        let kind = OperationKind::VmCreate { vm: id, name };
        let reporter = self.shared.operations.begin(kind, op_id);
        let handle = reporter.handle();
        vm::spawn(body, Begin::Create(reporter), mailbox);
        Ok(handle)
    }

    /// Starts a stopped VM; one that runs already is success.
    pub async fn start(
        &self,
        vm: &VmReference,
        op_id: OperationId,
    ) -> Result<Started, EngineError> {
        self.order(vm, Request::Start, Details::default(), op_id).await
    }

    /// Stops a VM; one that is stopped already is success.
    pub async fn stop(
        &self,
        vm: &VmReference,
        how: &StopVm,
        op_id: OperationId,
    ) -> Result<Started, EngineError> {
        self.order(vm, Request::Stop { force: how.force }, options(how), op_id).await
    }

    /// Stops the VM if it runs, and starts it.
    pub async fn restart(
        &self,
        vm: &VmReference,
        how: &StopVm,
        op_id: OperationId,
    ) -> Result<Started, EngineError> {
        self.order(vm, Request::Restart, options(how), op_id).await
    }

    /// Changes the size and shape of a VM that does not run.
    pub async fn set(
        &self,
        vm: &VmReference,
        change: SetVm,
        op_id: OperationId,
    ) -> Result<Started, EngineError> {
        let details = Details { change, ..Details::default() };
        self.order(vm, Request::Set, details, op_id).await
    }

    /// Deletes a VM and its disks, at once if it runs.
    pub async fn delete(
        &self,
        vm: &VmReference,
        op_id: OperationId,
    ) -> Result<Started, EngineError> {
        self.order(vm, Request::Delete, Details::default(), op_id).await
    }

    /// Sends the VMM a signal by name: TERM KILL INT HUP QUIT USR1 USR2 or ABRT, with or without
    /// SIG. A VM that ends of it is stopped, not failed.
    pub async fn kill(&self, vm: &VmReference, signal: &str) -> Result<(), EngineError> {
        let signal = parse_signal(signal).ok_or_else(|| EngineError::UnknownSignal {
            name: signal.chars().take(32).collect(),
        })?;
        let (_, entry) = self.resolve(vm)?;
        let (sender, answer) = oneshot::channel();
        let gone = || vm::task_gone(&entry.view.borrow().record);
        entry.mailbox.send(Message::Signal(signal, sender)).await.map_err(|_| gone())?;
        answer.await.map_err(|_| gone())?
    }

    pub(crate) async fn order(
        &self,
        vm: &VmReference,
        request: Request,
        details: Details,
        op_id: OperationId,
    ) -> Result<Started, EngineError> {
        let (_, entry) = self.resolve(vm)?;
        if self.shared.table().closing {
            return Err(EngineError::ShuttingDown);
        }
        let (sender, answer) = oneshot::channel();
        let gone = || vm::task_gone(&entry.view.borrow().record);
        let order = Order { request, details, op_id };
        entry.mailbox.send(Message::Order(order, sender)).await.map_err(|_| gone())?;
        let answer = answer.await.map_err(|_| gone())??;
        Ok(Started { operation: answer.operation, joined: answer.joined })
    }

    /// Finds a VM by name, id or the beginning of an id, in this order.
    fn resolve(&self, reference: &VmReference) -> Result<(VmId, Entry), EngineError> {
        let table = self.shared.table();
        let by_name = table.vms.iter().find(|(_, entry)| entry.name.as_str() == reference.as_str());
        if let Some((id, entry)) = by_name {
            return Ok((id.clone(), entry.clone()));
        }
        let mut matches =
            table.vms.iter().filter(|(id, _)| reference.matches_id(id)).collect::<Vec<_>>();
        match matches.as_slice() {
            [] => Err(EngineError::NoSuchVm { reference: reference.clone() }),
            [(id, entry)] => Ok(((*id).clone(), (*entry).clone())),
            _ => {
                matches.sort_by(|a, b| a.1.name.cmp(&b.1.name));
                let matches = matches.iter().map(|(_, entry)| entry.name.clone()).collect();
                Err(EngineError::Ambiguous { reference: reference.clone(), matches })
            }
        }
    }

    fn view(&self, reference: &VmReference) -> Result<View, EngineError> {
        let (_, entry) = self.resolve(reference)?;
        let view = entry.view.borrow().clone();
        Ok(view)
    }

    /// Returns all VMs, by name.
    pub async fn list(&self) -> Vec<Vm> {
        let mut views: Vec<View> =
            self.shared.table().vms.values().map(|entry| entry.view.borrow().clone()).collect();
        views.retain(|view| !view.gone);
        views.sort_by(|a, b| a.record.name.cmp(&b.record.name));
        let bridge = self.bridge_warning();
        let mut vms = Vec::with_capacity(views.len());
        for view in views {
            vms.push(self.show_beside(&view, bridge.as_deref()).await);
        }
        vms
    }

    /// Returns one VM.
    pub async fn get(&self, vm: &VmReference) -> Result<Vm, EngineError> {
        let view = self.view(vm)?;
        Ok(self.show(&view).await)
    }

    fn files(&self, id: &VmId) -> VmFiles {
        VmFiles::new(&self.shared.vms_dir, &self.shared.runtime_root, id)
    }

    /// Returns the identity that a reference stands for.
    pub fn id_of(&self, vm: &VmReference) -> Result<VmId, EngineError> {
        Ok(self.resolve(vm)?.0)
    }

    /// Returns the channel to the agent of a running VM.
    pub fn agent(&self, vm: &VmReference) -> Result<Arc<dyn GuestChannel>, EngineError> {
        let view = self.view(vm)?;
        let denied = |reason| EngineError::Denied { vm: view.record.name.clone(), reason };
        admission::may_reach_agent(view.record.state).map_err(denied)?;
        let process = view
            .process
            .as_ref()
            .ok_or_else(|| denied(admission::DenyReason::NotRunning(view.record.state)))?;
        Ok(process.channel())
    }

    /// Returns the path of the console log. The driver keeps an older half beside it, with `.1`
    /// appended.
    pub fn console_log(&self, vm: &VmReference) -> Result<PathBuf, EngineError> {
        let (id, _) = self.resolve(vm)?;
        Ok(self.files(&id).console_log())
    }

    /// Returns a way to watch a VM: its state, each time anything of it changes, and `None` once
    /// it is deleted.
    pub fn watch(&self, vm: &VmReference) -> Result<VmWatch, EngineError> {
        Ok(VmWatch { view: self.resolve(vm)?.1.view })
    }

    /// Returns names of the VMs made from an image.
    #[must_use]
    pub fn users_of_image(&self, image: &ImageName) -> Vec<VmName> {
        self.users(|record| record.image == *image)
    }

    /// Returns names of the VMs that boot a kernel.
    #[must_use]
    pub fn users_of_kernel(&self, kernel: &KernelName) -> Vec<VmName> {
        self.users(|record| record.kernel == *kernel)
    }

    fn users(&self, uses: impl Fn(&VmRecord) -> bool) -> Vec<VmName> {
        let mut names: Vec<VmName> = self
            .shared
            .table()
            .vms
            .values()
            .filter(|entry| uses(&entry.view.borrow().record))
            .map(|entry| entry.name.clone())
            .collect();
        names.sort();
        names
    }

    /// Returns how many VMs have a VMM or are about to.
    #[must_use]
    pub fn running_vms(&self) -> usize {
        let table = self.shared.table();
        table
            .vms
            .values()
            .filter(|entry| {
                let view = entry.view.borrow();
                view.process.is_some() || view.record.state == VmState::Starting
            })
            .count()
    }

    /// Opens a lease, to be closed when its client's connection ends.
    #[must_use]
    pub fn lease_opened(&self) -> LeaseId {
        let lease = LeaseId::random();
        self.shared.table().leases.insert(lease.clone());
        lease
    }

    /// Closes a lease: its VMs are deleted, those still being created as well. Returns the
    /// deletions; nobody needs to wait for them.
    pub async fn lease_closed(&self, lease: &LeaseId) -> Vec<OperationHandle> {
        let bound: Vec<Entry> = {
            let mut table = self.shared.table();
            table.leases.remove(lease);
            let of_lease =
                |entry: &&Entry| entry.view.borrow().record.lease.as_ref() == Some(lease);
            table.vms.values().filter(of_lease).cloned().collect()
        };
        let mut deletions = Vec::new();
        for entry in bound {
            let (sender, answer) = oneshot::channel();
            let order = Order {
                request: Request::Delete,
                details: Details::default(),
                op_id: OperationId::random(),
            };
            if entry.mailbox.send(Message::Order(order, sender)).await.is_ok()
                && let Ok(Ok(answer)) = answer.await
            {
                deletions.push(answer.operation);
            }
        }
        deletions
    }

    /// Ends the engine's work: nothing new is taken, starts and imports are cancelled and undone,
    /// stops and deletions are waited for. VMs that run keep running.
    pub async fn shutdown(&self) {
        self.shared.table().closing = true;
        let active = self.shared.operations.active();
        for operation in &active {
            match operation.snapshot().kind {
                OperationKind::VmStop { .. } | OperationKind::VmDelete { .. } => {}
                _ => operation.cancel(),
            }
        }
        let ended = futures::future::join_all(active.iter().map(OperationHandle::ended));
        if tokio::time::timeout(SHUTDOWN_WAIT, ended).await.is_err() {
            tracing::warn!("operations under way at the daemon's end are left to its next start");
        }
    }
}

/// Watches one VM.
#[derive(Clone)]
pub struct VmWatch {
    view: watch::Receiver<View>,
}

impl std::fmt::Debug for VmWatch {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("VmWatch").field("state", &self.state()).finish()
    }
}

impl VmWatch {
    /// Returns the VM's state; `None` once it is deleted.
    #[must_use]
    pub fn state(&self) -> Option<VmState> {
        let view = self.view.borrow();
        (!view.gone).then_some(view.record.state)
    }

    /// Waits for the next change and returns the state. Cancel safe.
    pub async fn changed(&mut self) -> Option<VmState> {
        if self.view.changed().await.is_err() {
            return None;
        }
        self.view.borrow_and_update();
        self.state()
    }

    /// Waits until the VM has no VMM any more. Cancel safe.
    pub async fn ended(&mut self) {
        let ended = |view: &View| view.gone || view.process.is_none();
        // An error means that the task is gone, and with it whatever could change.
        let _ = self.view.wait_for(ended).await;
    }
}

fn options(how: &StopVm) -> Details {
    let grace = how.grace_ms.map(Duration::from_millis);
    Details { grace, force: how.force, ..Details::default() }
}

fn parse_signal(name: &str) -> Option<Signal> {
    let name = name.strip_prefix("SIG").unwrap_or(name);
    Some(match name {
        "TERM" => Signal::TERM,
        "KILL" => Signal::KILL,
        "INT" => Signal::INT,
        "HUP" => Signal::HUP,
        "QUIT" => Signal::QUIT,
        "USR1" => Signal::USR1,
        "USR2" => Signal::USR2,
        "ABRT" => Signal::ABORT,
        _ => return None,
    })
}
