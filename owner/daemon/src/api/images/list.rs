//! `GET /v1/images`.

use axum::Json;
use axum::extract::State;
use banger_daemon_api::artifact::Image;

use crate::api::{Shared, used};
use crate::server::Answer;

/// Lists the images.
#[utoipa::path(get, path = "/v1/images", responses((status = 200, body = Vec<Image>)))]
pub async fn list(State(api): Shared) -> Answer<Json<Vec<Image>>> {
    Ok(Json(used::images(&api).await?))
}
