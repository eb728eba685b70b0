//! Parameters of the methods on the network. Addresses are texts here.

use serde::{Deserialize, Serialize};

/// The ports on which `bangerd`'s name server may be; a host's other services have others.
pub const DNS_PORTS: std::ops::RangeInclusive<u16> = 42_069..=42_084;

parameters! {
    /// Parameters of `priv.ensure_bridge`.
    pub struct EnsureBridgeParams {
        /// `br-fc`, or a name that begins with `br-fc-`.
        pub bridge_name: String,
        /// The host's IPv4 address on it, the guests' gateway.
        pub bridge_ip: String,
        /// The length of the subnet's prefix as decimal digits: `24`.
        pub cidr: String,
        /// The UDP and TCP port of `bangerd`'s name server on the bridge's address, one of
        /// [`DNS_PORTS`]; guests' questions to port 53 there are sent to it.
        pub dns_port: Option<u16>,
    }

    /// The network of a bridge, as `priv.launch_firecracker` names it.
    pub struct Network {
        /// As in [`EnsureBridgeParams`].
        pub bridge_name: String,
        /// As in [`EnsureBridgeParams`].
        pub bridge_ip: String,
        /// As in [`EnsureBridgeParams`].
        pub cidr: String,
    }

    /// Parameters of `priv.create_tap`. The bridge must be as `priv.ensure_bridge` makes it.
    pub struct CreateTapParams {
        /// As in [`EnsureBridgeParams`].
        pub bridge_name: String,
        /// As in [`EnsureBridgeParams`].
        pub bridge_ip: String,
        /// As in [`EnsureBridgeParams`].
        pub cidr: String,
        /// Begins with `tap-fc-` or `tap-pool-`.
        pub tap_name: String,
        /// The only source MAC that frames from the tap may have; with `guest_ip` or not at all.
        pub guest_mac: Option<String>,
        /// The only source address that packets from the tap may have.
        pub guest_ip: Option<String>,
        /// Taps of one group reach each other; without, the tap is alone.
        pub group: Option<String>,
        /// Whether the bridge keeps it from other isolated ports; the default is that it does
        /// unless the tap has a group.
        pub isolated: Option<bool>,
        /// Whether the open tap is to be sent along with the answer (SCM_RIGHTS).
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        pub return_fd: bool,
    }

    /// Parameters of `priv.delete_tap`.
    pub struct DeleteTapParams {
        /// The tap; that there is none is no failure.
        pub tap_name: String,
    }

    /// Parameters of `priv.ensure_nat`.
    pub struct EnsureNatParams {
        /// The guest's IPv4 address.
        pub guest_ip: String,
        /// The tap that it is behind.
        pub tap: String,
        /// Whether it may reach the world outside.
        pub enable: bool,
        /// Whether it may reach private networks (RFC 1918) as well.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        pub allow_lan: bool,
    }

    /// Parameters of `priv.sync_resolver_routing`; nothing is done if both are blank.
    pub struct SyncResolverRoutingParams {
        /// The bridge.
        #[serde(default)]
        pub bridge_name: String,
        /// `IP` or `IP:port` (an IPv6 address with a port stands in brackets).
        #[serde(default)]
        pub server_addr: String,
    }

    /// Parameters of `priv.clear_resolver_routing`; nothing is done if it is blank.
    pub struct ClearResolverRoutingParams {
        /// The bridge.
        #[serde(default)]
        pub bridge_name: String,
    }
}
