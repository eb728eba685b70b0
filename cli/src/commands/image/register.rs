//! `banger image register`: a file system of the user's own.

use std::path::PathBuf;

use banger_daemon_api::artifact::{Image, RegisterImage};
use banger_daemon_api::routes;
use banger_types::{ImageName, KernelName};
use clap::Args;

use crate::error::CliError;
use crate::ui::Ui;
use crate::{completion, daemon};

/// Arguments of `banger image register`.
#[derive(Args, Debug)]
pub struct RegisterArgs {
    /// The image's name
    #[arg(value_name = "IMAGE")]
    name: ImageName,
    /// The file with the ext4 file system; its VMs never write to it, and nor should you
    #[arg(value_name = "FILE")]
    path: PathBuf,
    /// The kernel its machines boot unless told otherwise
    #[arg(long, add = completion::kernels())]
    kernel: Option<KernelName>,
    /// Replace an image of this name
    #[arg(long)]
    force: bool,
}

/// Runs the verb.
pub async fn run(ui: &Ui, args: RegisterArgs) -> Result<(), CliError> {
    let failed = || CliError::new(format!("cannot register {}", args.path.display()));
    let path = args.path.canonicalize().map_err(|error| failed().because(&error))?;
    let path = path
        .into_os_string()
        .into_string()
        .map_err(|_| failed().hint("give it a path that is UTF-8"))?;
    let request = RegisterImage {
        name: args.name.clone(),
        path,
        default_kernel: args.kernel,
        replace: args.force,
    };
    let client = daemon::connect(ui).await?;
    ui.status(format_args!("checking the file system"));
    let _: Image = client
        .post(routes::REGISTERED_IMAGES, &request)
        .await
        .map_err(|error| client.explain(error))?;
    ui.line(&args.name)
}
