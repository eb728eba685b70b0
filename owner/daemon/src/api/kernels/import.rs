//! `POST /v1/kernels`.

use axum::extract::State;
use banger_daemon_api::artifact::ImportKernel;
use banger_daemon_api::error::ApiError;
use banger_daemon_api::operation::OperationStarted;

use crate::api::{Accepted, Shared, accepted};
use crate::server::{JsonBody, OpId};

/// Begins an import, or joins the one of this name that is under way.
#[utoipa::path(
    post,
    path = "/v1/kernels",
    request_body = ImportKernel,
    responses((status = 202, body = OperationStarted), (status = 409, body = ApiError))
)]
pub async fn import(
    State(api): Shared,
    OpId(op_id): OpId,
    JsonBody(request): JsonBody<ImportKernel>,
) -> Accepted {
    Ok(accepted(api.services.importer().kernel(request, op_id).await?))
}
