//! `GET /v1/vms`.

use axum::Json;
use axum::extract::State;
use banger_daemon_api::vm::Vm;

use crate::api::Shared;

/// Lists the VMs.
#[utoipa::path(get, path = "/v1/vms", responses((status = 200, body = Vec<Vm>)))]
pub async fn list(State(api): Shared) -> Json<Vec<Vm>> {
    Json(api.services.engine().list().await)
}
