//! `DELETE /v1/operations/{id}`.

use axum::Json;
use axum::extract::State;
use banger_daemon_api::error::ApiError;
use banger_daemon_api::operation::Operation;
use banger_types::OperationId;

use super::find;
use crate::api::Shared;
use crate::server::{Answer, PathPart};

/// Asks an operation to end; what it made is undone. An operation that has ended stays as it is.
#[utoipa::path(
    delete,
    path = "/v1/operations/{id}",
    params(("id" = String, Path)),
    responses((status = 200, body = Operation), (status = 404, body = ApiError))
)]
pub async fn cancel(
    State(api): Shared,
    PathPart(id): PathPart<OperationId>,
) -> Answer<Json<Operation>> {
    let handle = find(&api, &id)?;
    handle.cancel();
    Ok(Json(handle.snapshot()))
}
