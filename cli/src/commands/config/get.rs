//! `banger config get`.

use clap::Args;

use super::{key, settings};
use crate::error::CliError;
use crate::ui::Ui;
use crate::{completion, daemon};

/// Arguments of `banger config get`.
#[derive(Args, Debug)]
pub struct GetArgs {
    /// The setting, such as network.subnet
    #[arg(value_parser = key, add = completion::settings())]
    key: String,
}

/// Runs the verb.
pub async fn run(ui: &Ui, args: GetArgs) -> Result<(), CliError> {
    let settings = settings(&daemon::connect(ui).await?).await?;
    let found = settings.into_iter().find(|setting| setting.key == args.key);
    ui.line(found.map(|setting| setting.value).unwrap_or_default())
}
