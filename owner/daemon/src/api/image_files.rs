//! Images as files: exports, and file systems of the user's own.

use axum::Json;
use axum::extract::State;
use axum::response::Response;
use banger_daemon_api::artifact::{ExportFormat, Image, RegisterImage};
use banger_daemon_api::error::ApiError;
use banger_types::ImageName;
use serde::Deserialize;

use super::{OCTETS, Shared, stream};
use crate::server::{Answer, JsonBody, PathPart, Query};

/// What a client wants to have.
#[derive(Debug, Default, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct Wanted {
    /// `layout`, a tar of an OCI layout, or `bundle`.
    #[serde(default)]
    format: ExportFormat,
}

/// Exports an image.
#[utoipa::path(
    get,
    path = "/v1/images/{name}/export",
    params(("name" = String, Path), Wanted),
    responses(
        (status = 200, body = Vec<u8>, content_type = "application/octet-stream"),
        (status = 404, body = ApiError)
    )
)]
pub async fn export(
    State(api): Shared,
    PathPart(name): PathPart<ImageName>,
    Query(wanted): Query<Wanted>,
) -> Answer<Response> {
    let export = api.services.artifacts().export_image(&name, wanted.format).await?;
    let chunks = futures::stream::unfold(export.read(), |mut chunks| async move {
        chunks.recv().await.map(|chunk| (chunk, chunks))
    });
    Ok(stream(OCTETS, chunks))
}

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
