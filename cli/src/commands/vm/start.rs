//! `banger vm start`.

use clap::Args;
use serde_json::json;

use super::{Act, SomeVms, for_each};
use crate::daemon;
use crate::error::CliError;
use crate::file_sync::Belongings;
use crate::ui::Ui;

/// Arguments of `banger vm start`.
#[derive(Args, Debug)]
pub struct StartArgs {
    #[command(flatten)]
    vms: SomeVms,
}

/// Starts machines.
pub async fn run(ui: &Ui, args: &StartArgs) -> Result<(), CliError> {
    let belongings = Belongings::read()?;
    let client = daemon::connect(ui).await?;
    let vms = args.vms.resolve(&client, |vm| !super::is_up(vm)).await?;
    for_each(ui, &client, &vms, Act::Start("/start", &json!({}), &belongings)).await
}
