//! `banger vm restart`, whose arguments are those of `stop`.

use super::stop::StopArgs;
use super::{Act, for_each};
use crate::daemon;
use crate::error::CliError;
use crate::file_sync::Belongings;
use crate::ui::Ui;

/// Stops and starts machines.
pub async fn run(ui: &Ui, args: &StopArgs) -> Result<(), CliError> {
    let belongings = Belongings::read()?;
    let client = daemon::connect(ui).await?;
    let vms = args.vms.resolve(&client, super::is_up).await?;
    for_each(ui, &client, &vms, Act::Start("/restart", &args.body()?, &belongings)).await
}
