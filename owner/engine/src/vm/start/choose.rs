//! What a VM starts with: the VMM, the root disk and the network that can be had here.

use std::net::Ipv4Addr;
use std::path::Path;
use std::sync::Arc;

use banger_agent_api::StaticNetwork;
use banger_daemon_api::vm::VmmChoice;
use banger_types::Subnet;

use super::Run;
use crate::error::EngineError;
use crate::record::{acceleration_name, vmm_name};
use crate::seams::{
    Acceleration, BaseImage, BootKernel, NetworkError, RootDisk, Vmm, VmmError, VmmKind,
    no_network_limits,
};

/// What takes the limits of a network card away.
const UNLIMITED: &str = "--net-bandwidth none --net-packets none";

/// QEMU's user-mode network (`-netdev user`): every guest is 10.0.2.15 behind its own gateway.
const USER_NETWORK: ([u8; 4], u8, [u8; 4], [u8; 4]) =
    ([10, 0, 2, 15], 24, [10, 0, 2, 2], [10, 0, 2, 3]);

/// Where a VM will run, known to be possible.
pub(super) struct Chosen {
    pub(super) vmm: Arc<dyn Vmm>,
    pub(super) acceleration: Acceleration,
    pub(super) root_disk: Arc<dyn RootDisk>,
    /// The image, for a VM that has no disks yet.
    pub(super) base: Option<BaseImage>,
    pub(super) kernel: BootKernel,
    pub(super) link: Link,
}

/// The network that a VM gets.
#[derive(Clone, Copy)]
pub(super) enum Link {
    /// A port of the host's bridge.
    Bridge(Subnet),
    /// The VMM's own.
    User,
    Nothing,
}

/// What the guest is told of its network.
pub(super) fn configuration(link: Link, guest_ip: Option<Ipv4Addr>) -> Option<StaticNetwork> {
    let (_, prefix, gateway, dns) = USER_NETWORK;
    let (prefix, gateway, dns) = match link {
        // The host's address answers for names.
        Link::Bridge(subnet) => (subnet.prefix(), subnet.gateway(), subnet.gateway()),
        Link::User => (prefix, gateway.into(), dns.into()),
        Link::Nothing => return None,
    };
    Some(StaticNetwork { address: guest_ip?, prefix, gateway: Some(gateway), dns: vec![dns] })
}

impl Run<'_> {
    /// Chooses the first VMM, in the order of preference, that can run here and boot from the VM's
    /// root disk, and says why in one line.
    pub(super) async fn choose(
        &self,
        base: Option<BaseImage>,
        kernel: BootKernel,
    ) -> Result<(Chosen, String, Option<String>), EngineError> {
        let record = &self.body.record;
        let wanted = match record.spec.vmm {
            VmmChoice::Auto => None,
            VmmChoice::Firecracker => Some(VmmKind::Firecracker),
            VmmChoice::Qemu => Some(VmmKind::Qemu),
        };
        let (mut refused, mut hint) = (Vec::new(), None);
        let (subnet, no_bridge) = self.bridge().await?;
        for kind in [VmmKind::Firecracker, VmmKind::Qemu] {
            if wanted.is_some_and(|wanted| wanted != kind) {
                continue;
            }
            let Some(vmm) = self.body.vmm(kind) else {
                refused.push(format!("{}: this build has no driver for it", vmm_name(kind)));
                continue;
            };
            if !record.spec.net_limits.is_unlimited() && !vmm.limits_network() {
                let error = no_network_limits(kind);
                refused.push(format!("{}: {error}", vmm_name(kind)));
                hint.get_or_insert_with(|| format!("banger vm set {} {UNLIMITED}", record.name));
                continue;
            }
            let acceleration = match vmm.probe().await {
                Ok(acceleration) => acceleration,
                Err(error) => {
                    if let VmmError::Unavailable { hint: what_to_do, .. } = &error {
                        hint = Some(what_to_do.clone());
                    }
                    refused.push(format!("{}: {error}", vmm_name(kind)));
                    continue;
                }
            };
            let link = match subnet {
                Some(subnet) => Link::Bridge(subnet),
                None if vmm.has_user_network() => Link::User,
                None if wanted.is_none() => {
                    let name = vmm_name(kind);
                    refused
                        .push(format!("{name}: its machines would have no network: {no_bridge}"));
                    continue;
                }
                None => Link::Nothing,
            };
            let Some(root_disk) = self.root_disk(&vmm, base.as_ref()).await? else {
                refused.push(format!("{}: it cannot boot from the root disk", vmm_name(kind)));
                continue;
            };
            let how = format!("{} with {}", vmm_name(kind), acceleration_name(acceleration));
            let why = match (wanted, refused.is_empty()) {
                (Some(_), _) => format!("{how}, as asked"),
                (None, true) => format!("{how}, the best that can run here"),
                (None, false) => format!("{how}, because {}", refused.join("; ")),
            };
            // Where there is no helper at all, nobody expects a bridge.
            let worth_a_word = subnet.is_none() && self.body.shared.network.is_some();
            let note = worth_a_word.then_some(no_bridge);
            return Ok((Chosen { vmm, acceleration, root_disk, base, kernel, link }, why, note));
        }
        Err(EngineError::NoVmm {
            why: refused.join("; "),
            hint: hint.unwrap_or_else(|| "use --vmm auto".to_owned()),
        })
    }

    /// Returns the bridge's subnet, or why VMs do without.
    async fn bridge(&self) -> Result<(Option<Subnet>, String), EngineError> {
        let Some(network) = &self.body.shared.network else {
            return Ok((None, "there is no root helper".to_owned()));
        };
        match network.ready().await {
            Ok(Some(subnet)) => Ok((Some(subnet), String::new())),
            Ok(None) => Ok((None, "network.mode is user".to_owned())),
            Err(error @ NetworkError::Unavailable { .. }) => Ok((None, error.to_string())),
            Err(error) => Err(error.into()),
        }
    }

    /// Returns the address that the VM has on its network, if that gives it one.
    pub(super) fn address(&mut self, link: Link) -> Result<Option<Ipv4Addr>, EngineError> {
        let subnet = match link {
            Link::Bridge(subnet) => subnet,
            Link::User => return Ok(Some(USER_NETWORK.0.into())),
            Link::Nothing => return Ok(None),
        };
        let body = &mut *self.body;
        let number = body.shared.address_number(&body.record.id, body.record.address_number);
        body.record.address_number = Some(number);
        subnet.guest(number).map(Some).ok_or_else(|| NetworkError::Full { subnet }.into())
    }

    async fn root_disk(
        &self,
        vmm: &Arc<dyn Vmm>,
        base: Option<&BaseImage>,
    ) -> Result<Option<Arc<dyn RootDisk>>, EngineError> {
        if let Some(disks) = &self.body.record.disks {
            return Ok(vmm.root_disks().into_iter().find(|one| one.kind() == disks.root.kind));
        }
        let base_dir = base.and_then(|base| base.rootfs.parent()).unwrap_or(Path::new("/"));
        let base_size = base.map_or(0, |base| base.size);
        let wanted = self.body.record.spec.root_size.bytes();
        for one in vmm.root_disks() {
            // A root disk is at least as large as its base.
            let size = wanted.max(base_size);
            if one.largest(base_size).is_none_or(|largest| size <= largest)
                && one.usable(base_dir, &self.body.shared.vms_dir).await?
            {
                return Ok(Some(one));
            }
        }
        Ok(None)
    }
}
