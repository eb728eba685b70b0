//! `POST /v1/pulls`: images from registries.

use axum::extract::State;
use banger_daemon_api::error::ApiError;
use banger_daemon_api::operation::OperationStarted;
use banger_daemon_api::pull::PullImage;

use super::{Accepted, Shared, accepted};
use crate::server::{JsonBody, OpId};

/// Begins to make an image of one in a registry, or joins the pull of this name and reference that
/// is under way.
#[utoipa::path(
    post,
    path = "/v1/pulls",
    request_body = PullImage,
    responses(
        (status = 202, body = OperationStarted),
        (status = 400, body = ApiError),
        (status = 409, body = ApiError)
    )
)]
pub async fn begin(
    State(api): Shared,
    OpId(op_id): OpId,
    JsonBody(request): JsonBody<PullImage>,
) -> Accepted {
    let config = api.services.config().now().await.registry;
    Ok(accepted(api.services.puller().begin(request, config, op_id).await?))
}
