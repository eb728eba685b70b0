//! What the helper remembers of its bridges and taps: the sets of the firewall are made of it, so
//! that rules which somebody flushed come back whole.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use banger_gates::request::{self, Bridge};
use banger_gates::{Name, NetworkConfig, Refusal};
use banger_helper_api::EnsureBridgeParams;
use serde::{Deserialize, Serialize};

use super::netlink::Netlink;
use super::routing::{self, Routing};
use crate::{Host, Result};

const BRIDGE: &str = "bridge";
const TAP: &str = "tap";
const UPLINK: &str = "uplink";

/// A tap, and what its guest may.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct TapRecord {
    /// The bridge that it is a port of.
    pub(super) bridge: String,
    /// The guest's only MAC and address.
    pub(super) source: Option<(String, Ipv4Addr)>,
    /// The group's name and the number that stands for it in the firewall.
    pub(super) group: Option<(String, u32)>,
    /// The address that leads out.
    pub(super) guest: Option<Ipv4Addr>,
    /// Whether it leads to private networks too.
    pub(super) allows_lan: bool,
}

impl TapRecord {
    /// The addresses of its guest.
    fn addresses(&self) -> impl Iterator<Item = Ipv4Addr> {
        self.source.iter().map(|source| source.1).chain(self.guest)
    }

    /// What the guests of two taps both have, if it is to be one's alone.
    fn shares(&self, other: &Self) -> Option<Name> {
        let mac = |tap: &Self| Some((tap.bridge.clone(), tap.source.clone()?.0));
        if mac(self).is_some_and(|own| mac(other) == Some(own)) {
            return Some("guest_mac");
        }
        self.addresses().any(|ip| other.addresses().any(|it| it == ip)).then_some("guest_ip")
    }
}

/// All records as they are.
#[derive(Clone, Debug, Default)]
pub(super) struct Known {
    pub(super) bridges: BTreeMap<String, Bridge>,
    pub(super) taps: BTreeMap<String, TapRecord>,
    /// Interfaces that forward because the helper said so.
    pub(super) uplinks: BTreeSet<String>,
}

impl Known {
    /// The taps of a bridge.
    pub(super) fn taps_of(&self, bridge: &str) -> impl Iterator<Item = (&String, &TapRecord)> {
        self.taps.iter().filter(move |(_, tap)| tap.bridge == bridge)
    }

    /// The number of a group: the one it has, or the first that no other has.
    pub(super) fn group_number(&self, bridge: &str, name: &str) -> u32 {
        let groups = || self.taps.values().filter_map(|tap| Some((tap, tap.group.as_ref()?)));
        let known = groups().find(|(tap, group)| tap.bridge == bridge && group.0 == name);
        let is_free = |number: &u32| groups().all(|(_, group)| group.1 != *number);
        known.map(|(_, group)| group.1).or_else(|| (1..).find(is_free)).unwrap_or_default()
    }
}

impl Host {
    /// That no other tap has the same guest. One that is gone without a word has none.
    pub(super) fn check_sole(
        &self,
        (known, netlink): (&Known, &Netlink),
        name: &str,
        record: &TapRecord,
    ) -> Result<()> {
        for (other, tap) in known.taps.iter().filter(|(other, _)| *other != name) {
            let Some(parameter) = tap.shares(record) else { continue };
            let is_there = netlink.link(other)?.is_some();
            Refusal::when(is_there, parameter, format!("the guest's behind {other}"))?;
        }
        Ok(())
    }

    pub(super) fn known_network(&self) -> Known {
        let bridges = self.records.all::<EnsureBridgeParams>(BRIDGE).into_iter();
        let bridges = bridges.filter_map(|(name, params)| {
            request::ensure_bridge(params).ok().map(|bridge| (name, bridge))
        });
        let uplinks = self.records.all::<()>(UPLINK).into_iter().map(|(name, ())| name);
        Known {
            bridges: bridges.collect(),
            taps: self.records.all(TAP).into_iter().collect(),
            uplinks: uplinks.collect(),
        }
    }

    pub(super) fn record_bridge(&self, name: &str, bridge: Option<&Bridge>) -> Result<()> {
        let Some(Bridge { network, dns_port }) = bridge else {
            return self.records.remove(BRIDGE, name);
        };
        let record = EnsureBridgeParams {
            bridge_name: name.to_owned(),
            bridge_ip: network.address().to_string(),
            cidr: network.prefix().to_string(),
            dns_port: *dns_port,
        };
        self.records.put(BRIDGE, name, &record)
    }

    /// Writes down which interfaces are made to forward, before they are.
    pub(super) fn record_uplinks(&self, known: &Known, routing: &Routing) -> Result<()> {
        let gone = known.uplinks.iter().filter(|_| routing.is_router);
        gone.into_iter().try_for_each(|name| self.records.remove(UPLINK, name))?;
        let new = routing.guarded.iter().filter(|name| !known.uplinks.contains(*name));
        new.into_iter().try_for_each(|name| self.records.put(UPLINK, name, &()))
    }

    /// Without a bridge, has interfaces that forward for guests do so no more; returns their names.
    pub(super) fn end_uplinks(&self) -> Result<BTreeSet<String>> {
        let Known { bridges, uplinks, .. } = self.known_network();
        let is_router = routing::forwards("all");
        for name in uplinks.iter().filter(|_| bridges.is_empty()) {
            if !is_router {
                routing::set("ipv4", name, "forwarding", "0")?;
            }
            self.records.remove(UPLINK, name)?;
        }
        Ok(uplinks)
    }

    /// Writes down a tap. What the guest of one that is gone was allowed is the next one's no more.
    pub(super) fn record_tap(&self, name: &str, tap: Option<&TapRecord>) -> Result<()> {
        let Some(tap) = tap else { return self.records.remove(TAP, name) };
        let mut others = self.known_network().taps;
        others.retain(|other, gone| other != name && gone.shares(tap).is_some());
        for (other, gone) in others {
            let gone = TapRecord { bridge: gone.bridge, ..TapRecord::default() };
            self.records.put(TAP, &other, &gone)?;
        }
        self.records.put(TAP, name, tap)
    }

    /// What the helper knows of a bridge; refused if it is not set up in just this way.
    pub(super) fn check_known(&self, network: &NetworkConfig) -> Result<()> {
        let name = network.bridge().as_str();
        let bridge = self.known_network().bridges.remove(name);
        if bridge.is_none_or(|bridge| bridge.network != *network) {
            let reason = "not set up with this address: priv.ensure_bridge comes first";
            return Err(Refusal::new("bridge_name", reason).into());
        }
        Ok(())
    }
}
