//! `GET /v1/kernels/{name}`.

use axum::Json;
use axum::extract::State;
use banger_daemon_api::artifact::Kernel;
use banger_daemon_api::error::ApiError;
use banger_types::KernelName;

use crate::api::{Shared, used};
use crate::server::{Answer, PathPart};

/// Shows a kernel.
#[utoipa::path(
    get,
    path = "/v1/kernels/{name}",
    params(("name" = String, Path)),
    responses((status = 200, body = Kernel), (status = 404, body = ApiError))
)]
pub async fn get(State(api): Shared, PathPart(name): PathPart<KernelName>) -> Answer<Json<Kernel>> {
    Ok(Json(used::kernel(&api, &name).await?))
}
