//! `POST /v1/vms/{vm}/ports`.

use axum::Json;
use axum::extract::State;
use banger_daemon_api::error::ApiError;
use banger_daemon_api::vm::{ChangePorts, Vm};
use banger_types::VmReference;

use crate::api::Shared;
use crate::server::{Answer, JsonBody, OpId, PathPart};

/// Publishes ports and ends other publications, in one step: all of it or nothing. Of a VM that does
/// not run they are opened at its next start.
#[utoipa::path(
    post,
    path = "/v1/vms/{vm}/ports",
    params(("vm" = String, Path)),
    request_body = ChangePorts,
    responses(
        (status = 200, body = Vm),
        (status = 400, body = ApiError),
        (status = 404, body = ApiError),
        (status = 409, body = ApiError)
    )
)]
pub async fn change(
    State(api): Shared,
    PathPart(vm): PathPart<VmReference>,
    OpId(op_id): OpId,
    JsonBody(change): JsonBody<ChangePorts>,
) -> Answer<Json<Vm>> {
    let changed = api.services.engine().change_ports(&vm, change, op_id).await;
    Ok(Json(changed.map_err(|error| error.to_api())?))
}
