//! Taps.

use std::os::fd::OwnedFd;

use banger_gates::request::Tap;
use banger_gates::{Name, Refusal, TapName};
use banger_privileged_sys::tun;
use rustix::io::Errno;

use super::netlink::{
    Attributes, IFLA_BRPORT_ISOLATED, IFLA_MASTER, IFLA_TUN_GROUP, IFLA_TUN_OWNER,
    IFLA_TUN_PERSIST, IFLA_TUN_TYPE, IFLA_TUN_VNET_HDR, Link, Netlink, PORT,
};
use super::records::TapRecord;
use super::{is_owners, is_set_up, routing, turn};
use crate::{During, Host, HostError, Result, check_room};

const IFF_TAP: u32 = 2;
/// How many taps an owner may have; a bridge takes 1023 ports (Linux `BR_MAX_PORTS`).
const MOST_TAPS: usize = 512;

impl Host {
    /// Makes a tap what the grant says: persistent, the owner's, frames with a `virtio_net_hdr`, a
    /// port of the bridge, alone unless it has a group, its guest's addresses checked, up. Returns
    /// whether anything was otherwise, and the open tap if it is asked for.
    ///
    /// # Errors
    /// Refused: a bridge that is not set up, an interface of that name that is no tap of the owner's
    /// or a port of another bridge, an address of a guest behind another tap, one tap too many. A tap that
    /// another process has open cannot be opened. A tap that was made here is gone after a failure.
    pub fn create_tap(&self, grant: &Tap) -> Result<(bool, Option<OwnedFd>)> {
        let (_turn, netlink) = turn()?;
        let (name, bridge_name) = (grant.name.as_str(), grant.network.bridge().as_str());
        self.check_known(&grant.network)?;
        let bridge = netlink.link(bridge_name)?;
        let bridge = bridge.ok_or_else(|| Refusal::new("bridge_name", "no such interface"))?;
        let reason = "not as priv.ensure_bridge makes it";
        let is_broken = !is_set_up(&netlink, &bridge, &grant.network, self.policy().owner.uid())?;
        Refusal::when(is_broken, "bridge_name", reason)?;
        let found = netlink.link(name)?;
        if let Some(link) = &found {
            self.is_owners_tap("tap_name", link)?;
            let is_broken = link.master().is_some_and(|master| master != bridge.index);
            Refusal::when(is_broken, "tap_name", "a port of another bridge")?;
        }
        let known = self.known_network();
        let source = grant.anti_spoof.map(|only| (only.mac.to_string(), only.ip));
        let before = known.taps.get(name);
        let mut record =
            TapRecord { bridge: bridge_name.to_owned(), source, ..TapRecord::default() };
        self.check_sole((&known, &netlink), name, &record)?;
        if let Some(group) = &grant.group {
            let number = known.group_number(bridge_name, group.as_str());
            record.group = Some((group.as_str().to_owned(), number));
        }
        // The way out of a guest that is still there, unless the tap is for another address now.
        if let (Some(before), true) = (before, found.is_some()) {
            let is_same = record.source.as_ref().is_none_or(|(_, ip)| Some(*ip) == before.guest);
            if before.bridge == bridge_name && is_same {
                (record.guest, record.allows_lan) = (before.guest, before.allows_lan);
            }
        }
        let made = self.make_tap(&netlink, grant, found.as_ref(), &bridge, before, &record);
        if made.is_err() {
            // The cause is what is reported.
            if let (None, Ok(Some(link))) = (&found, netlink.link(name)) {
                let _ = self.is_owners_tap("tap_name", &link).map(|()| netlink.delete(link.index));
            }
            if before != Some(&record) {
                let _ = self.record_tap(name, before);
                let _ = self.settle_firewall(&netlink, &[name.to_owned()]);
            }
        }
        made
    }

    fn make_tap(
        &self,
        netlink: &Netlink,
        grant: &Tap,
        found: Option<&Link>,
        bridge: &Link,
        before: Option<&TapRecord>,
        record: &TapRecord,
    ) -> Result<(bool, Option<OwnedFd>)> {
        let name = grant.name.as_str();
        let (mut changed, mut open) = (false, None);
        let link = match found {
            Some(link) => {
                if grant.wants_fd {
                    open = Some(tun::Tap::open(name).during("open tap", name)?);
                }
                let now = netlink.link(name)?.filter(|now| now.index == link.index);
                now.ok_or("another has taken its place").during("set up", name)?
            }
            None => {
                changed = true;
                let owner = self.policy().owner;
                let (links, uid) = (netlink.links()?, owner.uid());
                let own = links.iter().filter(|link| is_owners(link, uid)).map(|link| link.index);
                let own: Vec<_> = own.collect();
                let ports = links.iter().filter_map(Link::master).filter(|it| own.contains(it));
                check_room("tap_name", ports.count(), MOST_TAPS, "taps")?;
                let tap = tun::Tap::create(name).during("make tap", name)?;
                let given = tap.give_to(owner.uid(), owner.gid()).and_then(|()| tap.persist());
                given.during("set up", name)?;
                open = grant.wants_fd.then_some(tap);
                netlink.link(name)?.ok_or("it is gone again").during("set up", name)?
            }
        };
        // A tap that nothing is said of needs no element: the static rules keep it alone.
        let is_plain = record.source.is_none() && record.group.is_none() && record.guest.is_none();
        if before != Some(record) && (before.is_some() || !is_plain) {
            self.record_tap(name, (!is_plain).then_some(record))?;
        }
        if before.is_some() || !is_plain {
            changed |= self.settle_firewall(netlink, &[name.to_owned()])?;
        }
        changed |= routing::set("ipv6", name, "disable_ipv6", "1")?;
        if link.master() != Some(bridge.index) {
            changed = true;
            let master = Attributes::default().with(IFLA_MASTER, &bridge.index.to_ne_bytes());
            netlink.change(link.index, false, &master).during("set up", name)?;
        }
        if link.port.number(IFLA_BRPORT_ISOLATED) != Some(grant.is_isolated.into()) {
            // A new port is not isolated.
            changed |= grant.is_isolated || link.master() == Some(bridge.index);
            let isolated = [u8::from(grant.is_isolated)];
            let port = Attributes::default().with(IFLA_BRPORT_ISOLATED, &isolated);
            netlink.change_info(link.index, PORT, &port).during("set up", name)?;
        }
        if !link.is_up {
            changed = true;
            netlink.change(link.index, true, &Attributes::default()).during("set up", name)?;
        }
        Ok((changed, open.map(|tap| tap.into_file().into())))
    }

    /// Ends a tap and all that the firewall has of it; whether there was anything.
    ///
    /// # Errors
    /// Refused: an interface that is no tap of the owner's.
    pub fn delete_tap(&self, name: &TapName) -> Result<bool> {
        let (_turn, netlink) = turn()?;
        self.end_tap(&netlink, name.as_str())
    }

    pub(super) fn end_tap(&self, netlink: &Netlink, name: &str) -> Result<bool> {
        let mut changed = false;
        if let Some(link) = netlink.link(name)? {
            // What the owner has given away, or opened and let go, stays a port.
            let master = link.master().map(|it| netlink.link_at(it)).transpose()?.flatten();
            let uid = self.policy().owner.uid();
            if link.kind != "tun" || !master.is_some_and(|master| is_owners(&master, uid)) {
                self.is_owners_tap("tap_name", &link)?;
            }
            let deleted = netlink.delete(link.index);
            changed = deleted.map_err(|errno: Errno| HostError::of("delete tap", name)(errno))?;
        }
        let known = self.known_network();
        let Some(record) = known.taps.get(name) else { return Ok(changed) };
        self.record_tap(name, None)?;
        let settled = self.settle_firewall(netlink, &[name.to_owned()]);
        if settled.is_err() {
            // So that the next one tries again.
            let _ = self.record_tap(name, Some(record));
        }
        settled.map(|_| true)
    }

    /// That an interface is a tap as this helper makes it, of this owner.
    pub(super) fn is_owners_tap(&self, parameter: Name, link: &Link) -> Result<()> {
        let number = |kind| link.data.number(kind);
        let is_broken = link.kind != "tun" || number(IFLA_TUN_TYPE) != Some(IFF_TAP);
        Refusal::when(is_broken, parameter, "an interface that is no tap")?;
        let owner = self.policy().owner;
        let owners = (Some(owner.uid()), Some(owner.gid()));
        let rule = "a tap of another user";
        Refusal::when((number(IFLA_TUN_OWNER), number(IFLA_TUN_GROUP)) != owners, parameter, rule)?;
        let is_broken = (number(IFLA_TUN_VNET_HDR), number(IFLA_TUN_PERSIST)) != (Some(1), Some(1));
        Refusal::when(is_broken, parameter, "a tap of another make")?;
        Ok(())
    }
}
