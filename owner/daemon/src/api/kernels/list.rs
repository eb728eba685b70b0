//! `GET /v1/kernels`.

use axum::Json;
use axum::extract::State;
use banger_daemon_api::artifact::Kernel;

use crate::api::{Shared, used};
use crate::server::Answer;

/// Lists the kernels.
#[utoipa::path(get, path = "/v1/kernels", responses((status = 200, body = Vec<Kernel>)))]
pub async fn list(State(api): Shared) -> Answer<Json<Vec<Kernel>>> {
    Ok(Json(used::kernels(&api).await?))
}
