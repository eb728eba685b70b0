//! `POST /v1/blobs/prune`: what was fetched from registries.

use axum::Json;
use axum::extract::State;
use banger_daemon_api::error::ApiError;
use banger_daemon_api::pull::{BlobsPruned, PruneBlobs};

use super::Shared;
use crate::server::{Answer, JsonBody};

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
