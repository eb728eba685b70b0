//! `POST /v1/vms/{vm}/stop`.

use axum::extract::State;
use banger_daemon_api::error::ApiError;
use banger_daemon_api::operation::OperationStarted;
use banger_daemon_api::vm::StopVm;
use banger_types::VmReference;

use super::begun;
use crate::api::{Accepted, Shared};
use crate::server::{OpId, OptionalJsonBody, PathPart};

/// Stops a VM; one that is stopped stays as it is.
#[utoipa::path(
    post,
    path = "/v1/vms/{vm}/stop",
    params(("vm" = String, Path)),
    request_body = Option<StopVm>,
    responses((status = 202, body = OperationStarted), (status = 404, body = ApiError))
)]
pub async fn stop(
    State(api): Shared,
    PathPart(vm): PathPart<VmReference>,
    OpId(op_id): OpId,
    OptionalJsonBody(how): OptionalJsonBody<StopVm>,
) -> Accepted {
    begun(api.services.engine().stop(&vm, &how, op_id).await)
}
