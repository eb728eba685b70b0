//! `banger image`: what machines are made from.

use std::path::PathBuf;

use banger_agent_api::printable_excerpt;
use banger_daemon_api::artifact::{Image, ImportImage};
use banger_daemon_api::error::ErrorCode;
use banger_daemon_api::routes;
use banger_types::{ImageName, KernelName, OciReference};
use clap::{Args, Subcommand};
use jiff::Timestamp;

mod export;
mod register;

use super::JsonArgs;
use crate::artifacts::{self, ImagePull, RegistryPull};
use crate::client::Client;
use crate::error::CliError;
use crate::interrupt::Interrupts;
use crate::ui::Ui;
use crate::{completion, daemon, host, table};

/// What can be done with images.
#[derive(Debug, Subcommand)]
pub enum ImageCommand {
    /// List the images that are here
    #[command(visible_alias = "ls")]
    List(JsonArgs),
    /// Show an image
    Show(ShowArgs),
    /// Make an image of one in a registry, or from this host's Debian mirror
    Pull(PullArgs),
    /// Build an image from a root file system, an OCI layout, a docker save archive or a bundle
    Import(ImportArgs),
    /// What was fetched from registries
    #[command(subcommand)]
    Cache(super::image_cache::CacheCommand),
    /// Write an image as an OCI layout or a bundle
    Export(export::ExportArgs),
    /// Give an ext4 file system of yours a name, and leave it where it is
    Register(register::RegisterArgs),
    /// Copy a registered image into banger's store
    Promote(register::PromoteArgs),
    /// Change which kernel an image's machines boot
    Set(super::image_set::SetArgs),
    /// Delete images that no machine uses
    #[command(visible_alias = "rm")]
    Delete(DeleteArgs),
}

/// Arguments of `banger image show`.
#[derive(Args, Debug)]
pub struct ShowArgs {
    /// The image
    #[arg(value_name = "IMAGE", add = completion::images())]
    name: ImageName,
    #[command(flatten)]
    json: JsonArgs,
}

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

/// Arguments of `banger image delete`.
#[derive(Args, Debug)]
pub struct DeleteArgs {
    /// The images
    #[arg(required = true, value_name = "IMAGE", add = completion::images())]
    names: Vec<ImageName>,
}

impl ImageCommand {
    /// Runs the verb.
    pub async fn run(self, ui: &Ui) -> Result<(), CliError> {
        match self {
            Self::List(json) => list(ui, json.json).await,
            Self::Show(args) => show(ui, &args).await,
            Self::Pull(args) => pull(ui, args).await,
            Self::Import(args) => import(ui, args).await,
            Self::Cache(command) => command.run(ui).await,
            Self::Export(args) => export::run(ui, &args).await,
            Self::Register(args) => register::register(ui, args).await,
            Self::Promote(args) => register::promote(ui, &args).await,
            Self::Set(args) => super::image_set::run(ui, args).await,
            Self::Delete(args) => delete(ui, &args).await,
        }
    }
}

async fn list(ui: &Ui, json: bool) -> Result<(), CliError> {
    let client = daemon::connect(ui).await?;
    let images: Vec<Image> =
        client.get(routes::IMAGES).await.map_err(|error| client.explain(error))?;
    if json {
        return ui.json(&images);
    }
    ui.line(render_list(&images, Timestamp::now()))?;
    if images.is_empty() {
        ui.hint(format_args!("banger image pull {}", host::DEFAULT_IMAGE));
    }
    Ok(())
}

fn render_list(images: &[Image], now: Timestamp) -> String {
    let rows: Vec<_> = images
        .iter()
        .map(|image| {
            [
                image.name.to_string(),
                image.os.clone().unwrap_or_else(|| "-".to_owned()),
                table::size(image.allocated),
                image.used_by.len().to_string(),
                source(image),
                table::ago(image.created_at, now),
            ]
        })
        .collect();
    table::table(["NAME", "OS", "SIZE", "VMS", "SOURCE", "CREATED"], &rows)
}

/// Where an image comes from, short: `image show` has the digest.
fn source(image: &Image) -> String {
    OciReference::recorded(&image.source)
        .map_or_else(|| image.source.clone(), |reference| reference.unpinned().to_string())
}

/// Gets an image, with hints where it is not here.
pub async fn get(client: &Client, name: &ImageName) -> Result<Image, CliError> {
    client
        .get(&routes::image(name))
        .await
        .map_err(|error| explain_missing(client.explain(error), name))
}

fn explain_missing(error: CliError, name: &ImageName) -> CliError {
    if !error.is_code(ErrorCode::NotFound) || !error.hints.is_empty() {
        return error;
    }
    let error = error.hint("banger image list");
    if artifacts::can_pull_image(name) {
        return error.hint(format!("banger image pull {name}"));
    }
    error
}

async fn show(ui: &Ui, args: &ShowArgs) -> Result<(), CliError> {
    let client = daemon::connect(ui).await?;
    let image = get(&client, &args.name).await?;
    if args.json.json {
        return ui.json(&image);
    }
    ui.line(render_image(&image))
}

fn render_image(image: &Image) -> String {
    let init = if image.has_init { "its own" } else { "none; banger's agent is PID 1" };
    let kernel = image.default_kernel.as_ref().map_or_else(
        || format!("{} (banger's default)", host::DEFAULT_KERNEL),
        ToString::to_string,
    );
    table::facts(&[
        ("name", image.name.to_string()),
        ("id", image.id.clone()),
        ("os", image.os.clone().unwrap_or_else(|| "-".to_owned())),
        ("source", image.source.clone()),
        ("sha256", if image.sha256.is_empty() { "-".to_owned() } else { image.sha256.clone() }),
        ("size", table::size(image.size)),
        ("on disk", table::size(image.allocated)),
        ("entries", image.entries.to_string()),
        ("init", init.to_owned()),
        ("kernel", kernel),
        ("created", image.created_at.to_string()),
        (
            "used by",
            if image.used_by.is_empty() { "-".to_owned() } else { image.used_by.join(", ") },
        ),
    ])
}

async fn pull(ui: &Ui, args: PullArgs) -> Result<(), CliError> {
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

async fn import(ui: &Ui, args: ImportArgs) -> Result<(), CliError> {
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

async fn delete(ui: &Ui, args: &DeleteArgs) -> Result<(), CliError> {
    let client = daemon::connect(ui).await?;
    let mut failures = Vec::new();
    for name in &args.names {
        match client.delete::<serde_json::Value>(&routes::image(name)).await {
            Ok(_) => ui.line(name)?,
            Err(error) => failures.push(explain_missing(client.explain(error), name)),
        }
    }
    artifacts::report_all(ui, failures)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image() -> Image {
        Image {
            name: "debian-bookworm".parse().unwrap(),
            id: "6d3c0b1e-0000-4000-8000-000000000001".to_owned(),
            sha256: "ab".repeat(32),
            source: "mmdebstrap:bookworm".to_owned(),
            size: 8 << 30,
            allocated: 512 << 20,
            entries: 12345,
            os: Some("debian 12".to_owned()),
            has_init: true,
            default_kernel: None,
            config: None,
            layers: Vec::new(),
            manifest_digest: None,
            path: None,
            created_at: Timestamp::from_second(0).unwrap(),
            used_by: vec!["box".to_owned()],
        }
    }

    #[test]
    fn the_list_is_a_table() {
        let now = Timestamp::from_second(7200).unwrap();
        insta::assert_snapshot!(render_list(&[image()], now), @r"
        NAME             OS         SIZE  VMS  SOURCE               CREATED
        debian-bookworm  debian 12  512M  1    mmdebstrap:bookworm  2 hours ago
        ");
    }

    #[test]
    fn an_image_is_shown_as_facts() {
        insta::assert_snapshot!(render_image(&image()), @r"
        name:     debian-bookworm
        id:       6d3c0b1e-0000-4000-8000-000000000001
        os:       debian 12
        source:   mmdebstrap:bookworm
        sha256:   abababababababababababababababababababababababababababababababab
        size:     8G
        on disk:  512M
        entries:  12345
        init:     its own
        kernel:   debian-6.12-cloud (banger's default)
        created:  1970-01-01T00:00:00Z
        used by:  box
        ");
    }
}
