//! `GET /openapi.json`: the API's own description, made from the handlers and the wire types.

use axum::http::header;
use axum::response::{IntoResponse, Response};
use banger_daemon_api::error::ErrorCode;

use crate::server::{Answer, Failure};

/// What the document says before any path.
#[derive(Debug, utoipa::OpenApi)]
#[openapi(
    info(
        title = "bangerd",
        description = "The banger daemon's API, HTTP/1.1 over its unix socket. Errors have a body of \
                       type ApiError. Every answer has the header banger-op-id.",
    ),
    // What only a query has is not found by itself.
    components(schemas(banger_daemon_api::artifact::ExportFormat)),
)]
pub struct Document;

/// Describes this API.
#[utoipa::path(get, path = "/openapi.json", responses((status = 200, content_type = "application/json")))]
pub async fn get() -> Answer<Response> {
    // Made on demand: it is asked for rarely, and would sit in memory otherwise.
    let document = super::documented_router()
        .into_openapi()
        .to_json()
        .map_err(|error| Failure::new(ErrorCode::Internal, format!("OpenAPI document: {error}")))?;
    Ok(([(header::CONTENT_TYPE, "application/json")], document).into_response())
}
