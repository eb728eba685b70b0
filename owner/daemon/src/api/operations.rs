//! `/v1/operations`: long work, watched and cancelled.

use std::time::Duration;

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::response::Response;
use banger_daemon_api::error::{ApiError, ErrorCode};
use banger_daemon_api::operation::Operation;
use banger_engine::OperationHandle;
use banger_types::OperationId;
use bytes::Bytes;
use serde::Deserialize;

use super::{Api, JSON_LINES, Nothing, Shared, stream};
use crate::server::{Answer, Failure, PathPart, Query};

/// The longest a request may wait for a change; the client asks again.
const WAIT_MOST: Duration = Duration::from_secs(60);

/// The least time between two lines of one stage: bytes may be counted much faster than anybody
/// reads. A new stage, and the end, are told at once.
const EVENT_SPACING: Duration = Duration::from_millis(50);

/// Lists the operations under way and those that ended lately.
#[utoipa::path(get, path = "/v1/operations", responses((status = 200, body = Vec<Operation>)))]
pub async fn list(State(api): Shared) -> Json<Vec<Operation>> {
    Json(api.services.operations().list())
}

/// What a client waits for.
#[derive(Debug, Default, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct Wait {
    /// Answer once the operation's generation exceeds this, or it has ended.
    #[serde(default)]
    generation: u64,
    /// Milliseconds to wait for that, at most 60 000; 0 answers at once.
    #[serde(default)]
    wait_ms: u64,
}

/// Shows an operation, at once or after its next change.
#[utoipa::path(
    get,
    path = "/v1/operations/{id}",
    params(("id" = String, Path), Wait),
    responses((status = 200, body = Operation), (status = 404, body = ApiError))
)]
pub async fn get(
    State(api): Shared,
    PathPart(id): PathPart<OperationId>,
    Query(wait): Query<Wait>,
) -> Answer<Json<Operation>> {
    let handle = find(&api, &id)?;
    let limit = Duration::from_millis(wait.wait_ms).min(WAIT_MOST);
    if limit.is_zero() {
        return Ok(Json(handle.snapshot()));
    }
    let changed = tokio::select! {
        changed = tokio::time::timeout(limit, handle.changed_after(wait.generation)) => changed,
        () = api.end.cancelled() => return Err(ending()),
    };
    Ok(Json(changed.unwrap_or_else(|_| handle.snapshot())))
}

/// Streams an operation's snapshots, one JSON object a line, until it has ended.
#[utoipa::path(
    get,
    path = "/v1/operations/{id}/events",
    params(("id" = String, Path)),
    responses(
        (status = 200, body = Operation, content_type = "application/x-ndjson"),
        (status = 404, body = ApiError)
    )
)]
pub async fn events(State(api): Shared, PathPart(id): PathPart<OperationId>) -> Answer<Response> {
    let handle = find(&api, &id)?;
    let end = api.end.clone();
    let lines = futures::stream::unfold(Some((0, String::new())), move |before| {
        let (handle, end) = (handle.clone(), end.clone());
        async move {
            let (generation, stage) = before?;
            if generation > 0 {
                let _ = tokio::time::timeout(EVENT_SPACING, handle.left(&stage)).await;
            }
            let operation = tokio::select! {
                operation = handle.changed_after(generation) => operation,
                // Cut without an end: the reader knows that the operation has not ended.
                () = end.cancelled() => return None,
            };
            let next = (!operation.state.is_done())
                .then(|| (operation.generation, operation.stage.clone()));
            let mut line = serde_json::to_vec(&operation).ok()?;
            line.push(b'\n');
            Some((Ok::<_, std::convert::Infallible>(Bytes::from(line)), next))
        }
    });
    Ok(stream(JSON_LINES, lines))
}

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
        return Err(Failure::new(ErrorCode::InUse, message));
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

fn find(api: &Api, id: &OperationId) -> Answer<OperationHandle> {
    api.services.operations().get(id).ok_or_else(|| {
        Failure::new(ErrorCode::NotFound, format!("there is no operation {id}"))
            .hint("an operation is kept for ten minutes after its end")
    })
}

fn ending() -> Failure {
    Failure::new(ErrorCode::Unavailable, "bangerd is ending").hint("try again")
}
