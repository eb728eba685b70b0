//! `banger vm start`, `stop` and `restart`.

use clap::Args;
use serde_json::json;

use banger_daemon_api::vm::{LEFTOVERS_NOTE, StopVm, Vm};

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

/// Arguments of `banger vm stop` and `banger vm restart`.
#[derive(Args, Debug)]
pub struct StopArgs {
    #[command(flatten)]
    vms: SomeVms,
    /// Seconds to wait for a clean power-off before the VMM is killed [default: 60]
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u32).range(..=3600))]
    grace: Option<u32>,
    /// Kill the VMM at once, as pulling the plug would
    #[arg(short, long, conflicts_with = "grace")]
    force: bool,
}

impl StopArgs {
    fn body(&self) -> Result<serde_json::Value, CliError> {
        let stop = StopVm {
            grace_ms: self.grace.map(|seconds| u64::from(seconds) * 1000),
            force: self.force,
        };
        serde_json::to_value(stop)
            .map_err(|error| CliError::new("cannot write the request").because(&error))
    }
}

/// Starts machines.
pub async fn start(ui: &Ui, args: &StartArgs) -> Result<(), CliError> {
    let belongings = Belongings::read()?;
    let client = daemon::connect(ui).await?;
    let vms = args.vms.resolve(&client, |vm| !super::is_up(vm)).await?;
    for_each(ui, &client, &vms, Act::Start("/start", &json!({}), &belongings)).await
}

/// Stops machines.
pub async fn stop(ui: &Ui, args: &StopArgs) -> Result<(), CliError> {
    let client = daemon::connect(ui).await?;
    let concerns = |vm: &Vm| super::is_up(vm) || vm.notes.contains_key(LEFTOVERS_NOTE);
    let vms = args.vms.resolve(&client, concerns).await?;
    for_each(ui, &client, &vms, Act::Post("/stop", &args.body()?)).await
}

/// Stops and starts machines.
pub async fn restart(ui: &Ui, args: &StopArgs) -> Result<(), CliError> {
    let belongings = Belongings::read()?;
    let client = daemon::connect(ui).await?;
    let vms = args.vms.resolve(&client, super::is_up).await?;
    for_each(ui, &client, &vms, Act::Start("/restart", &args.body()?, &belongings)).await
}
