//! `GET /v1/images/{name}/export`: an image as a file.

use axum::extract::State;
use axum::response::Response;
use banger_daemon_api::artifact::ExportFormat;
use banger_daemon_api::error::ApiError;
use banger_types::ImageName;
use serde::Deserialize;

use crate::api::{OCTETS, Shared, stream};
use crate::server::{Answer, PathPart, Query};

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
