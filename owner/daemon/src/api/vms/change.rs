//! `PATCH /v1/vms/{vm}`.

use axum::Json;
use axum::extract::State;
use banger_daemon_api::error::ApiError;
use banger_daemon_api::vm::{ChangeVm, Vm};
use banger_types::VmReference;

use crate::api::Shared;
use crate::server::{Answer, JsonBody, OpId, PathPart};

/// Changes what a VM's guest may on the network, at once where it is on the host's bridge.
#[utoipa::path(
    patch,
    path = "/v1/vms/{vm}",
    params(("vm" = String, Path)),
    request_body = ChangeVm,
    responses(
        (status = 200, body = Vm),
        (status = 400, body = ApiError),
        (status = 404, body = ApiError)
    )
)]
pub async fn change(
    State(api): Shared,
    PathPart(vm): PathPart<VmReference>,
    OpId(op_id): OpId,
    JsonBody(change): JsonBody<ChangeVm>,
) -> Answer<Json<Vm>> {
    let changed = api.services.engine().change(&vm, &change, op_id).await;
    Ok(Json(changed.map_err(|error| error.to_api())?))
}
