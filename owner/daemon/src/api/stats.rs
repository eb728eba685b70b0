//! `GET /v1/vms/{vm}/stats`: what a VM uses.

use axum::Json;
use axum::extract::State;
use banger_daemon_api::error::ApiError;
use banger_daemon_api::stats::VmStats;
use banger_types::VmReference;

use super::Shared;
use crate::server::{Answer, PathPart};

/// Measures what a VM uses of the host and what its guest says; takes a quarter of a second.
#[utoipa::path(
    get,
    path = "/v1/vms/{vm}/stats",
    params(("vm" = String, Path)),
    responses((status = 200, body = VmStats), (status = 404, body = ApiError))
)]
pub async fn get(State(api): Shared, PathPart(vm): PathPart<VmReference>) -> Answer<Json<VmStats>> {
    let stats = api.services.engine().stats(&vm).await;
    Ok(Json(stats.map_err(|error| error.to_api())?))
}
