//! `POST /v1/shutdown`.

use axum::Json;
use axum::extract::State;

use super::{Nothing, Shared};

/// Ends the daemon. Its VMs keep running; the next daemon adopts them.
#[utoipa::path(post, path = "/v1/shutdown", responses((status = 200, body = Nothing)))]
pub async fn post(State(api): Shared) -> Json<Nothing> {
    tracing::info!("a client asks for the end");
    api.end.cancel();
    Json(Nothing {})
}
