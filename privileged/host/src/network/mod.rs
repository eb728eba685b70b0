//! The guests' network: bridges, taps, the firewall, and where questions for `.vm` go.
//!
//! A method first looks (and refuses), then writes down what is to be, then changes links by
//! [`netlink`] and the firewall by [`firewall`]. One at a time per network namespace: two helpers, of
//! the system and of direct mode, share the two tables.

mod bridge;
pub(crate) mod firewall;
mod firewalld;
mod foreign;
mod nat;
mod netlink;
mod records;
mod resolver;
mod routing;
mod tap;

use std::fs::File;

use banger_gates::NetworkConfig;
use rustix::fs::FlockOperation;

use crate::{During, Result};
use netlink::{IFLA_IFALIAS, Link, Netlink, ROUTE};

pub use resolver::Resolver;

/// Root's alone in every network namespace, and of each its own: what a lock needs.
const LOCK: &str = "/proc/sys/net/ipv4/tcp_fastopen_key";

/// Waits until no other thread or process of banger's changes this network, until the file is
/// dropped; returns the socket to change it by, too.
fn turn() -> Result<(File, Netlink)> {
    let file = File::open(LOCK).during("open", LOCK)?;
    rustix::fs::flock(&file, FlockOperation::LockExclusive).during("lock", LOCK)?;
    Ok((file, Netlink::open(ROUTE)?))
}

/// What a bridge of an owner is called besides its name, so that another's helper lets it be.
fn alias(owner: u32) -> String {
    format!("banger, uid {owner}")
}

/// Whether an interface is a bridge of an owner.
fn is_owners(link: &Link, owner: u32) -> bool {
    link.kind == "bridge" && link.attributes.text(IFLA_IFALIAS) == alias(owner)
}

/// Whether an interface is the bridge of this configuration and owner, with its address, and up.
fn is_set_up(netlink: &Netlink, link: &Link, network: &NetworkConfig, owner: u32) -> Result<bool> {
    let has_address =
        netlink.addresses()?.contains(&(link.index, network.address(), network.prefix()));
    Ok(is_owners(link, owner) && link.is_up && has_address)
}
