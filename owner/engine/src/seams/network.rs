//! The network that VMs share with the host.

use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;

use async_trait::async_trait;
use banger_types::{GroupName, OperationId, Subnet, VmId, VmName};

/// A VM as the network knows it: who it is, and what its guest may.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Guest {
    /// The VM.
    pub vm: VmId,
    /// Its name.
    pub name: VmName,
    /// Its address; none on a network of its VMM's own.
    pub address: Option<Ipv4Addr>,
    /// Whether it may reach the world.
    pub nat: bool,
    /// Whether that includes private networks.
    pub allow_lan: bool,
    /// The guests that it reaches.
    pub group: Option<GroupName>,
}

/// A tap that is there for a VM.
#[derive(Debug)]
pub struct Attachment {
    /// Its name.
    pub tap: String,
    /// The open tap, where it was asked for.
    pub descriptor: Option<OwnedFd>,
}

/// Why there is no network.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// The host cannot have one: VMs with a network of their own can do without.
    #[error("the bridge is not to be had: {why}")]
    Unavailable {
        /// Why not.
        why: String,
        /// What to do about it.
        hint: String,
    },
    /// The subnet that is set is somebody else's.
    #[error("the guests' subnet {subnet} cannot be used: {why}")]
    Subnet {
        /// The subnet.
        subnet: Subnet,
        /// Why not.
        why: String,
        /// What to do about it.
        hint: String,
    },
    /// All addresses are given away.
    #[error("the guests' subnet {subnet} has room for {} VMs and they are here", subnet.capacity())]
    Full {
        /// The subnet.
        subnet: Subnet,
    },
    /// VMs use what was to be changed.
    #[error("VMs use the network: {}", vms.join(", "))]
    InUse {
        /// Their names.
        vms: Vec<String>,
    },
    /// An act failed.
    #[error("{act}")]
    Failed {
        /// The act and its object, as a participle: `making tap tap-fc-0`.
        act: String,
        /// What to do next, where that is known.
        hint: Option<String>,
        /// The cause.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

/// Returns the hardware address of the guest with this address: locally administered, and the same
/// at each start.
#[must_use]
pub fn hardware_address(address: Ipv4Addr) -> [u8; 6] {
    let [a, b, c, d] = address.octets();
    [0x06, 0x00, a, b, c, d]
}

/// Returns a hardware address as people write it.
#[must_use]
pub fn hardware_text([a, b, c, d, e, f]: [u8; 6]) -> String {
    format!("{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}")
}

/// The host's bridge, the taps on it, and the names of those behind.
///
/// Contract: `attach` leaves either a whole tap or none, and finds its own of before; `detach` finds
/// a VM's tap by the VM's id alone, and none is no failure; what a guest may is so before `attach`
/// or `change` returns.
#[async_trait]
pub trait Network: Send + Sync {
    /// Makes sure that the bridge is there and returns its subnet; `None` where VMs are to have their
    /// VMM's own network.
    async fn ready(&self) -> Result<Option<Subnet>, NetworkError>;

    /// Returns what is wrong with a bridge that is there, in words.
    fn warning(&self) -> Option<String> {
        None
    }

    /// Returns the subnet, if it is known without asking anyone.
    fn subnet(&self) -> Option<Subnet>;

    /// Makes the tap of a guest with an address, of [`hardware_address`]; opened if that is
    /// wanted.
    async fn attach(
        &self,
        guest: &Guest,
        wants_descriptor: bool,
        op_id: &OperationId,
    ) -> Result<Attachment, NetworkError>;

    /// Changes what a guest that has a tap may.
    async fn change(&self, guest: &Guest, op_id: &OperationId) -> Result<(), NetworkError>;

    /// Removes the tap of a VM whose VMM has ended.
    async fn detach(&self, vm: &VmId, op_id: &OperationId) -> Result<(), NetworkError>;

    /// Returns the taps that VMs have and that do not tell by their names whose they are.
    fn taps(&self) -> Vec<(String, VmId)> {
        Vec::new()
    }

    /// Lets a guest's name be known, or what it may see.
    fn announce(&self, guest: Guest);

    /// Takes that back.
    fn withdraw(&self, vm: &VmId);
}
