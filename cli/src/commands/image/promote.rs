//! `banger image promote`: a registered image in banger's own store.

use banger_daemon_api::artifact::Image;
use banger_daemon_api::routes;
use banger_types::ImageName;
use clap::Args;

use crate::error::CliError;
use crate::ui::Ui;
use crate::{completion, daemon};

/// Arguments of `banger image promote`.
#[derive(Args, Debug)]
pub struct PromoteArgs {
    /// The image
    #[arg(value_name = "IMAGE", add = completion::images())]
    name: ImageName,
}

/// Runs the verb.
pub async fn run(ui: &Ui, args: &PromoteArgs) -> Result<(), CliError> {
    let client = daemon::connect(ui).await?;
    super::get(&client, &args.name).await?;
    let _: Image = client
        .post(&routes::image_promote(&args.name), &serde_json::json!({}))
        .await
        .map_err(|error| client.explain(error))?;
    ui.line(&args.name)
}
