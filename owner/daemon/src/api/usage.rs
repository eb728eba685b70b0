//! `GET /v1/usage`: what takes the host's disk.

use axum::Json;
use axum::extract::State;
use banger_daemon_api::error::ApiError;
use banger_daemon_api::pull::DiskUsage;

use super::{Shared, used};
use crate::server::Answer;

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
