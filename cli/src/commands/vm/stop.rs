//! `banger vm stop`.

use banger_daemon_api::vm::{LEFTOVERS_NOTE, StopVm, Vm};
use clap::Args;

use super::{Act, SomeVms, for_each};
use crate::daemon;
use crate::error::CliError;
use crate::ui::Ui;

/// Arguments of `banger vm stop` and `banger vm restart`.
#[derive(Args, Debug)]
pub struct StopArgs {
    #[command(flatten)]
    pub(super) vms: SomeVms,
    /// Seconds to wait for a clean power-off before the VMM is killed [default: 60]
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u32).range(..=3600))]
    grace: Option<u32>,
    /// Kill the VMM at once, as pulling the plug would
    #[arg(short, long, conflicts_with = "grace")]
    force: bool,
}

impl StopArgs {
    /// Returns them as a request.
    pub(super) fn body(&self) -> Result<serde_json::Value, CliError> {
        let stop = StopVm {
            grace_ms: self.grace.map(|seconds| u64::from(seconds) * 1000),
            force: self.force,
        };
        serde_json::to_value(stop)
            .map_err(|error| CliError::new("cannot write the request").because(&error))
    }
}

/// Stops machines.
pub async fn run(ui: &Ui, args: &StopArgs) -> Result<(), CliError> {
    let client = daemon::connect(ui).await?;
    let concerns = |vm: &Vm| super::is_up(vm) || vm.notes.contains_key(LEFTOVERS_NOTE);
    let vms = args.vms.resolve(&client, concerns).await?;
    for_each(ui, &client, &vms, Act::Post("/stop", &args.body()?)).await
}
