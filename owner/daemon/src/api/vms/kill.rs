//! `POST /v1/vms/{vm}/kill`.

use axum::Json;
use axum::extract::State;
use banger_daemon_api::error::ApiError;
use banger_daemon_api::vm::KillVm;
use banger_types::VmReference;

use crate::api::{Nothing, Shared};
use crate::server::{Answer, JsonBody, PathPart};

/// Sends a signal to the VM's VMM.
#[utoipa::path(
    post,
    path = "/v1/vms/{vm}/kill",
    params(("vm" = String, Path)),
    request_body = KillVm,
    responses(
        (status = 200, body = Nothing),
        (status = 404, body = ApiError),
        (status = 409, body = ApiError)
    )
)]
pub async fn kill(
    State(api): Shared,
    PathPart(vm): PathPart<VmReference>,
    JsonBody(how): JsonBody<KillVm>,
) -> Answer<Json<Nothing>> {
    api.services.engine().kill(&vm, &how.signal).await.map_err(|error| error.to_api())?;
    Ok(Json(Nothing {}))
}
