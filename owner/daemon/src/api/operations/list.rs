//! `GET /v1/operations`.

use axum::Json;
use axum::extract::State;
use banger_daemon_api::operation::Operation;

use crate::api::Shared;

/// Lists the operations under way and those that ended lately.
#[utoipa::path(get, path = "/v1/operations", responses((status = 200, body = Vec<Operation>)))]
pub async fn list(State(api): Shared) -> Json<Vec<Operation>> {
    Json(api.services.operations().list())
}
