//! `POST /v1/images`.

use axum::extract::State;
use banger_daemon_api::artifact::ImportImage;
use banger_daemon_api::error::ApiError;
use banger_daemon_api::operation::OperationStarted;

use crate::api::{Accepted, Shared, accepted};
use crate::server::{JsonBody, OpId};

/// Begins an import, or joins the one of this name that is under way.
#[utoipa::path(
    post,
    path = "/v1/images",
    request_body = ImportImage,
    responses((status = 202, body = OperationStarted), (status = 409, body = ApiError))
)]
pub async fn import(
    State(api): Shared,
    OpId(op_id): OpId,
    JsonBody(request): JsonBody<ImportImage>,
) -> Accepted {
    Ok(accepted(api.services.importer().image(request, op_id).await?))
}
