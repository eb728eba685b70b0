//! `POST /v1/vms/{vm}/restart`.

use axum::extract::State;
use banger_daemon_api::error::ApiError;
use banger_daemon_api::operation::OperationStarted;
use banger_daemon_api::vm::StopVm;
use banger_types::VmReference;

use super::begun;
use crate::api::{Accepted, Shared};
use crate::server::{OpId, OptionalJsonBody, PathPart};

/// Stops a VM and starts it again.
#[utoipa::path(
    post,
    path = "/v1/vms/{vm}/restart",
    params(("vm" = String, Path)),
    request_body = Option<StopVm>,
    responses((status = 202, body = OperationStarted), (status = 404, body = ApiError))
)]
pub async fn restart(
    State(api): Shared,
    PathPart(vm): PathPart<VmReference>,
    OpId(op_id): OpId,
    OptionalJsonBody(how): OptionalJsonBody<StopVm>,
) -> Accepted {
    begun(api.services.engine().restart(&vm, &how, op_id).await)
}
