//! What changes while a VM runs: what its guest may on the network, and which of its ports are
//! published. And the deletion of one that does not.

use banger_daemon_api::vm::{ChangePorts, ChangeVm, Vm};
use banger_types::{OperationId, VmReference};
use tokio::sync::oneshot;

use super::{Engine, Started};
use crate::admission::{self, Request};
use crate::error::EngineError;
use crate::vm::{self, Change, Details, Message, NetworkChange};

impl Engine {
    /// Says whether a VM may have larger disks than the host could hold; of those that start, are made or
    /// grow from now on.
    pub fn set_overcommit(&self, overcommit: bool) {
        self.shared.overcommit.store(overcommit, std::sync::atomic::Ordering::Relaxed);
    }

    /// Returns how many bytes the disks of a new VM may grow to; `None` where that is not bounded.
    ///
    /// # Errors
    /// The host does not say what it has free.
    pub fn disk_headroom(&self) -> Result<Option<u64>, EngineError> {
        if self.shared.overcommit.load(std::sync::atomic::Ordering::Relaxed) {
            return Ok(None);
        }
        let free = self.shared.host.free_disk(&self.shared.vms_dir)?;
        Ok(Some(admission::disk_headroom(free)))
    }

    /// Changes what the guest may on the network, at once where it is on the bridge, notes what a client
    /// has put into it, and returns the VM.
    pub async fn change(
        &self,
        vm: &VmReference,
        change: &ChangeVm,
        op_id: OperationId,
    ) -> Result<Vm, EngineError> {
        let group = change.group.as_deref().map(|name| match name {
            "" => Ok(None),
            name => name.parse().map(Some),
        });
        let group = group.transpose().map_err(|source| EngineError::Group { source })?;
        let change = NetworkChange {
            nat: change.nat,
            allow_lan: change.allow_lan,
            group,
            net_bandwidth: change.net_bandwidth,
            net_packets: change.net_packets,
            workspace: change.workspace.clone(),
            ..NetworkChange::of(op_id)
        };
        self.order_change(vm, change).await
    }

    /// Publishes ports of a VM's guest and ends other publications, in one step, and returns the VM.
    /// Of a VM that does not run they are opened at its next start.
    pub async fn change_ports(
        &self,
        vm: &VmReference,
        change: ChangePorts,
        op_id: OperationId,
    ) -> Result<Vm, EngineError> {
        let ChangePorts { publish, unpublish } = change;
        let change = NetworkChange { publish, unpublish, ..NetworkChange::of(op_id) };
        self.order_change(vm, change).await
    }

    /// Deletes a VM and its disks, unless it runs or anything is under way that could make it.
    pub async fn delete_idle(
        &self,
        vm: &VmReference,
        op_id: OperationId,
    ) -> Result<Started, EngineError> {
        self.order(vm, Request::DeleteIdle, Details::default(), op_id).await
    }

    async fn order_change(
        &self,
        vm: &VmReference,
        change: NetworkChange,
    ) -> Result<Vm, EngineError> {
        self.order_any_change(vm, Change::Network(Box::new(change))).await
    }

    pub(super) async fn order_any_change(
        &self,
        vm: &VmReference,
        change: Change,
    ) -> Result<Vm, EngineError> {
        let (id, entry) = self.resolve(vm)?;
        let (sender, answer) = oneshot::channel();
        let gone = || vm::task_gone(&entry.view.borrow().record);
        entry.mailbox.send(Message::Change(change, sender)).await.map_err(|_| gone())?;
        answer.await.map_err(|_| gone())??;
        self.get(&VmReference::from(&id)).await
    }
}
