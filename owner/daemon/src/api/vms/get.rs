//! `GET /v1/vms/{vm}`.

use axum::Json;
use axum::extract::State;
use banger_daemon_api::error::ApiError;
use banger_daemon_api::vm::Vm;
use banger_types::VmReference;

use crate::api::Shared;
use crate::server::{Answer, PathPart};

/// Shows a VM.
#[utoipa::path(
    get,
    path = "/v1/vms/{vm}",
    params(("vm" = String, Path)),
    responses((status = 200, body = Vm), (status = 404, body = ApiError))
)]
pub async fn get(State(api): Shared, PathPart(vm): PathPart<VmReference>) -> Answer<Json<Vm>> {
    Ok(Json(api.services.vm(&vm).await?))
}
