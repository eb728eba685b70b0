//! The guests' network: its subnet, and groups of guests.

use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::string_type::checked_string;

/// Networks from which a subnet may be: nothing outside has an address there (RFC 1918, RFC 6598,
/// RFC 2544).
const PRIVATE: [(Ipv4Addr, u8); 5] = [
    (Ipv4Addr::new(10, 0, 0, 0), 8),
    (Ipv4Addr::new(172, 16, 0, 0), 12),
    (Ipv4Addr::new(192, 168, 0, 0), 16),
    (Ipv4Addr::new(100, 64, 0, 0), 10),
    (Ipv4Addr::new(198, 18, 0, 0), 15),
];

/// The length of a prefix: large enough for guests to count, small enough to hold one.
const PREFIXES: std::ops::RangeInclusive<u8> = 8..=30;

/// A subnet of guests and the host's address in it, their gateway: `172.16.0.1/24`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Subnet {
    gateway: Ipv4Addr,
    prefix: u8,
}

/// Why a text is no subnet.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SubnetError {
    /// It is not written as one.
    #[error("write the host's address and the length of the prefix, such as 172.16.0.1/24")]
    Form,
    /// The prefix is too short or too long.
    #[error("the length of the prefix is from 8 to 30")]
    Prefix,
    /// The whole subnet is not private.
    #[error(
        "a subnet lies in 10.0.0.0/8, 172.16.0.0/12, 192.168.0.0/16, 100.64.0.0/10 or 198.18.0.0/15"
    )]
    Public,
    /// The address is no host's.
    #[error("the host's address is the subnet's own or its broadcast address; take the next one")]
    Edge,
}

/// Returns the bits of an address that a prefix fixes.
fn mask(prefix: u8) -> u32 {
    u32::MAX.checked_shl(32_u32.saturating_sub(u32::from(prefix))).unwrap_or(0)
}

impl Subnet {
    /// Checks a host's address and the length of a prefix.
    pub fn new(gateway: Ipv4Addr, prefix: u8) -> Result<Self, SubnetError> {
        if !PREFIXES.contains(&prefix) {
            return Err(SubnetError::Prefix);
        }
        let is_private = PRIVATE.iter().any(|(network, length)| {
            prefix >= *length && u32::from(gateway) & mask(*length) == u32::from(*network)
        });
        if !is_private {
            return Err(SubnetError::Public);
        }
        let host = u32::from(gateway) & !mask(prefix);
        if host == 0 || host == !mask(prefix) {
            return Err(SubnetError::Edge);
        }
        Ok(Self { gateway, prefix })
    }

    /// The host's address.
    #[must_use]
    pub fn gateway(&self) -> Ipv4Addr {
        self.gateway
    }

    /// The length of the prefix.
    #[must_use]
    pub fn prefix(&self) -> u8 {
        self.prefix
    }

    /// The subnet's first address, which is nobody's.
    #[must_use]
    pub fn network(&self) -> Ipv4Addr {
        Ipv4Addr::from(u32::from(self.gateway) & mask(self.prefix))
    }

    /// How many guests have room.
    #[must_use]
    pub fn capacity(&self) -> u32 {
        // All addresses but the subnet's own, its broadcast address and the host's.
        !mask(self.prefix) - 2
    }

    /// Returns the address of the guest with this number, counted from 0; none beyond
    /// [`Self::capacity`].
    #[must_use]
    pub fn guest(&self, number: u32) -> Option<Ipv4Addr> {
        if number >= self.capacity() {
            return None;
        }
        let address = u32::from(self.network()) + 1 + number;
        let is_behind = address >= u32::from(self.gateway);
        Some(Ipv4Addr::from(address + u32::from(is_behind)))
    }

    /// Whether an address lies in it.
    #[must_use]
    pub fn contains(&self, address: Ipv4Addr) -> bool {
        self.overlaps(address, 32)
    }

    /// Whether any address is of it and of another network.
    #[must_use]
    pub fn overlaps(&self, network: Ipv4Addr, prefix: u8) -> bool {
        let mask = mask(prefix.min(self.prefix));
        (u32::from(network) ^ u32::from(self.gateway)) & mask == 0
    }
}

impl fmt::Display for Subnet {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(&format!("{}/{}", self.gateway, self.prefix))
    }
}

impl FromStr for Subnet {
    type Err = SubnetError;

    fn from_str(text: &str) -> Result<Self, SubnetError> {
        let (gateway, prefix) = text.split_once('/').ok_or(SubnetError::Form)?;
        let is_plain = prefix.bytes().all(|byte| byte.is_ascii_digit()) && prefix.len() <= 2;
        let prefix = if is_plain { prefix.parse().ok() } else { None };
        Self::new(gateway.parse().map_err(|_| SubnetError::Form)?, prefix.ok_or(SubnetError::Form)?)
    }
}

impl TryFrom<String> for Subnet {
    type Error = SubnetError;

    fn try_from(text: String) -> Result<Self, SubnetError> {
        text.parse()
    }
}

impl From<Subnet> for String {
    fn from(subnet: Subnet) -> Self {
        subnet.to_string()
    }
}

/// Why a text is no group's name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a group's name has 1 to 32 of a-z, 0-9 and -, and begins with a letter or digit")]
pub struct GroupError;

fn check_group(text: &str) -> Result<(), GroupError> {
    let is_plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    let fits = (1..=32).contains(&text.len()) && !text.starts_with('-');
    if fits && text.bytes().all(is_plain) { Ok(()) } else { Err(GroupError) }
}

checked_string! {
    /// The name of a group of VMs that reach each other: 1 to 32 of `[a-z0-9-]`, no hyphen first.
    GroupName, GroupError, check_group
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_subnet_is_refused_with_the_rule() {
        for (text, error) in [
            ("", SubnetError::Form),
            ("172.16.0.1", SubnetError::Form),
            ("172.16.0.1/", SubnetError::Form),
            ("172.16.0.1/+8", SubnetError::Form),
            ("172.16.0.1/024", SubnetError::Form),
            ("172.16.0/24", SubnetError::Form),
            ("::1/24", SubnetError::Form),
            ("172.16.0.1/31", SubnetError::Prefix),
            ("10.0.0.1/7", SubnetError::Prefix),
            ("172.16.0.1/8", SubnetError::Public),
            ("9.9.9.1/24", SubnetError::Public),
            ("172.32.0.1/24", SubnetError::Public),
            ("172.16.0.0/24", SubnetError::Edge),
            ("172.16.0.255/24", SubnetError::Edge),
        ] {
            assert_eq!(text.parse::<Subnet>(), Err(error), "{text}");
        }
    }

    #[test]
    fn every_guest_has_an_address_of_its_own() {
        for text in ["172.16.0.1/24", "172.16.0.254/24", "10.1.2.77/24", "192.168.1.2/30"] {
            let subnet: Subnet = text.parse().unwrap();
            assert_eq!(subnet.to_string(), text);
            let all: Vec<Ipv4Addr> =
                (0..subnet.capacity()).map(|number| subnet.guest(number).unwrap()).collect();
            let distinct: std::collections::BTreeSet<_> = all.iter().collect();
            assert_eq!(distinct.len(), all.len());
            assert_eq!(subnet.guest(subnet.capacity()), None);
            assert_eq!(subnet.guest(u32::MAX), None);
            for address in all {
                let host = u32::from(address) & !mask(subnet.prefix());
                assert!(subnet.contains(address) && address != subnet.gateway());
                assert!(host != 0 && host != !mask(subnet.prefix()), "{address}");
            }
        }
        let subnet: Subnet = "172.16.0.1/24".parse().unwrap();
        assert_eq!(subnet.guest(0), Some(Ipv4Addr::new(172, 16, 0, 2)));
        assert_eq!(subnet.capacity(), 253);
    }

    #[test]
    fn overlap_is_seen_in_both_directions() {
        let subnet: Subnet = "172.16.5.1/24".parse().unwrap();
        for (network, prefix, expected) in [
            ([172, 16, 0, 0], 12, true),
            ([172, 16, 5, 128], 25, true),
            ([172, 16, 5, 9], 32, true),
            ([0, 0, 0, 0], 0, true),
            ([172, 16, 4, 0], 24, false),
            ([172, 17, 0, 0], 16, false),
        ] {
            assert_eq!(subnet.overlaps(network.into(), prefix), expected, "{network:?}/{prefix}");
        }
    }

    #[test]
    fn groups_have_plain_names() {
        for good in ["a", "web", "0-x-", &"g".repeat(32)] {
            assert!(good.parse::<GroupName>().is_ok(), "{good}");
        }
        for bad in ["", "-a", "A", "a b", "a.b", "ä", &"g".repeat(33)] {
            assert!(bad.parse::<GroupName>().is_err(), "{bad:?}");
        }
    }
}
