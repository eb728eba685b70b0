//! `DELETE /v1/images/{name}`.

use axum::Json;
use axum::extract::State;
use banger_daemon_api::error::ApiError;
use banger_types::ImageName;

use crate::api::{Nothing, Shared, used};
use crate::server::{Answer, PathPart};

/// Deletes an image that no VM uses.
#[utoipa::path(
    delete,
    path = "/v1/images/{name}",
    params(("name" = String, Path)),
    responses(
        (status = 200, body = Nothing),
        (status = 404, body = ApiError),
        (status = 409, body = ApiError)
    )
)]
pub async fn delete(
    State(api): Shared,
    PathPart(name): PathPart<ImageName>,
) -> Answer<Json<Nothing>> {
    used::refuse_used_image(&api, &name)?;
    api.services.artifacts().delete_image(&name).await?;
    tracing::info!(image = name.as_str(), "deleted");
    Ok(Json(Nothing {}))
}
