//! `POST /v1/vms/{vm}/start`.

use axum::extract::State;
use banger_daemon_api::error::ApiError;
use banger_daemon_api::operation::OperationStarted;
use banger_types::VmReference;

use super::begun;
use crate::api::{Accepted, Shared};
use crate::server::{OpId, PathPart};

/// Starts a stopped VM; one that runs stays as it is.
#[utoipa::path(
    post,
    path = "/v1/vms/{vm}/start",
    params(("vm" = String, Path)),
    responses((status = 202, body = OperationStarted), (status = 404, body = ApiError))
)]
pub async fn start(
    State(api): Shared,
    PathPart(vm): PathPart<VmReference>,
    OpId(op_id): OpId,
) -> Accepted {
    begun(api.services.engine().start(&vm, op_id).await)
}
