//! `banger image pull`: an image of one in a registry, or from this host's Debian mirror.

use banger_agent_api::printable_excerpt;
use banger_types::{ImageName, KernelName, OciReference};
use clap::Args;

use crate::artifacts::{self, ImagePull, RegistryPull};
use crate::error::CliError;
use crate::interrupt::Interrupts;
use crate::ui::Ui;
use crate::{completion, daemon, host};

/// Arguments of `banger image pull`.
#[derive(Args, Debug)]
pub struct PullArgs {
    /// What to pull.
    #[arg(
        value_name = "IMAGE",
        default_value = host::DEFAULT_IMAGE,
        help = "debian-SUITE, or an image in a registry: [REGISTRY/]REPOSITORY[:TAG][@DIGEST]"
    )]
    image: String,
    /// The image's name here [default: from the repository and the tag]
    #[arg(long)]
    name: Option<ImageName>,
    /// The Debian mirror, instead of the host's own
    #[arg(long, value_name = "URL")]
    mirror: Option<String>,
    /// The Debian suite, instead of the one in the image's name
    #[arg(long)]
    suite: Option<String>,
    /// A Debian package to install beside the default ones
    #[arg(long = "include", value_name = "PACKAGE")]
    packages: Vec<String>,
    /// The kernel its machines boot unless told otherwise
    #[arg(long, add = completion::kernels())]
    kernel: Option<KernelName>,
    /// Replace an image of this name
    #[arg(long)]
    force: bool,
}

/// Runs the verb.
pub async fn run(ui: &Ui, args: PullArgs) -> Result<(), CliError> {
    let mut interrupts = Interrupts::install()?;
    let named = args.image.parse::<ImageName>();
    let is_debian = args.suite.is_some() || named.as_ref().is_ok_and(artifacts::can_pull_image);
    if !is_debian {
        return pull_reference(ui, &mut interrupts, args).await;
    }
    let built_from = named.map_err(|error| {
        CliError::usage(format!("{:?} is no image's name", args.image)).because(&error)
    })?;
    let pull = ImagePull {
        built_from: built_from.clone(),
        mirror: args.mirror,
        suite: args.suite,
        packages: args.packages,
        default_kernel: args.kernel,
        replace: args.force,
        ..ImagePull::new(args.name.unwrap_or(built_from))
    };
    let client = daemon::connect(ui).await?;
    artifacts::pull_image(ui, &client, &mut interrupts, &pull).await?;
    ui.line(&pull.name)
}

async fn pull_reference(
    ui: &Ui,
    interrupts: &mut Interrupts,
    args: PullArgs,
) -> Result<(), CliError> {
    let refused =
        || CliError::usage(format!("cannot pull {:?}", printable_excerpt(&args.image, 300)));
    let reference: OciReference = args.image.parse().map_err(|error| refused().because(&error))?;
    if args.mirror.is_some() || !args.packages.is_empty() {
        return Err(refused()
            .hint("--mirror and --include are for debian-SUITE; for a registry's mirror:")
            .hint(format!(
                "banger config set registry.mirrors {}=https://MIRROR",
                reference.registry()
            )));
    }
    let name = args
        .name
        .or_else(|| reference.default_name())
        .ok_or_else(|| refused().hint("no name can be made from it; --name NAME says one"))?;
    let pull = RegistryPull { reference, name, default_kernel: args.kernel, replace: args.force };
    let client = daemon::connect(ui).await?;
    if !artifacts::is_reference(&args.image) {
        ui.status(format_args!("{} is {}", args.image, pull.reference));
    }
    artifacts::pull_reference(ui, &client, interrupts, &pull).await?;
    ui.line(&pull.name)
}
