//! `POST /v1/vms/{vm}/set`: changing the size and shape of a VM that does not run.

use axum::extract::State;
use banger_daemon_api::error::ApiError;
use banger_daemon_api::operation::OperationStarted;
use banger_daemon_api::vm::SetVm;
use banger_types::VmReference;

use super::vms::begun;
use super::{Accepted, Shared};
use crate::server::{JsonBody, OpId, PathPart};

/// Changes a stopped VM; a change that changes nothing of it succeeds.
#[utoipa::path(
    post,
    path = "/v1/vms/{vm}/set",
    params(("vm" = String, Path)),
    request_body = SetVm,
    responses(
        (status = 202, body = OperationStarted),
        (status = 404, body = ApiError),
        (status = 409, body = ApiError)
    )
)]
pub async fn post(
    State(api): Shared,
    PathPart(vm): PathPart<VmReference>,
    OpId(op_id): OpId,
    JsonBody(change): JsonBody<SetVm>,
) -> Accepted {
    begun(api.services.engine().set(&vm, change, op_id).await)
}
