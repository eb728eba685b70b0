//! `/v1/config`: the daemon's settings, one file a method.

pub mod list;
pub mod set;

use banger_daemon_api::config::{KEYS, Setting};

use crate::api::Api;

async fn settings(api: &Api) -> Vec<Setting> {
    let file = api.services.config();
    let (config, origins) = (file.now().await, file.origins().await);
    let setting = |key: &str| {
        let value = config.get(key).unwrap_or_default();
        Setting { key: key.to_owned(), value, origin: origins.get(key).cloned() }
    };
    KEYS.iter().map(|(key, _)| setting(key)).collect()
}
