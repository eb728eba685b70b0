//! `GET /v1/config`.

use axum::Json;
use axum::extract::State;
use banger_daemon_api::config::Setting;

use super::settings;
use crate::api::Shared;

/// Lists the settings.
#[utoipa::path(get, path = "/v1/config", responses((status = 200, body = Vec<Setting>)))]
pub async fn list(State(api): Shared) -> Json<Vec<Setting>> {
    Json(settings(&api).await)
}
