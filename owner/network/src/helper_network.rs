//! The engine's network over the root helper.
//!
//! ```text
//! first start: subnet (set, remembered, or free) ─► priv.ensure_bridge ─► name server on its address
//!   ─► priv.sync_resolver_routing;  each VM: priv.create_tap ─► priv.ensure_nat ... priv.delete_tap
//! ```

use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use banger_daemon_api::config::{NetworkConfig, NetworkMode};
use banger_dns::{Host, Server, Upstreams, Zone};
use banger_engine::seams::{
    Attachment, Guest, Network, NetworkError, hardware_address, hardware_text,
};
use banger_helper_api::{
    ClearResolverRoutingParams, CreateTapParams, DNS_PORTS, DeleteTapParams, Empty,
    EnsureBridgeParams, EnsureNatParams, ErrorCode, Method, SyncResolverRoutingParams,
};
use banger_helper_client::{CallError, HelperClient};
use banger_types::{OperationId, Subnet, VmId};

use crate::pool::{Pool, interfaces};
use crate::record::{Record, RecordFile};
use crate::routes::RouteChanges;
use crate::subnet;

/// How many free subnets are tried: another program may take one at the same moment.
const SUBNETS: usize = 8;
/// The host's routes.
const ROUTES: &str = "/proc/net/fib_trie";

/// The network of one daemon.
#[derive(Debug)]
pub struct HelperNetwork {
    helper: HelperClient,
    bridge: String,
    record: RecordFile,
    zone: Zone,
    pool: Pool,
    settings: Mutex<NetworkConfig>,
    /// Known as soon as it was set up once.
    known: Mutex<Option<Subnet>>,
    /// Held while the bridge is set up.
    up: tokio::sync::Mutex<Option<Up>>,
}

/// A bridge that is there.
#[derive(Debug)]
struct Up {
    subnet: Subnet,
    /// Where guests are to ask for names.
    port: u16,
    server: Option<Server>,
}

/// A network of somebody else's that overlaps with the bridge's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Collision {
    /// The bridge's subnet.
    pub own: Subnet,
    /// The other's, and the length of its prefix.
    pub other: subnet::Taken,
    /// One that is free.
    pub free: Option<Subnet>,
}

impl Collision {
    /// Returns what to do, once no VM is on the bridge.
    #[must_use]
    pub fn hint(&self) -> String {
        let free = self.free.map_or_else(|| "ADDRESS/PREFIX".to_owned(), |free| free.to_string());
        format!("stop the machines on it, then: banger config set network.subnet {free}")
    }
}

impl std::fmt::Display for Collision {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (network, prefix) = self.other;
        write!(
            out,
            "the machines' subnet {} overlaps with {network}/{prefix} of this host, which came later",
            self.own
        )
    }
}

/// What there is, for `doctor`.
#[derive(Clone, Debug)]
pub enum Status {
    /// QEMU's own network was asked for.
    Off,
    /// No VM has needed it yet.
    Idle,
    /// It is there.
    Up {
        /// Its subnet.
        subnet: Subnet,
        /// Where names are answered, if they are.
        names: Option<SocketAddr>,
        /// How many taps wait for a guest.
        waiting: usize,
    },
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Returns the name of a tap that is made for a VM: it is found by that.
fn own_tap(vm: &VmId) -> String {
    format!("tap-fc-{}", &vm.short()[..8])
}

/// Why a bridge was not set up.
enum NoBridge {
    /// The subnet is somebody else's.
    Taken(String),
    Failed(CallError),
}

impl HelperNetwork {
    /// Makes one; nothing is asked of the helper before a VM starts or [`Self::wake`].
    #[must_use]
    pub fn new(
        helper: HelperClient,
        bridge: String,
        state: &Path,
        settings: NetworkConfig,
    ) -> Self {
        let record = RecordFile::new(state.join("network.json"));
        let known = settings.subnet.or_else(|| record.read().map(|record| record.subnet));
        let taps = state.join("taps.json");
        let pool = Pool::open(helper.clone(), bridge.clone(), taps);
        Self {
            helper,
            bridge,
            record,
            zone: Zone::default(),
            pool,
            settings: Mutex::new(settings),
            known: Mutex::new(known),
            up: tokio::sync::Mutex::default(),
        }
    }

    /// Returns the bridge's name.
    #[must_use]
    pub fn bridge(&self) -> &str {
        &self.bridge
    }

    /// Sets the bridge up where there was one before: names are answered again.
    pub async fn wake(&self) {
        if self.record.read().is_none() {
            return;
        }
        if let Err(error) = self.ready().await {
            let cause = std::error::Error::source(&error).map(ToString::to_string);
            tracing::warn!(%error, cause, "the bridge is not as it was");
        }
    }

    /// Has the helper look at the host's uplinks whenever a route has changed, for as long as this is
    /// polled. Without it the helper looks once a minute.
    pub async fn follow_routes(&self) {
        let followed = async {
            let changes = RouteChanges::open()?;
            loop {
                changes.next().await?;
                self.look_again().await;
            }
        };
        let Err::<std::convert::Infallible, std::io::Error>(error) = followed.await;
        tracing::warn!(%error, "routes are not followed; the helper looks once a minute");
    }

    /// Asks for the bridge, if it is still there (its end changes routes, too): the helper then sees to
    /// all that its guests need.
    async fn look_again(&self) {
        let up = self.up.lock().await;
        let Some(Up { subnet, port, .. }) = up.as_ref() else { return };
        if !interfaces().contains(&self.bridge) {
            return;
        }
        if let Err(error) = self.ensure_bridge(*subnet, *port).await {
            tracing::warn!(%error, "the host's routes have changed, and the bridge is not as it was");
        }
    }

    async fn ensure_bridge(&self, subnet: Subnet, port: u16) -> Result<(), CallError> {
        let params = EnsureBridgeParams {
            bridge_name: self.bridge.clone(),
            bridge_ip: subnet.gateway().to_string(),
            cidr: subnet.prefix().to_string(),
            dns_port: Some(port),
        };
        let asked = self.helper.call::<_, Empty>(Method::EnsureBridge, &params, "").await;
        asked.map(drop)
    }

    /// Says what there is.
    pub async fn status(&self) -> Status {
        if lock(&self.settings).mode == NetworkMode::User {
            return Status::Off;
        }
        self.up.lock().await.as_ref().map_or(Status::Idle, |up| Status::Up {
            subnet: up.subnet,
            names: up.server.as_ref().map(Server::address),
            waiting: self.pool.waiting(),
        })
    }

    /// Looks whether somebody else's address or route has come into the bridge's subnet.
    #[must_use]
    pub fn collided(&self) -> Option<Collision> {
        let own = self.subnet()?;
        let table = std::fs::read_to_string(ROUTES).ok()?;
        let other = subnet::collision(&table, &own)?;
        let free = subnet::free(&subnet::taken(&table)).next();
        Some(Collision { own, other, free })
    }

    /// Ends what waits for guests: with the daemon's end nobody would. The bridge stays.
    pub async fn close(&self) {
        self.pool.close().await;
    }

    /// Takes other settings; `users` are the names of VMs on the bridge, which keep a subnet from
    /// being changed. On a failure nothing is changed.
    pub async fn configure(
        &self,
        settings: NetworkConfig,
        users: Vec<String>,
    ) -> Result<(), NetworkError> {
        let before = lock(&self.settings).clone();
        let mut up = self.up.lock().await;
        if settings.mode == before.mode && settings.subnet == before.subnet {
            if let Some(server) = up.as_ref().and_then(|up| up.server.as_ref()) {
                server.set_upstreams(Upstreams::of(&settings.dns));
            }
            self.pool.set(up.as_ref().map(|up| up.subnet), settings.tap_pool);
            *lock(&self.settings) = settings;
            return Ok(());
        }
        let now = up.as_ref().map(|up| up.subnet);
        let is_same_subnet = settings.subnet == before.subnet || settings.subnet == now;
        let keeps_bridge = is_same_subnet && settings.mode != NetworkMode::User;
        if !keeps_bridge && !users.is_empty() {
            return Err(NetworkError::InUse { vms: users });
        }
        let was_up = up.take().is_some();
        *lock(&self.settings) = settings.clone();
        let set_up = match (settings.mode, settings.subnet) {
            (NetworkMode::User, _) => {
                self.pool.set(None, 0);
                if was_up {
                    let bridge_name = self.bridge.clone();
                    let params = ClearResolverRoutingParams { bridge_name };
                    let asked = Method::ClearResolverRouting;
                    let cleared = self.helper.call::<_, Empty>(asked, &params, "").await;
                    if let Err(error) = cleared {
                        tracing::warn!(%error, "the host's resolver was not told");
                    }
                }
                Ok(())
            }
            // What is asked for is tried, so that the answer says whether it can be.
            (_, Some(_)) => self.set_up(&mut up).await.map(drop),
            (_, None) if was_up => self.set_up(&mut up).await.map(drop),
            (_, None) => Ok(()),
        };
        if set_up.is_err() {
            *lock(&self.settings) = before;
            if was_up && let Err(error) = self.set_up(&mut up).await {
                tracing::error!(%error, "the bridge was not set back");
            }
        }
        set_up
    }

    async fn set_up(&self, up: &mut Option<Up>) -> Result<Subnet, NetworkError> {
        if let Some(up) = up {
            return Ok(up.subnet);
        }
        let settings = lock(&self.settings).clone();
        let made = match settings.subnet {
            Some(subnet) => self.make(subnet, &settings).await.map_err(|failure| match failure {
                NoBridge::Failed(error) => self.unavailable(error),
                NoBridge::Taken(why) => {
                    let taken = routes();
                    let another = subnet::free(&taken).find(|free| *free != subnet);
                    let hint = another.map_or_else(
                        || "banger config set network.subnet ADDRESS/PREFIX".to_owned(),
                        |free| format!("banger config set network.subnet {free} (or auto)"),
                    );
                    NetworkError::Subnet { subnet, why, hint }
                }
            }),
            None => self.make_any(&settings).await,
        };
        // Asked for in so many words, its lack is not to be passed over.
        let made = made.map_err(|error| match error {
            NetworkError::Unavailable { ref hint, .. } if settings.mode == NetworkMode::Bridge => {
                let act = "making the bridge that network.mode asks for".to_owned();
                let hint = Some(hint.clone());
                NetworkError::Failed { act, hint, source: Box::new(error) }
            }
            other => other,
        })?;
        let subnet = made.subnet;
        *lock(&self.known) = Some(subnet);
        self.pool.set(Some(subnet), settings.tap_pool);
        *up = Some(made);
        Ok(subnet)
    }

    /// Sets up the subnet of before, else the first that is free.
    async fn make_any(&self, settings: &NetworkConfig) -> Result<Up, NetworkError> {
        let before = self.record.read().map(|record| record.subnet);
        let taken = routes();
        let mut last = None;
        for subnet in before.into_iter().chain(subnet::free(&taken).take(SUBNETS)) {
            match self.make(subnet, settings).await {
                Ok(up) => return Ok(up),
                Err(NoBridge::Taken(why)) => {
                    tracing::warn!(%subnet, why, "the guests' subnet is another's; trying the next");
                    last = Some((subnet, why));
                }
                Err(NoBridge::Failed(error)) => return Err(self.unavailable(error)),
            }
        }
        let hint = "banger config set network.subnet ADDRESS/PREFIX".to_owned();
        Err(match last {
            Some((subnet, why)) => NetworkError::Subnet { subnet, why, hint },
            None => NetworkError::Unavailable { why: "no subnet is free".to_owned(), hint },
        })
    }

    async fn make(&self, subnet: Subnet, settings: &NetworkConfig) -> Result<Up, NoBridge> {
        let before = self.record.read();
        if before.is_some_and(|before| before.subnet != subnet) {
            // A bridge with ports does not move.
            self.pool.empty().await;
        }
        let before = before.map(|record| record.port);
        // One of an earlier version's ports is none any more.
        let before = before.filter(|port| DNS_PORTS.contains(port));
        let ports = DNS_PORTS.filter(|port| Some(*port) != before).collect::<Vec<_>>();
        let (mut server, mut last) = (None, *DNS_PORTS.start());
        for port in before.into_iter().chain(ports) {
            last = port;
            self.ensure_bridge(subnet, port).await.map_err(|error| match error {
                CallError::Helper { error, .. } if is_about_subnet(&error.message) => {
                    NoBridge::Taken(error.message)
                }
                other => NoBridge::Failed(other),
            })?;
            self.zone.set_subnet(subnet);
            let address = SocketAddr::new(subnet.gateway().into(), port);
            let upstreams = Upstreams::of(&settings.dns);
            match Server::start(address, self.zone.clone(), upstreams).await {
                Ok(started) => {
                    server = Some(started);
                    self.record.write(&Record { subnet, port });
                    break;
                }
                Err(error) if error.source.kind() == std::io::ErrorKind::AddrInUse => {
                    tracing::warn!(%error, "another process has the name server's port; trying the next");
                }
                Err(error) => {
                    let cause = &error.source;
                    tracing::error!(%error, %cause, "the name server does not start");
                    break;
                }
            }
        }
        match &server {
            Some(server) => self.tell_resolver(server.address()).await,
            None => tracing::error!("there is no name server: guests have no names"),
        }
        Ok(Up { subnet, port: last, server })
    }

    /// Lets the host ask us for names of VMs. A host without systemd-resolved does without.
    async fn tell_resolver(&self, address: SocketAddr) {
        let params = SyncResolverRoutingParams {
            bridge_name: self.bridge.clone(),
            server_addr: address.to_string(),
        };
        let asked = self.helper.call::<_, Empty>(Method::SyncResolverRouting, &params, "").await;
        if let Err(error) = asked {
            tracing::warn!(%error, "the host's resolver does not know the names of VMs");
        }
    }

    fn unavailable(&self, error: CallError) -> NetworkError {
        let why = match &error {
            CallError::Helper { error, .. } => error.message.clone(),
            other => std::error::Error::source(other)
                .map_or_else(|| other.to_string(), |cause| format!("{other}: {cause}")),
        };
        let hint = error.hint().map_or_else(
            || {
                let bridge = &self.bridge;
                format!("banger doctor says more; banger config set network.mode user does without {bridge}")
            },
            str::to_owned,
        );
        NetworkError::Unavailable { why, hint }
    }

    /// Returns the tap that a VM has.
    fn tap_of(&self, vm: &VmId) -> String {
        self.pool.of(vm).unwrap_or_else(|| own_tap(vm))
    }

    async fn make_tap(
        &self,
        guest: &Guest,
        tap: String,
        wants_descriptor: bool,
        op_id: &OperationId,
    ) -> Result<Attachment, CallError> {
        let (Some(subnet), Some(address)) = (*lock(&self.known), guest.address) else {
            let source = std::io::Error::other("the guest has no address");
            return Err(CallError::Answer { method: Method::CreateTap, source });
        };
        let params = CreateTapParams {
            bridge_name: self.bridge.clone(),
            bridge_ip: subnet.gateway().to_string(),
            cidr: subnet.prefix().to_string(),
            tap_name: tap.clone(),
            guest_mac: Some(hardware_text(hardware_address(address))),
            guest_ip: Some(address.to_string()),
            group: guest.group.as_ref().map(ToString::to_string),
            isolated: None,
            return_fd: wants_descriptor,
        };
        let (Empty {}, descriptor) =
            self.helper.call_for_descriptor(Method::CreateTap, &params, op_id.as_str()).await?;
        Ok(Attachment { tap, descriptor })
    }

    /// Makes it; where somebody took the bridge away, or changed it, that is put right once.
    async fn make_tap_again(
        &self,
        guest: &Guest,
        tap: String,
        wants_descriptor: bool,
        op_id: &OperationId,
    ) -> Result<Result<Attachment, CallError>, NetworkError> {
        match self.make_tap(guest, tap.clone(), wants_descriptor, op_id).await {
            Err(CallError::Helper { error, .. })
                if error.code == ErrorCode::BadParams && error.message.starts_with("bridge_") =>
            {
                tracing::warn!(message = error.message, "the bridge is set up again");
                *self.up.lock().await = None;
                self.ready().await?;
                Ok(self.make_tap(guest, tap, wants_descriptor, op_id).await)
            }
            made => Ok(made),
        }
    }

    async fn set_nat(&self, guest: &Guest, op_id: &OperationId) -> Result<(), CallError> {
        let params = EnsureNatParams {
            guest_ip: guest.address.map(|address| address.to_string()).unwrap_or_default(),
            tap: self.tap_of(&guest.vm),
            enable: guest.nat,
            allow_lan: guest.allow_lan,
        };
        self.helper.call::<_, Empty>(Method::EnsureNat, &params, op_id.as_str()).await.map(drop)
    }
}

/// The helper's words for a subnet that cannot be the bridge's.
fn is_about_subnet(message: &str) -> bool {
    message.starts_with("bridge_ip")
}

/// What the host has; an unreadable table is an empty one, because the helper looks too.
fn routes() -> Vec<subnet::Taken> {
    std::fs::read_to_string(ROUTES).map(|text| subnet::taken(&text)).unwrap_or_default()
}

fn failed(act: String) -> impl FnOnce(CallError) -> NetworkError {
    move |error| {
        let hint = error.hint().map(str::to_owned);
        NetworkError::Failed { act, hint, source: Box::new(error) }
    }
}

#[async_trait]
impl Network for HelperNetwork {
    async fn ready(&self) -> Result<Option<Subnet>, NetworkError> {
        if lock(&self.settings).mode == NetworkMode::User {
            return Ok(None);
        }
        let mut up = self.up.lock().await;
        self.set_up(&mut up).await.map(Some)
    }

    fn warning(&self) -> Option<String> {
        let collision = self.collided()?;
        Some(format!("{collision}; {}", collision.hint()))
    }

    fn subnet(&self) -> Option<Subnet> {
        let is_off = lock(&self.settings).mode == NetworkMode::User;
        lock(&self.known).filter(|_| !is_off)
    }

    async fn attach(
        &self,
        guest: &Guest,
        wants_descriptor: bool,
        op_id: &OperationId,
    ) -> Result<Attachment, NetworkError> {
        let act = || format!("making the tap of VM {}", guest.name);
        let made = match self.pool.take(&guest.vm) {
            None => self.make_tap_again(guest, own_tap(&guest.vm), wants_descriptor, op_id).await?,
            Some(tap) => {
                let made = self.make_tap_again(guest, tap.clone(), wants_descriptor, op_id).await?;
                match made {
                    Err(error) => {
                        tracing::warn!(tap, %error, "a tap that waited is of no use");
                        let given_back = self.pool.give_back(&guest.vm, op_id.as_str()).await;
                        given_back.map_err(failed(format!("removing tap {tap}")))?;
                        let tap = own_tap(&guest.vm);
                        self.make_tap_again(guest, tap, wants_descriptor, op_id).await?
                    }
                    made => made,
                }
            }
        };
        self.pool.settle();
        let made = made.map_err(failed(act()))?;
        if guest.nat
            && let Err(error) = self.set_nat(guest, op_id).await
        {
            if let Err(undo) = self.detach(&guest.vm, op_id).await {
                tracing::error!(vm = %guest.vm, error = %undo, "a tap was not removed");
            }
            return Err(failed(format!("letting VM {} out", guest.name))(error));
        }
        Ok(made)
    }

    async fn change(&self, guest: &Guest, op_id: &OperationId) -> Result<(), NetworkError> {
        let act = || format!("changing what VM {} may on the network", guest.name);
        let tap = self.tap_of(&guest.vm);
        self.make_tap(guest, tap, false, op_id).await.map_err(failed(act()))?;
        self.set_nat(guest, op_id).await.map_err(failed(act()))
    }

    async fn detach(&self, vm: &VmId, op_id: &OperationId) -> Result<(), NetworkError> {
        let act = || failed(format!("removing tap {}", self.tap_of(vm)));
        if self.pool.give_back(vm, op_id.as_str()).await.map_err(act())? {
            return Ok(());
        }
        let params = DeleteTapParams { tap_name: own_tap(vm) };
        let asked = self.helper.call::<_, Empty>(Method::DeleteTap, &params, op_id.as_str());
        let Empty {} = asked.await.map_err(act())?;
        Ok(())
    }

    fn taps(&self) -> Vec<(String, VmId)> {
        self.pool.used()
    }

    fn announce(&self, guest: Guest) {
        self.zone.add(Host {
            vm: guest.vm,
            name: guest.name,
            address: guest.address,
            group: guest.group,
            nat: guest.nat,
        });
    }

    fn withdraw(&self, vm: &VmId) {
        self.zone.remove(vm);
    }
}
