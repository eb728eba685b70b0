//! Grants of the methods on the network.

use std::net::Ipv4Addr;

use banger_helper_api::{
    ClearResolverRoutingParams, CreateTapParams, DNS_PORTS, DeleteTapParams, EnsureBridgeParams,
    EnsureNatParams, Network, SyncResolverRoutingParams,
};

use crate::name::given;
use crate::{
    BridgeName, GroupName, MacAddress, NetworkConfig, Refusal, ResolverAddress, Result, TapName,
    ipv4,
};

/// A bridge as it is to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bridge {
    /// The bridge, its address and its subnet.
    pub network: NetworkConfig,
    /// The port that guests' questions for names are sent to; port 53 without. Above 1023: a port
    /// that `bangerd` can listen on.
    pub dns_port: Option<u16>,
}

/// A tap as it is to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tap {
    /// The bridge that it is to be a port of.
    pub network: NetworkConfig,
    /// Its name.
    pub name: TapName,
    /// What its guest may call itself.
    pub anti_spoof: Option<AntiSpoof>,
    /// The taps that it may reach.
    pub group: Option<GroupName>,
    /// Whether the bridge keeps it from other isolated ports.
    pub is_isolated: bool,
    /// Whether the open tap is asked for.
    pub wants_fd: bool,
}

/// The only source addresses of a guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AntiSpoof {
    /// On the link.
    pub mac: MacAddress,
    /// On the network; in the bridge's subnet.
    pub ip: Ipv4Addr,
}

/// A guest's way out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Nat {
    /// The guest's address; that it lies in the subnet of the tap's bridge is the host's to check.
    pub guest: Ipv4Addr,
    /// The tap that it is behind.
    pub tap: TapName,
    /// Whether there is one.
    pub is_enabled: bool,
    /// Whether it leads to private networks too.
    pub allows_lan: bool,
}

/// Where questions for `.vm` go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResolverRoute {
    /// The link that the route is tied to.
    pub bridge: BridgeName,
    /// The name server.
    pub server: ResolverAddress,
}

/// The gate of `priv.ensure_bridge`.
///
/// # Errors
/// The rules of [`NetworkConfig`]; a port that is none of [`DNS_PORTS`].
pub fn ensure_bridge(params: EnsureBridgeParams) -> Result<Bridge> {
    let EnsureBridgeParams { bridge_name, bridge_ip, cidr, dns_port } = params;
    let network = NetworkConfig::parse(&Network { bridge_name, bridge_ip, cidr })?;
    let is_broken = dns_port.is_some_and(|port| !DNS_PORTS.contains(&port));
    Refusal::when(is_broken, "dns_port", format!("one of {DNS_PORTS:?}"))?;
    Ok(Bridge { network, dns_port })
}

/// The gate of `priv.create_tap`.
///
/// # Errors
/// The rules of the types; one of `guest_mac` and `guest_ip` alone; an address that is no guest's
/// of the bridge; a group that is said to be isolated.
pub fn create_tap(params: CreateTapParams) -> Result<Tap> {
    let CreateTapParams { bridge_name, bridge_ip, cidr, .. } = params;
    let network = NetworkConfig::parse(&Network { bridge_name, bridge_ip, cidr })?;
    let name = TapName::parse("tap_name", &params.tap_name)?;
    let mac = params.guest_mac.map(|text| MacAddress::parse("guest_mac", &text)).transpose()?;
    let ip = params.guest_ip.map(|text| ipv4("guest_ip", &text)).transpose()?;
    let anti_spoof = match (mac, ip) {
        (Some(mac), Some(ip)) if network.has_guest(ip) => Some(AntiSpoof { mac, ip }),
        (Some(_), Some(_)) => {
            return Err(Refusal::new("guest_ip", "not a guest's address on this bridge"));
        }
        (None, None) => None,
        (Some(_), None) => return Err(Refusal::new("guest_ip", "missing: guest_mac is given")),
        (None, Some(_)) => return Err(Refusal::new("guest_mac", "missing: guest_ip is given")),
    };
    let group = params.group.map(|text| GroupName::parse("group", &text)).transpose()?;
    let is_isolated = params.isolated.unwrap_or(group.is_none());
    Refusal::when(is_isolated && group.is_some(), "isolated", "a tap of a group is not isolated")?;
    Ok(Tap { network, name, anti_spoof, group, is_isolated, wants_fd: params.return_fd })
}

/// The gate of `priv.delete_tap`.
///
/// # Errors
/// The rule of [`TapName`].
pub fn delete_tap(params: &DeleteTapParams) -> Result<TapName> {
    TapName::parse("tap_name", &params.tap_name)
}

/// The gate of `priv.ensure_nat`.
///
/// # Errors
/// The rules of the types; a way to private networks for a guest that has none at all.
pub fn ensure_nat(params: &EnsureNatParams) -> Result<Nat> {
    Refusal::when(params.allow_lan && !params.enable, "allow_lan", "of no use without enable")?;
    Ok(Nat {
        guest: ipv4("guest_ip", &params.guest_ip)?,
        tap: TapName::parse("tap", &params.tap)?,
        is_enabled: params.enable,
        allows_lan: params.allow_lan,
    })
}

/// The gate of `priv.sync_resolver_routing`; none if both are blank.
///
/// # Errors
/// The rules of the types; one of the two blank.
pub fn sync_resolver_routing(params: &SyncResolverRoutingParams) -> Result<Option<ResolverRoute>> {
    if params.bridge_name.is_empty() && params.server_addr.is_empty() {
        return Ok(None);
    }
    let bridge = BridgeName::parse("bridge_name", &params.bridge_name)?;
    let server = ResolverAddress::parse("server_addr", &params.server_addr)?;
    Ok(Some(ResolverRoute { bridge, server }))
}

/// The gate of `priv.clear_resolver_routing`; none if it is blank.
///
/// # Errors
/// The rule of [`BridgeName`].
pub fn clear_resolver_routing(params: &ClearResolverRoutingParams) -> Result<Option<BridgeName>> {
    given(&params.bridge_name, |name| BridgeName::parse("bridge_name", name))
}
