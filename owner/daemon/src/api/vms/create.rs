//! `POST /v1/vms`.

use axum::extract::State;
use banger_daemon_api::error::ApiError;
use banger_daemon_api::operation::OperationStarted;
use banger_daemon_api::vm::CreateVm;
use banger_engine::Started;

use super::begun;
use crate::api::{Accepted, Shared};
use crate::server::{JsonBody, OpId};

/// Creates a VM and starts it.
#[utoipa::path(
    post,
    path = "/v1/vms",
    request_body = CreateVm,
    responses(
        (status = 202, body = OperationStarted),
        (status = 409, body = ApiError),
        (status = 507, body = ApiError)
    )
)]
pub async fn create(
    State(api): Shared,
    OpId(op_id): OpId,
    JsonBody(request): JsonBody<CreateVm>,
) -> Accepted {
    let operation = api.services.engine().create(request, op_id);
    begun(operation.map(|operation| Started { operation, joined: false }))
}
