//! The guests' way out.

use banger_gates::Refusal;
use banger_gates::request::Nat;

use super::{is_set_up, turn};
use crate::{Host, Result};

impl Host {
    /// Lets a guest reach the world, or no longer; whether that was otherwise. By which interface
    /// is the routing table's to say, for every packet.
    ///
    /// # Errors
    /// Refused: a tap that is not the owner's or no port of a bridge that is set up; an address that
    /// is no guest's there, not the one the tap was made for, or another tap's.
    pub fn ensure_nat(&self, grant: &Nat) -> Result<bool> {
        let (_turn, netlink) = turn()?;
        let name = grant.tap.as_str();
        let known = self.known_network();
        let before = known.taps.get(name);
        let Some(link) = netlink.link(name)? else {
            // What is gone has no way out, and needs none taken away but in the firewall.
            let has_none = before.is_none_or(|tap| tap.guest.is_none());
            if !grant.is_enabled && has_none {
                return Ok(false);
            }
            return Err(Refusal::new("tap", "no such interface").into());
        };
        self.is_owners_tap("tap", &link)?;
        let bridge = link.master().map(|index| netlink.link_at(index)).transpose()?.flatten();
        let bridge = bridge.ok_or_else(|| Refusal::new("tap", "not a port of a bridge"))?;
        let network = known.bridges.get(&bridge.name).map(|bridge| &bridge.network);
        let network = network.ok_or_else(|| Refusal::new("tap", "a port of a foreign bridge"))?;
        let is_broken = !is_set_up(&netlink, &bridge, network, self.policy().owner.uid())?;
        Refusal::when(is_broken, "tap", "its bridge is not set up")?;
        let guest = grant.guest;
        let rule = "not a guest's address on the tap's bridge";
        Refusal::when(!network.has_guest(guest), "guest_ip", rule)?;
        let made_for = before.and_then(|tap| tap.source.as_ref()).map(|(_, ip)| *ip);
        let rule = "not the address that the tap is for";
        Refusal::when(made_for.is_some_and(|ip| ip != guest), "guest_ip", rule)?;
        let mut record = before.cloned().unwrap_or_default();
        record.bridge.clone_from(&bridge.name);
        record.guest = Some(guest);
        self.check_sole((&known, &netlink), name, &record)?;
        record.guest = grant.is_enabled.then_some(guest);
        record.allows_lan = grant.allows_lan;
        if before.is_none() && !grant.is_enabled {
            return Ok(false);
        }
        if before != Some(&record) {
            self.record_tap(name, Some(&record))?;
        }
        let settled = self.settle_firewall(&netlink, &[name.to_owned()]);
        if settled.is_err() {
            // Nor shall the record have it; the next look takes back what the kernel has of it.
            let _ = self.record_tap(name, before);
        }
        settled
    }
}
