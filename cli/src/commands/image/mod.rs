//! `banger image`: what machines are made from.

mod cache;
mod delete;
mod export;
mod import;
mod list;
mod promote;
mod pull;
mod register;
mod set;
mod show;

use banger_daemon_api::artifact::Image;
use banger_daemon_api::routes;
use banger_types::ImageName;
use clap::Subcommand;

use super::JsonArgs;
use crate::artifacts;
use crate::client::Client;
use crate::error::CliError;
use crate::ui::Ui;

/// What can be done with images.
#[derive(Debug, Subcommand)]
pub enum ImageCommand {
    /// List the images that are here
    #[command(visible_alias = "ls")]
    List(JsonArgs),
    /// Show an image
    Show(show::ShowArgs),
    /// Make an image of one in a registry, or from this host's Debian mirror
    Pull(pull::PullArgs),
    /// Build an image from a root file system, an OCI layout, a docker save archive or a bundle
    Import(import::ImportArgs),
    /// What was fetched from registries
    #[command(subcommand)]
    Cache(cache::CacheCommand),
    /// Write an image as an OCI layout or a bundle
    Export(export::ExportArgs),
    /// Give an ext4 file system of yours a name, and leave it where it is
    Register(register::RegisterArgs),
    /// Copy a registered image into banger's store
    Promote(promote::PromoteArgs),
    /// Change which kernel an image's machines boot
    Set(set::SetArgs),
    /// Delete images that no machine uses
    #[command(visible_alias = "rm")]
    Delete(delete::DeleteArgs),
}

impl ImageCommand {
    /// Runs the verb.
    pub async fn run(self, ui: &Ui) -> Result<(), CliError> {
        match self {
            Self::List(json) => list::run(ui, json.json).await,
            Self::Show(args) => show::run(ui, &args).await,
            Self::Pull(args) => pull::run(ui, args).await,
            Self::Import(args) => import::run(ui, args).await,
            Self::Cache(command) => command.run(ui).await,
            Self::Export(args) => export::run(ui, &args).await,
            Self::Register(args) => register::run(ui, args).await,
            Self::Promote(args) => promote::run(ui, &args).await,
            Self::Set(args) => set::run(ui, args).await,
            Self::Delete(args) => delete::run(ui, &args).await,
        }
    }
}

/// Gets an image, with hints where it is not here.
pub async fn get(client: &Client, name: &ImageName) -> Result<Image, CliError> {
    client
        .get(&routes::image(name))
        .await
        .map_err(|error| explain_missing(client.explain(error), name))
}

fn explain_missing(error: CliError, name: &ImageName) -> CliError {
    let pull = artifacts::can_pull_image(name).then(|| format!("banger image pull {name}"));
    artifacts::explain_missing(error, "banger image list", pull)
}

#[cfg(test)]
mod tests {
    use banger_daemon_api::artifact::Image;
    use jiff::Timestamp;

    /// What the verbs' tests show.
    pub(super) fn image() -> Image {
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
}
