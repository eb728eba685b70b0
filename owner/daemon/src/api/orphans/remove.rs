//! `DELETE /v1/orphans`.

use axum::Json;
use axum::extract::State;
use banger_daemon_api::error::{ApiError, ErrorCode};
use banger_daemon_api::orphan::OrphansRemoved;

use super::Told;
use crate::api::Shared;
use crate::server::{Answer, Failure, Query};

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
