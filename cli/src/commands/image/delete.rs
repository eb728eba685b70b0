//! `banger image delete`.

use banger_daemon_api::routes;
use banger_types::ImageName;
use clap::Args;

use crate::error::CliError;
use crate::ui::Ui;
use crate::{artifacts, completion, daemon};

/// Arguments of `banger image delete`.
#[derive(Args, Debug)]
pub struct DeleteArgs {
    /// The images
    #[arg(required = true, value_name = "IMAGE", add = completion::images())]
    names: Vec<ImageName>,
}

/// Runs the verb.
pub async fn run(ui: &Ui, args: &DeleteArgs) -> Result<(), CliError> {
    let client = daemon::connect(ui).await?;
    artifacts::delete_all(ui, &client, &args.names, routes::image, super::explain_missing).await
}
