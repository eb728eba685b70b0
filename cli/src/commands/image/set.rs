//! `banger image set`.

use banger_daemon_api::artifact::{ChangeImage, Image};
use banger_daemon_api::routes;
use banger_types::{ImageName, KernelName};
use clap::Args;

use crate::error::CliError;
use crate::ui::Ui;
use crate::{completion, daemon};

/// Arguments of `banger image set`.
#[derive(Args, Debug)]
pub struct SetArgs {
    /// The image
    #[arg(value_name = "IMAGE", add = completion::images())]
    name: ImageName,
    /// The kernel its machines boot unless told otherwise; none is the host's default
    #[arg(long, value_name = "KERNEL", value_parser = kernel_or_none, add = completion::kernels())]
    kernel: KernelOrNone,
}

/// A kernel, or the word for none.
#[derive(Clone, Debug)]
struct KernelOrNone(Option<KernelName>);

fn kernel_or_none(text: &str) -> Result<KernelOrNone, String> {
    if text == "none" {
        return Ok(KernelOrNone(None));
    }
    let name = text.parse::<KernelName>();
    name.map(|name| KernelOrNone(Some(name))).map_err(|error| error.to_string())
}

/// Changes an image; machines that exist keep what they have.
pub async fn run(ui: &Ui, args: SetArgs) -> Result<(), CliError> {
    let client = daemon::connect(ui).await?;
    let kernel = args.kernel.0.map(|name| name.to_string()).unwrap_or_default();
    let change = ChangeImage { default_kernel: Some(kernel) };
    let changed: Result<Image, _> = client.patch(&routes::image(&args.name), &change).await;
    changed.map(drop).map_err(|error| client.explain(error))
}
