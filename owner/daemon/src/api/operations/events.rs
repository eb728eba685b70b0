//! `GET /v1/operations/{id}/events`.

use std::time::Duration;

use axum::extract::State;
use axum::response::Response;
use banger_daemon_api::error::ApiError;
use banger_daemon_api::operation::Operation;
use banger_types::OperationId;
use bytes::Bytes;

use super::find;
use crate::api::{JSON_LINES, Shared, stream};
use crate::server::{Answer, PathPart};

/// The least time between two lines of one stage: bytes may be counted much faster than anybody
/// reads. A new stage, and the end, are told at once.
const EVENT_SPACING: Duration = Duration::from_millis(50);

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
