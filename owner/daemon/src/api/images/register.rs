//! `POST /v1/registered-images`: a file system of the user's own.

use axum::Json;
use axum::extract::State;
use banger_daemon_api::artifact::{Image, RegisterImage};
use banger_daemon_api::error::ApiError;

use crate::api::Shared;
use crate::server::{Answer, JsonBody};

/// Gives an ext4 file system of the user's own a name; it is checked first.
#[utoipa::path(
    post,
    path = "/v1/registered-images",
    request_body = RegisterImage,
    responses((status = 200, body = Image), (status = 409, body = ApiError))
)]
pub async fn register(
    State(api): Shared,
    JsonBody(request): JsonBody<RegisterImage>,
) -> Answer<Json<Image>> {
    Ok(Json(api.services.artifacts().register_image(request).await?))
}
