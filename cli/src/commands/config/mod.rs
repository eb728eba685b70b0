//! `banger config`: bangerd's settings.

mod get;
mod list;
mod set;
mod show;

use banger_daemon_api::config::{Config, Setting};
use banger_daemon_api::routes;
use clap::Subcommand;

use super::JsonArgs;
use crate::client::Client;
use crate::error::CliError;
use crate::ui::Ui;

/// What can be done with settings.
#[derive(Debug, Subcommand)]
pub enum ConfigCommand {
    /// Print a setting
    Get(get::GetArgs),
    /// Change a setting, at once
    Set(set::SetArgs),
    /// Print all settings
    #[command(visible_alias = "ls")]
    List(JsonArgs),
    /// Print what is in force, and where each value is from
    #[command(
        after_help = "A value is from an option, a variable of the environment, a line of a file, or is the default.
An option goes before a variable, and that before a file. Lines of a file that banger does not
know stop bangerd at its start, with their names."
    )]
    Show(JsonArgs),
}

/// Checks a key before a daemon is started for it.
fn key(text: &str) -> Result<String, String> {
    Config::default().get(text).map(|_| text.to_owned()).map_err(|error| error.to_string())
}

impl ConfigCommand {
    /// Runs the verb.
    pub async fn run(self, ui: &Ui) -> Result<(), CliError> {
        match self {
            Self::Get(args) => get::run(ui, args).await,
            Self::Set(args) => set::run(ui, args).await,
            Self::List(json) => list::run(ui, &json).await,
            Self::Show(json) => show::run(ui, &json).await,
        }
    }
}

async fn settings(client: &Client) -> Result<Vec<Setting>, CliError> {
    client.get(routes::CONFIG).await.map_err(|error| client.explain(error))
}
