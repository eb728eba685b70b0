//! Published ports: sockets of the daemon's own that lead into guests through their agents.
//!
//! ```text
//! client ──► the host's port (here) ──► a stream to the guest's agent ──► 127.0.0.1:PORT in the guest
//! ```
//!
//! So they work in every mode, without root, whatever network the guest has, and for services that
//! listen on the guest's loopback address only. A client's connection is a stream of the guest's
//! channel: it ends with the daemon.

mod tcp;
mod udp;

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use banger_agent_api::ConnectCall;
use banger_engine::seams::{PortError, Ports};
use banger_guest_client::{AgentClient, BoxedStream, ChannelError, ClientError, GuestChannel};
use banger_types::{PortProtocol, Publication, VmId, VmName};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};
use tokio::sync::{Semaphore, watch};
use tokio_util::task::AbortOnDropHandle;

/// The most connections and flows into one guest at a time; its channel has twice as many streams,
/// so that commands still get one.
const STREAMS_MOST: usize = 128;
/// Connections that may wait to be accepted.
const BACKLOG: i32 = 128;
/// How long a client waits for the guest's agent.
const PATIENCE: Duration = Duration::from_secs(30);
/// After an error that may last, such as too many open files.
const PAUSE: Duration = Duration::from_millis(100);

/// All published ports of one daemon.
#[derive(Debug, Default)]
pub struct PublishedPorts {
    vms: Mutex<HashMap<VmId, OfVm>>,
}

/// What leads into one guest.
#[derive(Debug)]
struct OfVm {
    name: VmName,
    guest: watch::Sender<Option<AgentClient>>,
    streams: Arc<Semaphore>,
    open: HashMap<Publication, Open>,
}

#[derive(Debug)]
struct Open {
    address: SocketAddr,
    _task: AbortOnDropHandle<()>,
}

/// What a task that listens works with.
#[derive(Clone, Debug)]
struct Way {
    publication: Publication,
    guest: watch::Receiver<Option<AgentClient>>,
    streams: Arc<Semaphore>,
}

impl Way {
    /// Waits until the guest can be asked; none if the VM went away before.
    async fn client(&mut self) -> Option<AgentClient> {
        self.guest.wait_for(Option::is_some).await.ok()?.clone()
    }
}

/// Opens a stream to a port of the guest.
async fn connect(client: &AgentClient, call: ConnectCall) -> Result<BoxedStream, ClientError> {
    match client.connect(call.clone()).await {
        // Just adopted: its session is being taken up again. What comes of that shows in the call.
        Err(ClientError::Channel { source: ChannelError::Detached, .. }) => {
            let _ = tokio::time::timeout(PATIENCE, client.channel().wait_ready()).await;
            client.connect(call).await
        }
        other => other,
    }
}

enum Bound {
    Tcp(tokio::net::TcpListener),
    Udp(tokio::net::UdpSocket),
}

fn bind(publication: &Publication) -> io::Result<(Bound, SocketAddr)> {
    let address = publication.host;
    let (kind, protocol) = match publication.protocol {
        PortProtocol::Tcp => (Type::STREAM, Protocol::TCP),
        PortProtocol::Udp => (Type::DGRAM, Protocol::UDP),
    };
    let socket = Socket::new(Domain::for_address(address), kind, Some(protocol))?;
    socket.set_nonblocking(true)?;
    if address.is_ipv6() {
        // [::] is not 0.0.0.0 too: each is asked for in so many words.
        socket.set_only_v6(true)?;
    }
    if publication.protocol == PortProtocol::Tcp {
        // Connections of before that linger do not keep the port.
        socket.set_reuse_address(true)?;
    }
    socket.bind(&SockAddr::from(address))?;
    let bound = match publication.protocol {
        PortProtocol::Tcp => {
            socket.listen(BACKLOG)?;
            Bound::Tcp(tokio::net::TcpListener::from_std(socket.into())?)
        }
        PortProtocol::Udp => Bound::Udp(tokio::net::UdpSocket::from_std(socket.into())?),
    };
    let address = match &bound {
        Bound::Tcp(listener) => listener.local_addr()?,
        Bound::Udp(socket) => socket.local_addr()?,
    };
    Ok((bound, address))
}

impl PublishedPorts {
    fn vms(&self) -> MutexGuard<'_, HashMap<VmId, OfVm>> {
        self.vms.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether two sockets of one port would meet.
fn meets(one: &Publication, address: SocketAddr, other: &Publication) -> bool {
    let (ours, theirs) = (other.host.ip(), address.ip());
    let is_any = ours.is_unspecified() || theirs.is_unspecified();
    one.protocol == other.protocol
        && address.port() == other.host.port()
        && (ours == theirs || is_any && ours.is_ipv4() == theirs.is_ipv4())
}

impl Ports for PublishedPorts {
    fn publish(&self, vm: &VmId, name: &VmName, wanted: &[Publication]) -> Result<(), PortError> {
        let mut vms = self.vms();
        let of_vm = vms.get(vm);
        let guest = of_vm.map_or_else(|| watch::Sender::new(None), |of_vm| of_vm.guest.clone());
        let streams = of_vm.map_or_else(
            || Arc::new(Semaphore::new(STREAMS_MOST)),
            |of_vm| Arc::clone(&of_vm.streams),
        );
        let mut opened = HashMap::new();
        for publication in wanted {
            if of_vm.is_some_and(|of_vm| of_vm.open.contains_key(publication)) {
                continue;
            }
            let (bound, address) = bind(publication).map_err(|source| {
                let holder = vms.values().find(|other| {
                    let mut open = other.open.iter();
                    open.any(|(one, open)| meets(one, open.address, publication))
                });
                let holder = holder.map(|holder| holder.name.clone());
                PortError { publication: *publication, holder, source }
            })?;
            let (guest, streams) = (guest.subscribe(), Arc::clone(&streams));
            let way = Way { publication: *publication, guest, streams };
            let task = match bound {
                Bound::Tcp(listener) => tokio::spawn(tcp::serve(listener, way)),
                Bound::Udp(socket) => tokio::spawn(udp::serve(socket, way)),
            };
            opened.insert(*publication, Open { address, _task: AbortOnDropHandle::new(task) });
        }
        let mut open = vms.remove(vm).map(|of_vm| of_vm.open).unwrap_or_default();
        open.retain(|publication, _| wanted.contains(publication));
        open.extend(opened);
        vms.insert(vm.clone(), OfVm { name: name.clone(), guest, streams, open });
        Ok(())
    }

    fn serve(&self, vm: &VmId, channel: Arc<dyn GuestChannel>) {
        if let Some(of_vm) = self.vms().get(vm) {
            of_vm.guest.send_replace(Some(AgentClient::new(channel)));
        }
    }

    fn withdraw(&self, vm: &VmId) {
        self.vms().remove(vm);
    }

    fn open(&self, vm: &VmId) -> Vec<(Publication, SocketAddr)> {
        let vms = self.vms();
        let Some(of_vm) = vms.get(vm) else { return Vec::new() };
        let mut open: Vec<_> =
            of_vm.open.iter().map(|(publication, open)| (*publication, open.address)).collect();
        open.sort();
        open
    }
}
