//! `PATCH /v1/config`.

use axum::Json;
use axum::extract::State;
use banger_daemon_api::config::{Config, Setting};
use banger_daemon_api::error::ApiError;

use super::settings;
use crate::api::Shared;
use crate::server::{Answer, JsonBody};

/// Changes a setting, at once; `auto` brings its default back.
#[utoipa::path(
    patch,
    path = "/v1/config",
    request_body = Setting,
    responses(
        (status = 200, body = Vec<Setting>),
        (status = 400, body = ApiError),
        (status = 409, body = ApiError)
    )
)]
pub async fn set(
    State(api): Shared,
    JsonBody(setting): JsonBody<Setting>,
) -> Answer<Json<Vec<Setting>>> {
    let apply = async |config: &Config| api.services.apply(config).await;
    api.services.config().set(&setting.key, &setting.value, apply).await?;
    Ok(Json(settings(&api).await))
}
