//! `banger config list`.

use banger_daemon_api::config::KEYS;

use super::settings;
use crate::commands::JsonArgs;
use crate::error::CliError;
use crate::ui::Ui;
use crate::{daemon, table};

/// Runs the verb.
pub async fn run(ui: &Ui, json: &JsonArgs) -> Result<(), CliError> {
    let settings = settings(&daemon::connect(ui).await?).await?;
    if json.json {
        return ui.json(&settings);
    }
    let facts: Vec<(&str, String)> = KEYS
        .iter()
        .filter_map(|(key, _)| {
            let found = settings.iter().find(|setting| setting.key == *key)?;
            Some((*key, found.value.clone()))
        })
        .collect();
    ui.line(table::facts(&facts))
}
