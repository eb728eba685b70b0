//! `POST /v1/vms/{vm}/rename`.

use axum::Json;
use axum::extract::State;
use banger_daemon_api::error::ApiError;
use banger_daemon_api::vm::{RenameVm, Vm};
use banger_types::VmReference;

use crate::api::Shared;
use crate::server::{Answer, JsonBody, PathPart};

/// Gives a VM another name, running or not.
#[utoipa::path(
    post,
    path = "/v1/vms/{vm}/rename",
    params(("vm" = String, Path)),
    request_body = RenameVm,
    responses(
        (status = 200, body = Vm),
        (status = 404, body = ApiError),
        (status = 409, body = ApiError)
    )
)]
pub async fn rename(
    State(api): Shared,
    PathPart(vm): PathPart<VmReference>,
    JsonBody(RenameVm { name }): JsonBody<RenameVm>,
) -> Answer<Json<Vm>> {
    let renamed = api.services.engine().rename(&vm, name).await;
    Ok(Json(renamed.map_err(|error| error.to_api())?))
}
