//! `GET /v1/images/{name}`.

use axum::Json;
use axum::extract::State;
use banger_daemon_api::artifact::Image;
use banger_daemon_api::error::ApiError;
use banger_types::ImageName;

use crate::api::{Shared, used};
use crate::server::{Answer, PathPart};

/// Shows an image.
#[utoipa::path(
    get,
    path = "/v1/images/{name}",
    params(("name" = String, Path)),
    responses((status = 200, body = Image), (status = 404, body = ApiError))
)]
pub async fn get(State(api): Shared, PathPart(name): PathPart<ImageName>) -> Answer<Json<Image>> {
    Ok(Json(used::image(&api, &name).await?))
}
