//! Bridges.

use banger_gates::request::Bridge;
use banger_gates::{NetworkConfig, Refusal};

use super::netlink::{
    Attributes, BRIDGE, IFLA_ADDRESS, IFLA_BR_GROUP_FWD_MASK, IFLA_BR_STP_STATE, IFLA_IFALIAS,
    Link, Netlink,
};
use super::records::Known;
use super::routing::{is_default, set};
use super::{alias, is_owners, turn};
use crate::{During, Host, Result, check_room};

/// Where the host's name servers are named (resolv.conf(5); the second: systemd-resolved's own).
const RESOLVERS: [&str; 2] = ["/etc/resolv.conf", "/run/systemd/resolve/resolv.conf"];
/// How many an owner may have.
const MOST_BRIDGES: usize = 16;
/// What an interface may do to the host: forward, and nothing that makes it trust what comes in.
const SETTINGS: [(&str, &str, &str); 9] = [
    ("ipv6", "disable_ipv6", "1"),
    ("ipv6", "accept_ra", "0"),
    ("ipv4", "route_localnet", "0"),
    ("ipv4", "rp_filter", "1"),
    ("ipv4", "accept_redirects", "0"),
    ("ipv4", "send_redirects", "0"),
    ("ipv4", "accept_source_route", "0"),
    ("ipv4", "proxy_arp", "0"),
    ("ipv4", "forwarding", "1"),
];

/// What tells a bridge's elements in the firewall.
fn words(network: &NetworkConfig) -> Vec<String> {
    let name = network.bridge().as_str().to_owned();
    vec![name, network.address().to_string(), network.network().to_string()]
}

impl Host {
    /// Makes a bridge what the grant says: its address, a MAC that ports do not change, no spanning
    /// tree, up, no IPv6; and the firewall's rules. Addresses that others gave it stay. Returns
    /// whether anything was otherwise.
    ///
    /// # Errors
    /// Refused: another kind of interface of that name, another owner's bridge, or one in use; a
    /// subnet that overlaps with an address or a route of another interface (a default route is none),
    /// or that a new bridge would take a name server of the host's into; another subnet for a bridge
    /// that has ports; one bridge too many. A bridge that was made here is gone after a failure.
    pub fn ensure_bridge(&self, grant: &Bridge) -> Result<bool> {
        let (_turn, netlink) = turn()?;
        let name = grant.network.bridge().as_str();
        let known = self.known_network();
        let found = netlink.link(name)?;
        self.may_be_bridge(&netlink, found.as_ref(), &grant.network, &known)?;
        if found.is_none() {
            let (links, uid) = (netlink.links()?, self.policy().owner.uid());
            let own = links.iter().filter(|link| is_owners(link, uid));
            check_room("bridge_name", own.count(), MOST_BRIDGES, "bridges")?;
        }
        let before = known.bridges.get(name);
        let made = self.make_bridge(&netlink, found.as_ref(), grant, before);
        if made.is_err() {
            // The cause is what is reported.
            let _ = self.record_bridge(name, before);
            if let (None, Ok(Some(link))) = (&found, netlink.link(name)) {
                let _ = netlink.delete(link.index);
            }
            let _ = self.settle_firewall(&netlink, &words(&grant.network));
        }
        made
    }

    /// Looks again at what guests need of the host: rules that others flushed, another uplink; and at
    /// taps that are not what they were.
    /// Returns whether anything had to be changed.
    ///
    /// # Errors
    /// What fails in the firewall or below `/proc/sys`.
    pub fn refresh_network(&self) -> Result<bool> {
        let (_turn, netlink) = turn()?;
        let known = self.known_network();
        if known.bridges.is_empty() {
            return Ok(false);
        }
        let mut changed = self.settle_firewall(&netlink, &[])?;
        for name in known.bridges.keys() {
            changed |= super::firewalld::trust(name, true)?;
        }
        for name in known.taps.keys() {
            let link = netlink.link(name)?;
            if link.is_none_or(|link| self.is_owners_tap("tap_name", &link).is_err()) {
                // Its owner ended it, or gave it away, by a descriptor.
                changed |= self.end_tap(&netlink, name)?;
            }
        }
        Ok(changed)
    }

    /// Ends the bridges that nothing is on, with what the firewall and firewalld have of them, and
    /// with the last one forwarding that was switched on for guests.
    ///
    /// # Errors
    /// What fails at the kernel or in the firewall; what is not ended is still recorded then.
    pub fn end_bridges(&self) -> Result<()> {
        let (_turn, netlink) = turn()?;
        let own = alias(self.policy().owner.uid());
        for (name, bridge) in self.known_network().bridges {
            match netlink.link(&name)? {
                Some(link) if netlink.has_ports(link.index)? => continue,
                Some(link) if link.attributes.text(IFLA_IFALIAS) == own => {
                    let _ = netlink.delete(link.index).during("delete", &name)?;
                }
                // It is gone, or another's by now.
                _ => {}
            }
            super::firewalld::trust(&name, false)?;
            self.record_bridge(&name, None)?;
            let mut also = words(&bridge.network);
            let uplinks = self.end_uplinks().map(|uplinks| also.extend(uplinks));
            uplinks.and_then(|()| self.settle_firewall(&netlink, &also)).inspect_err(|_| {
                let _ = self.record_bridge(&name, Some(&bridge));
            })?;
        }
        Ok(())
    }

    fn may_be_bridge(
        &self,
        netlink: &Netlink,
        found: Option<&Link>,
        network: &NetworkConfig,
        known: &Known,
    ) -> Result<()> {
        let name = network.bridge().as_str();
        let mut is_in_use = known.taps_of(name).next().is_some();
        if let Some(link) = found {
            Refusal::when(link.kind != "bridge", "bridge_name", "an interface that is no bridge")?;
            let owner = link.attributes.text(IFLA_IFALIAS);
            let reason = format!("the bridge belongs to another: {owner}");
            let is_broken = !owner.is_empty() && owner != alias(self.policy().owner.uid());
            Refusal::when(is_broken, "bridge_name", reason)?;
            let has_ports = netlink.has_ports(link.index)?;
            let rule = "somebody's bridge, with ports: not banger's to change";
            Refusal::when(owner.is_empty() && has_ports, "bridge_name", rule)?;
            is_in_use |= has_ports;
        }
        let has_other = |bridge: &Bridge| bridge.network != *network;
        let reason = "the bridge has another address, and ports that depend on it";
        let is_broken = is_in_use && known.bridges.get(name).is_some_and(has_other);
        Refusal::when(is_broken, "bridge_ip", reason)?;
        let own = found.map(|link| link.index);
        let links_addresses = netlink.addresses()?;
        let addresses =
            links_addresses.iter().copied().map(|(index, ip, prefix)| (ip, prefix, Some(index)));
        let routes = netlink.routes()?.into_iter();
        let routes = routes.map(|route| (route.network, route.prefix, route.interface));
        // What the default route leads to is seen by nobody; the name servers there are known.
        let is_known = known.bridges.get(name).is_some_and(|bridge| !has_other(bridge));
        // systemd-resolved's file may name the bridge itself.
        let (ip, prefix) = (network.address(), network.prefix());
        let is_there = own.is_some_and(|index| links_addresses.contains(&(index, ip, prefix)));
        let files = if is_known || is_there { &[] } else { &RESOLVERS[..] };
        let texts = files.iter().map(|path| std::fs::read_to_string(path).unwrap_or_default());
        let texts: Vec<_> = texts.collect();
        let servers = texts.iter().flat_map(|text| text.lines()).filter_map(|line| {
            let mut words = line.split_whitespace();
            let is_server = words.next()? == "nameserver";
            let server = words.next().filter(|_| is_server)?;
            Some((server.parse().ok()?, 32, None))
        });
        for (ip, prefix, interface) in addresses.chain(routes).chain(servers) {
            let length = prefix.min(network.prefix());
            let mask = u32::MAX.checked_shl(32 - u32::from(length)).unwrap_or(0);
            let overlaps = (u32::from(ip) ^ u32::from(network.address())) & mask == 0;
            let is_own = interface.is_some() && interface == own;
            if is_own || !overlaps || is_default(prefix) {
                continue;
            }
            let other = interface.map(|index| netlink.link_at(index)).transpose()?.flatten();
            let other = other.map_or("a route or name server".to_owned(), |link| link.name);
            let reason = format!("the subnet overlaps with {ip}/{prefix} of {other}");
            return Err(Refusal::new("bridge_ip", reason).into());
        }
        Ok(())
    }

    fn make_bridge(
        &self,
        netlink: &Netlink,
        found: Option<&Link>,
        grant: &Bridge,
        before: Option<&Bridge>,
    ) -> Result<bool> {
        let (network, name) = (&grant.network, grant.network.bridge().as_str());
        // Locally administered, unicast, and no guest's: those begin with 06:00.
        let [a, b, c, d] = network.address().octets();
        let mac = [0x02, 0xfc, a, b, c, d];
        let alias = alias(self.policy().owner.uid());
        let attributes =
            Attributes::default().with(IFLA_ADDRESS, &mac).with(IFLA_IFALIAS, alias.as_bytes());
        let mut changed = false;
        if before != Some(grant) {
            self.record_bridge(name, Some(grant))?;
        }
        let link = match found {
            Some(link) => link.clone(),
            None => {
                changed = true;
                netlink.create_bridge(name, attributes.clone()).during("set up", name)?;
                netlink.link(name)?.ok_or("it is gone again").during("set up", name)?
            }
        };
        let is_named = link.attributes.text(IFLA_IFALIAS) == alias;
        if !is_named || link.attributes.bytes(IFLA_ADDRESS) != mac {
            changed = true;
            netlink.change(link.index, false, &attributes).during("set up", name)?;
        }
        let (stp, forwarded) = (IFLA_BR_STP_STATE, IFLA_BR_GROUP_FWD_MASK);
        if (link.data.number(stp), link.data.number(forwarded)) != (Some(0), Some(0)) {
            changed = true;
            let data = Attributes::default().with(stp, &[0; 4]).with(forwarded, &[0; 2]);
            netlink.change_info(link.index, BRIDGE, &data).during("set up", name)?;
        }
        for (family, key, value) in SETTINGS {
            changed |= set(family, name, key, value)?;
        }
        // Before there is an address that a guest could reach.
        let was = before.map_or_else(Vec::new, |before| words(&before.network));
        changed |= self.settle_firewall(netlink, &was)?;
        changed |= super::firewalld::trust(name, true)?;
        if let Some(old) = before.map(|before| &before.network).filter(|old| *old != network) {
            let removed = netlink.remove_address(link.index, old.address(), old.prefix());
            removed.during("set up", name)?;
        }
        let (ip, prefix) = (network.address(), network.prefix());
        if !netlink.addresses()?.contains(&(link.index, ip, prefix)) {
            changed = true;
            netlink.add_address(link.index, ip, prefix).during("set up", name)?;
        }
        if !link.is_up {
            changed = true;
            netlink.change(link.index, true, &Attributes::default()).during("set up", name)?;
        }
        Ok(changed)
    }
}
