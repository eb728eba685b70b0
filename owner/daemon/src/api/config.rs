//! `/v1/config`: the daemon's settings.

use axum::Json;
use axum::extract::State;
use banger_daemon_api::config::{Config, KEYS, Setting};
use banger_daemon_api::error::ApiError;

use super::{Api, Shared};
use crate::server::{Answer, JsonBody};

/// Lists the settings.
#[utoipa::path(get, path = "/v1/config", responses((status = 200, body = Vec<Setting>)))]
pub async fn list(State(api): Shared) -> Json<Vec<Setting>> {
    Json(settings(&api).await)
}

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

async fn settings(api: &Api) -> Vec<Setting> {
    let file = api.services.config();
    let (config, origins) = (file.now().await, file.origins().await);
    let setting = |key: &str| {
        let value = config.get(key).unwrap_or_default();
        Setting { key: key.to_owned(), value, origin: origins.get(key).cloned() }
    };
    KEYS.iter().map(|(key, _)| setting(key)).collect()
}
