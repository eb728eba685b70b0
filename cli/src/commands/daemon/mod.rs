//! `banger daemon`: look at `bangerd`, or end it.

mod status;
mod stop;

use clap::Subcommand;

use super::JsonArgs;
use crate::error::CliError;
use crate::ui::Ui;

/// What can be done with `bangerd`.
#[derive(Debug, Subcommand)]
pub enum DaemonCommand {
    /// Say whether bangerd runs, and how it does
    Status(JsonArgs),
    /// End bangerd; machines keep running
    Stop,
}

impl DaemonCommand {
    /// Runs the verb.
    pub async fn run(self, ui: &Ui) -> Result<(), CliError> {
        match self {
            Self::Status(json) => status::run(ui, json.json).await,
            Self::Stop => stop::run(ui).await,
        }
    }
}
