//! `banger vm delete`.

use clap::Args;

use super::{Act, SomeVms, for_each};
use crate::daemon;
use crate::error::CliError;
use crate::ui::Ui;

/// Arguments of `banger vm delete`.
#[derive(Args, Debug)]
pub struct DeleteArgs {
    #[command(flatten)]
    vms: SomeVms,
}

/// Deletes machines, running or not.
pub async fn run(ui: &Ui, args: &DeleteArgs) -> Result<(), CliError> {
    let client = daemon::connect(ui).await?;
    let vms = args.vms.resolve(&client, |_| true).await?;
    for_each(ui, &client, &vms, Act::Delete).await
}
