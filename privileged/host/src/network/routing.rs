//! Forwarding, interface by interface (Documentation/networking/ip-sysctl), and other settings of a
//! link below `/proc/sys/net`.

use std::collections::BTreeSet;
use std::io::ErrorKind;

use super::netlink::Netlink;
use super::records::Known;
use crate::{During, Result};

/// Sets a setting of an interface, or finds it set. False too where the kernel does not have it.
pub(super) fn set(family: &str, link: &str, key: &str, value: &str) -> Result<bool> {
    let path = format!("/proc/sys/net/{family}/conf/{link}/{key}");
    match std::fs::read_to_string(&path) {
        Ok(now) if now.trim() == value => Ok(false),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
        _ => std::fs::write(&path, value).map(|()| true).during("write", path),
    }
}

/// Whether an interface forwards, or all do.
pub(super) fn forwards(link: &str) -> bool {
    let path = format!("/proc/sys/net/ipv4/conf/{link}/forwarding");
    std::fs::read_to_string(path).is_ok_and(|now| now.trim() == "1")
}

/// What has to forward so that answers reach the guests.
#[derive(Debug, Default)]
pub(super) struct Routing {
    /// The host forwards everywhere, by somebody else's wish: there is nothing to do.
    pub(super) is_router: bool,
    /// Interfaces that forward for the guests' sake only: the firewall keeps them from anything else.
    pub(super) guarded: BTreeSet<String>,
    /// Those of them that do not forward yet.
    pub(super) new: Vec<String>,
}

impl Routing {
    /// Looks at the interfaces of the default routes, and of all routes if a guest may use them.
    pub(super) fn now(netlink: &Netlink, known: &Known) -> Result<Self> {
        if forwards("all") {
            return Ok(Self { is_router: true, ..Self::default() });
        }
        let mut routing = Self { guarded: known.uplinks.clone(), ..Self::default() };
        let mut guests = known.taps.values().filter(|tap| tap.guest.is_some()).peekable();
        if guests.peek().is_none() {
            return Ok(routing);
        }
        let all = guests.any(|tap| tap.allows_lan);
        let routes = netlink.routes()?.into_iter().filter(|route| all || is_default(route.prefix));
        let indexes: BTreeSet<u32> = routes.filter_map(|route| route.interface).collect();
        for index in indexes {
            let Some(link) = netlink.link_at(index)? else { continue };
            // The name goes into a rule. Names of other letters are nobody's habit.
            let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"_-.".contains(&byte);
            let is_ours = known.bridges.contains_key(&link.name) || link.name == "lo";
            let is_address = link.name.parse::<std::net::Ipv4Addr>().is_ok();
            if is_ours || is_address || !link.name.bytes().all(is_plain) || forwards(&link.name) {
                continue;
            }
            routing.guarded.insert(link.name.clone());
            routing.new.push(link.name);
        }
        Ok(routing)
    }

    /// Turns forwarding on; the firewall stands already.
    pub(super) fn apply(&self) -> Result<bool> {
        for link in &self.new {
            set("ipv4", link, "forwarding", "1")?;
        }
        Ok(!self.new.is_empty())
    }
}

/// Whether a route of this length is a default one: VPNs halve or quarter it, and no private network
/// is larger than a /8.
pub(super) fn is_default(prefix: u8) -> bool {
    prefix < 8
}
