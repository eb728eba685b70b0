//! `banger image cache`: what was fetched from registries.

use banger_daemon_api::pull::{BlobsPruned, PruneBlobs};
use banger_daemon_api::routes;
use clap::{Args, Subcommand};

use crate::error::CliError;
use crate::ui::Ui;
use crate::{daemon, table};

/// What can be done with it.
#[derive(Debug, Subcommand)]
pub enum CacheCommand {
    /// Remove what no pull under way needs; images stay
    Prune(PruneArgs),
}

/// Arguments of `banger image cache prune`.
#[derive(Args, Debug)]
pub struct PruneArgs {
    /// Only say what would be removed
    #[arg(long)]
    dry_run: bool,
}

impl CacheCommand {
    /// Runs the verb.
    pub async fn run(self, ui: &Ui) -> Result<(), CliError> {
        let Self::Prune(args) = self;
        let client = daemon::connect(ui).await?;
        let request = PruneBlobs { dry_run: args.dry_run };
        let pruned: BlobsPruned = client
            .post(routes::PRUNE_BLOBS, &request)
            .await
            .map_err(|error| client.explain(error))?;
        let verb = if args.dry_run { "would remove" } else { "removed" };
        let noun = if pruned.count == 1 { "blob" } else { "blobs" };
        ui.line(format_args!("{verb} {} {noun}, {}", pruned.count, table::size(pruned.bytes)))
    }
}
