//! `GET /v1/orphans`.

use axum::Json;
use axum::extract::State;
use banger_daemon_api::error::ApiError;
use banger_daemon_api::orphan::Orphan;

use super::Told;
use crate::api::Shared;
use crate::server::{Answer, Query};

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
