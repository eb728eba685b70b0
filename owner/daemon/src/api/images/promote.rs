//! `POST /v1/images/{name}/promote`.

use axum::Json;
use axum::extract::State;
use banger_daemon_api::artifact::Image;
use banger_daemon_api::error::ApiError;
use banger_types::ImageName;

use crate::api::Shared;
use crate::server::{Answer, PathPart};

/// Copies a registered image into the store; one that is there already stays as it is.
#[utoipa::path(
    post,
    path = "/v1/images/{name}/promote",
    params(("name" = String, Path)),
    responses((status = 200, body = Image), (status = 404, body = ApiError))
)]
pub async fn promote(
    State(api): Shared,
    PathPart(name): PathPart<ImageName>,
) -> Answer<Json<Image>> {
    Ok(Json(api.services.artifacts().promote_image(&name).await?))
}
