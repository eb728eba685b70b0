//! `banger kernel`: what machines boot.

mod delete;
mod import;
mod list;
mod pull;
mod show;

use banger_types::KernelName;
use clap::Subcommand;

use crate::artifacts;
use crate::error::CliError;
use crate::ui::Ui;

/// What can be done with kernels.
#[derive(Debug, Subcommand)]
pub enum KernelCommand {
    /// List the kernels that are here
    #[command(visible_alias = "ls")]
    List(list::ListArgs),
    /// Show a kernel
    Show(show::ShowArgs),
    /// Take a kernel from a Debian package, by way of the host's apt
    Pull(pull::PullArgs),
    /// Take a kernel from a Debian package, a directory, or a file of its own
    Import(import::ImportArgs),
    /// Delete kernels that no machine uses
    #[command(visible_alias = "rm")]
    Delete(delete::DeleteArgs),
}

impl KernelCommand {
    /// Runs the verb.
    pub async fn run(self, ui: &Ui) -> Result<(), CliError> {
        match self {
            Self::List(args) => list::run(ui, &args).await,
            Self::Show(args) => show::run(ui, &args).await,
            Self::Pull(args) => pull::run(ui, &args).await,
            Self::Import(args) => import::run(ui, args).await,
            Self::Delete(args) => delete::run(ui, &args).await,
        }
    }
}

fn explain_missing(error: CliError, name: &KernelName) -> CliError {
    let pull = artifacts::can_pull_kernel(name).then(|| format!("banger kernel pull {name}"));
    artifacts::explain_missing(error, "banger kernel list", pull)
}

#[cfg(test)]
mod tests {
    use banger_daemon_api::artifact::Kernel;
    use jiff::Timestamp;

    /// What the verbs' tests show.
    pub(super) fn kernel() -> Kernel {
        Kernel {
            name: "debian-6.12-cloud".parse().unwrap(),
            version: "6.12.117+deb12-cloud-amd64".to_owned(),
            sha256: "cd".repeat(32),
            source: "apt:linux-image-6.12.117+deb12-cloud-amd64=6.12.117-1".to_owned(),
            modules: vec!["virtio_ring".to_owned(), "virtio".to_owned()],
            allocated: 48 << 20,
            imported_at: Timestamp::from_second(0).unwrap(),
            used_by: Vec::new(),
        }
    }
}
