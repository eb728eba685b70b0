//! `banger ps`: running machines.

use clap::Args;

use super::{JsonArgs, vm};
use crate::error::CliError;
use crate::ui::Ui;

/// Arguments of `banger ps`.
#[derive(Args, Debug)]
pub struct PsArgs {
    /// Stopped ones too
    #[arg(short, long)]
    all: bool,
    #[command(flatten)]
    json: JsonArgs,
}

/// Lists running machines.
pub async fn run(ui: &Ui, args: &PsArgs) -> Result<(), CliError> {
    vm::list::print(ui, args.all, args.json.json).await
}
