//! `GET /v1/vms/{vm}/ports`.

use axum::Json;
use axum::extract::State;
use banger_daemon_api::error::ApiError;
use banger_daemon_api::vm::VmPorts;
use banger_types::VmReference;

use crate::api::Shared;
use crate::server::{Answer, PathPart};

/// Says what a VM publishes and what its guest listens on.
#[utoipa::path(
    get,
    path = "/v1/vms/{vm}/ports",
    params(("vm" = String, Path)),
    responses((status = 200, body = VmPorts), (status = 404, body = ApiError))
)]
pub async fn get(State(api): Shared, PathPart(vm): PathPart<VmReference>) -> Answer<Json<VmPorts>> {
    let ports = api.services.engine().ports(&vm).await;
    Ok(Json(ports.map_err(|error| error.to_api())?))
}
