//! `banger image import`: an image of what is on this host already.

use std::path::PathBuf;

use banger_daemon_api::artifact::ImportImage;
use banger_types::{ImageName, KernelName};
use clap::Args;

use crate::error::CliError;
use crate::interrupt::Interrupts;
use crate::ui::Ui;
use crate::{artifacts, completion, daemon};

/// Arguments of `banger image import`.
#[derive(Args, Debug)]
pub struct ImportArgs {
    /// A tar (plain, gzip, zstd or xz; - is standard input) or the directory of an OCI layout
    #[arg(value_name = "PATH")]
    path: PathBuf,
    /// Which of several container images: its tag, name or digest
    #[arg(long = "ref", value_name = "NAME")]
    reference: Option<String>,
    /// Another platform than linux/amd64
    #[arg(long, value_name = "OS/ARCHITECTURE")]
    platform: Option<String>,
    /// The image's name [default: from the file's name]
    #[arg(long)]
    name: Option<ImageName>,
    /// The kernel its machines boot unless told otherwise
    #[arg(long, add = completion::kernels())]
    kernel: Option<KernelName>,
    /// How it is run: a JSON file with the config of an OCI image (Entrypoint, Cmd, Env, User, ...)
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Replace an image of this name
    #[arg(long)]
    force: bool,
}

/// Runs the verb.
pub async fn run(ui: &Ui, args: ImportArgs) -> Result<(), CliError> {
    let mut interrupts = Interrupts::install()?;
    let name = match args.name {
        Some(name) => name,
        None => artifacts::image_name_of(&args.path)?,
    };
    let source =
        artifacts::ImageFiles::open(&args.path, args.reference.as_deref()).map_err(|error| {
            if args.path.is_dir() {
                let path = args.path.display();
                let tar = format!("tar -C {path} --numeric-owner -c .");
                return error.hint(format!("{tar} | banger image import - --name NAME"));
            }
            error
        })?;
    let client = daemon::connect(ui).await?;
    let begin = ImportImage {
        name: name.clone(),
        source: source.origin(),
        default_kernel: args.kernel,
        replace: args.force,
        reference: args.reference,
        platform: args.platform,
        config: args.config.as_deref().map(artifacts::read_image_config).transpose()?,
    };
    artifacts::import_image(ui, &client, &mut interrupts, &begin, source).await?;
    ui.line(&name)
}
