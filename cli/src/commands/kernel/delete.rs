//! `banger kernel delete`.

use banger_daemon_api::routes;
use banger_types::KernelName;
use clap::Args;

use crate::error::CliError;
use crate::ui::Ui;
use crate::{artifacts, completion, daemon};

/// Arguments of `banger kernel delete`.
#[derive(Args, Debug)]
pub struct DeleteArgs {
    /// The kernels
    #[arg(required = true, value_name = "KERNEL", add = completion::kernels())]
    names: Vec<KernelName>,
}

/// Runs the verb.
pub async fn run(ui: &Ui, args: &DeleteArgs) -> Result<(), CliError> {
    let client = daemon::connect(ui).await?;
    artifacts::delete_all(ui, &client, &args.names, routes::kernel, super::explain_missing).await
}
