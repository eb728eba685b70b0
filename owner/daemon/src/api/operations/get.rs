//! `GET /v1/operations/{id}`.

use std::time::Duration;

use axum::Json;
use axum::extract::State;
use banger_daemon_api::error::ApiError;
use banger_daemon_api::operation::Operation;
use banger_types::OperationId;
use serde::Deserialize;

use super::{ending, find};
use crate::api::Shared;
use crate::server::{Answer, PathPart, Query};

/// The longest a request may wait for a change; the client asks again.
const WAIT_MOST: Duration = Duration::from_secs(60);

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
