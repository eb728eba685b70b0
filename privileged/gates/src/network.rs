//! Bridges, taps, addresses.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use banger_helper_api::Network;

use crate::name::{is_word, proven};
use crate::{Name, Refusal, Result};

proven! {
    /// One of banger's own bridges: `br-fc`, or `br-fc-` and more, at most 15 bytes as every
    /// interface's name. Of what follows only letters, digits and hyphens are taken, so that the
    /// name can stand in a firewall rule.
    BridgeName: |text| {
        let name = text.strip_prefix("br-fc-");
        text == "br-fc" || name.is_some_and(|name| is_word(name, 1..=9, b"-"))
    },
    "a bridge of banger's is br-fc or br-fc-NAME, NAME of A-Z a-z 0-9 -, at most 15 bytes"
}
proven! {
    /// One of banger's own taps: `tap-fc-` or `tap-pool-` and letters, digits or hyphens, at most 15
    /// bytes as every interface's name.
    TapName: |text| {
        let id = text.strip_prefix("tap-fc-").or_else(|| text.strip_prefix("tap-pool-"));
        id.is_some_and(|id| is_word(id, 1..=8, b"-")) && text.len() <= 15
    },
    "a tap of banger's is tap-fc-ID or tap-pool-ID, ID of A-Z a-z 0-9 -, at most 15 bytes"
}
proven! {
    /// A group of taps that reach each other: 1 to 32 letters, digits or hyphens.
    GroupName: |text| is_word(text, 1..=32, b"-"),
    "a group has 1 to 32 of A-Z a-z 0-9 -"
}

/// Reads an IPv4 address in its one plain form.
///
/// # Errors
/// Any other text, an IPv6 address that stands for it among them.
pub fn ipv4(parameter: Name, text: &str) -> Result<Ipv4Addr> {
    text.parse().map_err(|_| Refusal::new(parameter, "not an IPv4 address such as 172.16.0.2"))
}

/// Networks from which a bridge may have its own: nothing outside has an address there, so that a
/// bridge cannot take the way to a host of the world (RFC 1918, RFC 6598, RFC 2544).
const PRIVATE: [(Ipv4Addr, u8); 5] = [
    (Ipv4Addr::new(10, 0, 0, 0), 8),
    (Ipv4Addr::new(172, 16, 0, 0), 12),
    (Ipv4Addr::new(192, 168, 0, 0), 16),
    (Ipv4Addr::new(100, 64, 0, 0), 10),
    (Ipv4Addr::new(198, 18, 0, 0), 15),
];

fn mask(prefix: u8) -> u32 {
    u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0)
}

/// A bridge, the host's address on it and its subnet: a private one, in which the address is a
/// host's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetworkConfig {
    bridge: BridgeName,
    address: Ipv4Addr,
    prefix: u8,
}

impl NetworkConfig {
    /// Checks the three together.
    ///
    /// # Errors
    /// A bridge that is not banger's, an address or a prefix that is none, a subnet that is not
    /// private, the subnet's own or broadcast address.
    pub fn parse(network: &Network) -> Result<Self> {
        let bridge = BridgeName::parse("bridge_name", &network.bridge_name)?;
        let address = ipv4("bridge_ip", &network.bridge_ip)?;
        let cidr = &network.cidr;
        let is_plain = is_word(cidr, 1..=2, b"") && !cidr.starts_with('0');
        let prefix = cidr.parse::<u8>().ok().filter(|prefix| is_plain && (8..=32).contains(prefix));
        let rule = "the length of a prefix is a decimal number from 8 to 32";
        let prefix = prefix.ok_or_else(|| Refusal::new("cidr", rule))?;
        let config = Self { bridge, address, prefix };
        let is_private = PRIVATE.iter().any(|(network, length)| {
            prefix >= *length && u32::from(address) & mask(*length) == u32::from(*network)
        });
        let rule = "a bridge's subnet lies in 10.0.0.0/8, 172.16.0.0/12, 192.168.0.0/16, \
                        100.64.0.0/10 or 198.18.0.0/15";
        Refusal::when(!is_private, "bridge_ip", rule)?;
        let host = u32::from(address) & !mask(prefix);
        let rule = "the subnet's own or broadcast address";
        Refusal::when(prefix < 31 && (host == 0 || host == !mask(prefix)), "bridge_ip", rule)?;
        Ok(config)
    }

    /// The bridge.
    #[must_use]
    pub fn bridge(&self) -> &BridgeName {
        &self.bridge
    }

    /// The host's address.
    #[must_use]
    pub fn address(&self) -> Ipv4Addr {
        self.address
    }

    /// The length of the subnet's prefix.
    #[must_use]
    pub fn prefix(&self) -> u8 {
        self.prefix
    }

    /// The subnet's first address.
    #[must_use]
    pub fn network(&self) -> Ipv4Addr {
        Ipv4Addr::from(u32::from(self.address) & mask(self.prefix))
    }

    /// Whether an address can be a guest's here: in the subnet, not the host's, and neither the
    /// subnet's own nor its broadcast address.
    #[must_use]
    pub fn has_guest(&self, address: Ipv4Addr) -> bool {
        let mask = mask(self.prefix);
        let host = u32::from(address) & !mask;
        u32::from(address) & mask == u32::from(self.address) & mask
            && address != self.address
            && (self.prefix >= 31 || (host != 0 && host != !mask))
    }
}

/// A MAC that a machine may have: unicast and not all zeros.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct MacAddress([u8; 6]);

impl MacAddress {
    /// Reads six pairs of hexadecimal digits with colons between.
    ///
    /// # Errors
    /// Any other text, a multicast address, zeros.
    pub fn parse(parameter: Name, text: &str) -> Result<Self> {
        let refusal = || Refusal::new(parameter, "not a unicast MAC such as 06:00:ac:10:00:02");
        let mut bytes = [0; 6];
        let mut parts = text.split(':');
        for byte in &mut bytes {
            let part = parts.next().filter(|part| is_word(part, 2..=2, b"")).ok_or_else(refusal)?;
            *byte = u8::from_str_radix(part, 16).map_err(|_| refusal())?;
        }
        if parts.next().is_some() || bytes[0] & 1 != 0 || bytes == [0; 6] {
            return Err(refusal());
        }
        Ok(Self(bytes))
    }
}

impl fmt::Display for MacAddress {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, f] = self.0;
        write!(out, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}")
    }
}

/// Where a name server listens: `IP` or `IP:port`, an IPv6 address with a port in brackets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ResolverAddress {
    ip: IpAddr,
    port: Option<u16>,
}

impl ResolverAddress {
    /// Checks an address.
    ///
    /// # Errors
    /// A text that is neither form, port 0, a scope, and addresses nobody listens at.
    pub fn parse(parameter: Name, text: &str) -> Result<Self> {
        let refusal = || Refusal::new(parameter, "not an IP address or IP:port of a name server");
        let is_plain = |c: char| c.is_ascii_hexdigit() || ".:[]".contains(c);
        if !text.chars().all(is_plain) {
            return Err(refusal());
        }
        let address = match text.parse::<IpAddr>() {
            Ok(ip) => Self { ip, port: None },
            Err(_) => {
                let socket: SocketAddr = text.parse().map_err(|_| refusal())?;
                Self { ip: socket.ip(), port: Some(socket.port()) }
            }
        };
        let is_nobody = address.ip.is_unspecified() || address.ip.is_multicast();
        if is_nobody || address.port == Some(0) { Err(refusal()) } else { Ok(address) }
    }
}

impl fmt::Display for ResolverAddress {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.port {
            Some(port) => SocketAddr::new(self.ip, port).fmt(out),
            None => self.ip.fmt(out),
        }
    }
}
