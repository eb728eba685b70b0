//! Ports of guests that are reached through ports of the host.

use std::net::SocketAddr;
use std::sync::Arc;

use banger_guest_client::GuestChannel;
use banger_types::{Publication, VmId, VmName};

/// Why a port is not published.
#[derive(Debug, thiserror::Error)]
#[error("port {} of {} cannot be published", publication.host.port(), publication.host.ip())]
pub struct PortError {
    /// What was to be published.
    pub publication: Publication,
    /// The VM that has the host's port, if one has.
    pub holder: Option<VmName>,
    /// The cause.
    #[source]
    pub source: std::io::Error,
}

/// The host's ports that lead into guests.
///
/// Contract: what is published is open when `publish` returns and until `withdraw` does, whether the
/// guest answers or not; a connection that comes before `serve` waits for it.
pub trait Ports: Send + Sync {
    /// Opens exactly these ports for a VM: those that are open stay so with their connections, its
    /// others are closed. On a failure nothing is otherwise than before.
    fn publish(&self, vm: &VmId, name: &VmName, wanted: &[Publication]) -> Result<(), PortError>;

    /// Carries what arrives to the VM's guest.
    fn serve(&self, vm: &VmId, channel: Arc<dyn GuestChannel>);

    /// Closes all ports of a VM.
    fn withdraw(&self, vm: &VmId);

    /// Returns what of a VM is open, and where: a host's port of 0 has become another.
    fn open(&self, vm: &VmId) -> Vec<(Publication, SocketAddr)>;
}
