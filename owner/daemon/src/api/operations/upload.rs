//! `PUT /v1/operations/{id}/upload`.

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use banger_daemon_api::error::{ApiError, ErrorCode};
use banger_daemon_api::operation::Operation;
use banger_types::OperationId;

use super::{ending, find};
use crate::api::{Nothing, Shared};
use crate::server::{Answer, Failure, PathPart};

/// Takes the bytes of an import. The answer comes when all are taken, or when the import failed;
/// the operation says when it has ended.
#[utoipa::path(
    put,
    path = "/v1/operations/{id}/upload",
    params(("id" = String, Path)),
    request_body(content = Vec<u8>, content_type = "application/octet-stream"),
    responses((status = 200, body = Nothing), (status = 404, body = ApiError), (status = 409, body = ApiError))
)]
pub async fn upload(
    State(api): Shared,
    PathPart(id): PathPart<OperationId>,
    body: Body,
) -> Answer<Json<Nothing>> {
    let handle = find(&api, &id)?;
    let Some(mut uploader) = api.services.importer().uploads().take_uploader(&id) else {
        // Called off, or failed, before the upload came: that is what the client should hear.
        if handle.is_cancelled() || handle.snapshot().state.is_done() {
            no_error(handle.ended().await)?;
        }
        let message = format!("operation {id} takes no upload, or has one already");
        return Err(Failure::new(ErrorCode::InUse, message)
            .hint(format!("GET /v1/operations/{id} says how far it is")));
    };
    tokio::select! {
        taken = uploader.pump(body) => taken.map_err(Failure)?,
        operation = handle.ended() => {
            // The importer has all it wants, or has given up.
            no_error(operation)?;
        }
        () = api.end.cancelled() => return Err(ending()),
    }
    Ok(Json(Nothing {}))
}

/// Passes an operation's error on as that of the request, which has an id of its own.
fn no_error(operation: Operation) -> Answer<()> {
    match operation.error {
        None => Ok(()),
        Some(error) => Err(ApiError { op_id: None, ..error }.into()),
    }
}
