//! Where the host asks for names below `.vm`: systemd-resolved, by the bridge's link (resolvectl(1)).

use std::path::Path;
use std::time::Duration;

use banger_gates::request::ResolverRoute;
use banger_gates::{BridgeName, Refusal};

use super::netlink::{Netlink, ROUTE};
use super::{is_owners, turn};
use crate::tool::Tool;
use crate::{Host, HostError, Result};

const PATHS: &[&str] = &["/usr/bin/resolvectl", "/bin/resolvectl"];
/// resolved's own socket, there while it runs.
const RUNNING: &str = "/run/systemd/resolve/io.systemd.Resolve";
const LIMIT: Duration = Duration::from_secs(20);

/// What came of a wish to the host's resolver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resolver {
    /// It was done.
    Told,
    /// The host has no systemd-resolved that runs: nothing was done.
    Absent,
}

/// Whether the host has no systemd-resolved that runs.
fn is_absent() -> bool {
    !Tool::is_there(PATHS) || !Path::new(RUNNING).exists()
}

fn tell(words: &[&str]) -> Result<()> {
    let outcome = Tool::of(PATHS, words, LIMIT).run()?;
    if outcome.status.success() {
        return Ok(());
    }
    Err(HostError::of("tell systemd-resolved", words.join(" "))(outcome.error))
}

impl Host {
    /// Sends questions for `.vm`, and no others, to the server.
    ///
    /// # Errors
    /// Refused: no bridge of this owner's. What resolvectl says; the link's settings are then taken
    /// back whole.
    pub fn sync_resolver_routing(&self, route: &ResolverRoute) -> Result<Resolver> {
        let _turn = turn()?;
        let name = route.bridge.as_str();
        Refusal::when(!self.has_bridge(name)?, "bridge_name", "no such interface")?;
        if is_absent() {
            return Ok(Resolver::Absent);
        }
        let told = tell(&["dns", name, &route.server.to_string()])
            .and_then(|()| tell(&["domain", name, "~vm"]))
            .and_then(|()| tell(&["default-route", name, "no"]));
        if told.is_err() {
            let _ = tell(&["revert", name]);
        }
        told.map(|()| Resolver::Told)
    }

    /// Takes that back; a bridge that is gone has nothing to take back.
    ///
    /// # Errors
    /// Refused: an interface that is no bridge of this owner's. What resolvectl says.
    pub fn clear_resolver_routing(&self, bridge: &BridgeName) -> Result<Resolver> {
        let _turn = turn()?;
        let name = bridge.as_str();
        match self.has_bridge(name)? {
            true if is_absent() => Ok(Resolver::Absent),
            true => tell(&["revert", name]).map(|()| Resolver::Told),
            false => Ok(Resolver::Told),
        }
    }

    /// Whether there is an interface of this name, which is a bridge of this owner's then.
    fn has_bridge(&self, name: &str) -> Result<bool> {
        let Some(link) = Netlink::open(ROUTE)?.link(name)? else { return Ok(false) };
        let is_ours = is_owners(&link, self.policy().owner.uid());
        Refusal::when(!is_ours, "bridge_name", "no bridge of this owner's")?;
        Ok(true)
    }
}
