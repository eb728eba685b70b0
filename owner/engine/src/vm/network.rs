//! What a VM's guest may on the network, and what of it is published, changed while it runs.

use banger_daemon_api::vm::{VmmChoice, Workspace};
use banger_types::{
    BytesPerSecond, GroupName, OperationId, OpsPerSecond, Publication, PublishedPort,
};

use super::{Body, ports};
use crate::error::EngineError;
use crate::seams::{VmmKind, no_network_limits};

/// What is to be otherwise; what is not said stays.
#[derive(Clone, Debug)]
pub(crate) struct NetworkChange {
    pub(crate) nat: Option<bool>,
    pub(crate) allow_lan: Option<bool>,
    pub(crate) group: Option<Option<GroupName>>,
    pub(crate) net_bandwidth: Option<Option<BytesPerSecond>>,
    pub(crate) net_packets: Option<Option<OpsPerSecond>>,
    pub(crate) publish: Vec<Publication>,
    pub(crate) unpublish: Vec<PublishedPort>,
    /// What the client has put into the guest.
    pub(crate) workspace: Option<Workspace>,
    pub(crate) op_id: OperationId,
}

impl NetworkChange {
    /// Nothing is to be otherwise.
    pub(crate) const fn of(op_id: OperationId) -> Self {
        Self {
            nat: None,
            allow_lan: None,
            group: None,
            net_bandwidth: None,
            net_packets: None,
            publish: Vec::new(),
            unpublish: Vec::new(),
            workspace: None,
            op_id,
        }
    }
}

/// Changes the guest's rules, if it has an address on the bridge, and the record. On a failure both
/// are as before. A guest without such an address gets its rules at its next start.
pub(super) async fn change_network(
    body: &mut Body,
    change: NetworkChange,
) -> Result<(), EngineError> {
    let ports = ports::changed(body, &change.publish, &change.unpublish)?;
    let before = body.record.spec.clone();
    let spec = &mut body.record.spec;
    spec.nat = change.nat.unwrap_or(spec.nat);
    spec.allow_lan = spec.nat && change.allow_lan.unwrap_or(spec.allow_lan);
    if let Some(group) = change.group {
        spec.group = group;
    }
    spec.ports = ports;
    let limits = &mut spec.net_limits;
    limits.bandwidth = change.net_bandwidth.unwrap_or(limits.bandwidth);
    limits.packets = change.net_packets.unwrap_or(limits.packets);
    let is_same = *spec == before;
    if let Some(workspace) = change.workspace {
        body.record.workspace = Some(workspace);
        if is_same {
            body.publish();
            return body.save(true).await;
        }
    }
    if is_same {
        return Ok(());
    }
    let spec = &body.record.spec;
    let is_limited = spec.net_limits != before.net_limits;
    if is_limited && !spec.net_limits.is_unlimited() && spec.vmm == VmmChoice::Qemu {
        body.record.spec = before;
        return Err(no_network_limits(VmmKind::Qemu).into());
    }
    let changed = apply(body, is_limited, &change.op_id).await;
    if changed.is_err() {
        body.record.spec = before;
        // The bridge's rules too, as far as they were changed.
        if let Err(error) = tell(body, is_limited, &change.op_id).await {
            tracing::warn!(vm = %body.record.id, error = %error.to_api(), "a guest's rules were not set back");
        }
    }
    body.publish();
    changed
}

async fn apply(body: &mut Body, limit: bool, op_id: &OperationId) -> Result<(), EngineError> {
    tell(body, limit, op_id).await?;
    body.save(true).await
}

async fn tell(body: &Body, limit: bool, op_id: &OperationId) -> Result<(), EngineError> {
    if let Some(process) = &body.process {
        if limit {
            process.limit_network(&body.record.spec.net_limits).await?;
        }
        ports::open(body, Some(process.as_ref()))?;
    }
    let (Some(network), Some(running)) = (&body.shared.network, &body.record.running) else {
        return Ok(());
    };
    let address = running.guest_ip.filter(|_| running.on_bridge);
    let guest = body.record.guest(address);
    if address.is_some() && body.process.is_some() {
        network.change(&guest, op_id).await?;
    }
    network.announce(guest);
    Ok(())
}
