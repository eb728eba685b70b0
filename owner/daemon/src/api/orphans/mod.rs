//! `/v1/orphans`: what of ours is on the host and belongs to no VM, one file a method.

pub mod list;
pub mod remove;

use banger_daemon_api::error::ErrorCode;
use banger_daemon_api::orphan::{Orphan, OrphanKind};
use serde::Deserialize;

use crate::server::{Answer, Failure};

/// What begins the names of VMs' taps.
const TAP: &str = "tap-fc-";

/// The most taps that a request names; nothing of the host has as many.
const MOST_TAPS: usize = 4096;

/// What only root can see and tells us.
#[derive(Debug, Default, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct Told {
    /// Names of taps that the firewall knows, with commas between them.
    #[serde(default)]
    tap: String,
}

impl Told {
    fn orphans(&self) -> Answer<Vec<Orphan>> {
        // A tap that is there is found as one; it may be another daemon's.
        let there = std::fs::read_to_string("/proc/net/dev").unwrap_or_default();
        let is_there = |name: &str| {
            there.lines().any(|line| line.split_once(':').is_some_and(|it| it.0.trim() == name))
        };
        let names = self.tap.split(',').filter(|name| !name.is_empty() && !is_there(name));
        let orphans: Vec<Orphan> = names
            .take(MOST_TAPS + 1)
            .filter_map(|name| {
                let vm = name.strip_prefix(TAP)?.to_owned();
                Some(Orphan { kind: OrphanKind::Firewall, name: name.to_owned(), vm })
            })
            .collect();
        if orphans.len() > MOST_TAPS {
            let message = format!("the query names more than {MOST_TAPS} taps");
            return Err(Failure::new(ErrorCode::BadParams, message).hint("name some at a time"));
        }
        Ok(orphans)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_taps_of_machines_are_taken() {
        let told = |tap: &str| Told { tap: tap.to_owned() }.orphans();
        assert_eq!(told("").unwrap(), []);
        let found = told("eth0,tap-fc-00112233,,tap-pool-1").unwrap();
        assert_eq!(found.len(), 1);
        assert_eq!((found[0].name.as_str(), found[0].vm.as_str()), ("tap-fc-00112233", "00112233"));
        assert!(told(&"tap-fc-0,".repeat(MOST_TAPS + 1)).is_err());
    }
}
