//! `banger config show`: what is in force, and from where.

use banger_daemon_api::config::Setting;
use serde::Serialize;

use super::settings;
use crate::commands::JsonArgs;
use crate::error::CliError;
use crate::ui::Ui;
use crate::{daemon, environment, table};

/// Runs the verb.
pub async fn run(ui: &Ui, json: &JsonArgs) -> Result<(), CliError> {
    let all = in_force(ui).await?;
    if json.json {
        return ui.json(&all);
    }
    let rows: Vec<[String; 3]> =
        all.into_iter().map(|one| [one.key, one.value, one.origin]).collect();
    ui.line(table::table(["SETTING", "VALUE", "FROM"], &rows))
}

/// A value that is in force.
#[derive(Debug, Serialize)]
struct InForce {
    key: String,
    value: String,
    origin: String,
}

/// Lists how this program finds its daemon, and that daemon's settings.
async fn in_force(ui: &Ui) -> Result<Vec<InForce>, CliError> {
    let found = environment::origins()?.into_iter();
    let mut all: Vec<InForce> =
        found.map(|(key, value, origin)| InForce { key: key.to_owned(), value, origin }).collect();
    let settings = settings(&daemon::connect(ui).await?).await?;
    all.extend(settings.into_iter().map(|Setting { key, value, origin }| InForce {
        key,
        value,
        origin: origin.unwrap_or_else(|| environment::DEFAULT.to_owned()),
    }));
    Ok(all)
}
