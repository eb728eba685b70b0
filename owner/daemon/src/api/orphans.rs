//! `/v1/orphans`: what of ours is on the host and belongs to no VM.

use axum::Json;
use axum::extract::State;
use banger_daemon_api::error::{ApiError, ErrorCode};
use banger_daemon_api::orphan::{Orphan, OrphanKind, OrphansRemoved};
use serde::Deserialize;

use super::Shared;
use crate::server::{Answer, Failure, Query};

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
            let message = format!("more than {MOST_TAPS} taps");
            return Err(Failure::new(ErrorCode::BadParams, message));
        }
        Ok(orphans)
    }
}

/// Lists what belongs to no VM.
#[utoipa::path(
    get,
    path = "/v1/orphans",
    params(Told),
    responses((status = 200, body = Vec<Orphan>), (status = 400, body = ApiError))
)]
pub async fn list(State(api): Shared, Query(told): Query<Told>) -> Answer<Json<Vec<Orphan>>> {
    Ok(Json(api.services.engine().orphans(&told.orphans()?).await.map_err(|it| it.to_api())?))
}

/// Removes what belongs to no VM, and nothing else.
#[utoipa::path(
    delete,
    path = "/v1/orphans",
    params(Told),
    responses((status = 200, body = OrphansRemoved), (status = 400, body = ApiError))
)]
pub async fn remove(State(api): Shared, Query(told): Query<Told>) -> Answer<Json<OrphansRemoved>> {
    // In a task of its own: a client that goes away leaves no half-removed thing.
    let told = told.orphans()?;
    let removal = tokio::spawn(async move { api.services.engine().remove_orphans(&told).await });
    let outcome = removal
        .await
        .map_err(|error| Failure::new(ErrorCode::Internal, format!("removing orphans: {error}")))?;
    Ok(Json(outcome.map_err(|error| error.to_api())?))
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
