//! `/v1/pulls`, `/v1/blobs`, `/v1/usage`: images from registries, and what takes the host's disk.

use axum::Json;
use axum::extract::State;
use banger_daemon_api::error::ApiError;
use banger_daemon_api::operation::OperationStarted;
use banger_daemon_api::pull::{BlobsPruned, DiskUsage, PruneBlobs, PullImage};

use super::{Accepted, Shared, accepted, used};
use crate::server::{Answer, JsonBody, OpId};

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

/// Removes what was fetched from registries and no pull under way needs.
#[utoipa::path(
    post,
    path = "/v1/blobs/prune",
    request_body = PruneBlobs,
    responses((status = 200, body = BlobsPruned), (status = 500, body = ApiError))
)]
pub async fn prune(
    State(api): Shared,
    JsonBody(request): JsonBody<PruneBlobs>,
) -> Answer<Json<BlobsPruned>> {
    Ok(Json(api.services.puller().prune(request.dry_run).await?))
}

/// Says what takes the host's disk.
#[utoipa::path(
    get,
    path = "/v1/usage",
    responses((status = 200, body = DiskUsage), (status = 500, body = ApiError))
)]
pub async fn usage(State(api): Shared) -> Answer<Json<DiskUsage>> {
    let (images, kernels) = (used::images(&api).await?, used::kernels(&api).await?);
    let (blobs, vms) = (api.services.puller().blobs(), api.directories.state.join("vms"));
    Ok(Json(api.services.artifacts().usage(&images, &kernels, blobs, &vms).await?))
}
