//! `banger kernel import`: a kernel that is on this host already.

use std::path::PathBuf;

use banger_types::KernelName;
use clap::Args;

use crate::error::CliError;
use crate::interrupt::Interrupts;
use crate::ui::Ui;
use crate::{artifacts, daemon, table};

/// Arguments of `banger kernel import`.
#[derive(Args, Debug)]
pub struct ImportArgs {
    /// A package (linux-image-*_amd64.deb, as Debian and `make bindeb-pkg` build it; - is standard
    /// input), a bzImage or vmlinux, or a directory with one of these and its modules
    #[arg(value_name = "FILE|DIRECTORY")]
    path: PathBuf,
    /// The kernel's name
    #[arg(long)]
    name: KernelName,
    /// Replace a kernel of this name
    #[arg(long)]
    force: bool,
}

/// Runs the verb.
pub async fn run(ui: &Ui, args: ImportArgs) -> Result<(), CliError> {
    let mut interrupts = Interrupts::install()?;
    let kernel = artifacts::NamedKernel::open(&args.path)?;
    if !kernel.left_out().is_empty() {
        let names: Vec<_> = kernel.left_out().iter().map(|name| table::printable(name)).collect();
        ui.status(format_args!("not taken: {}", names.join(", ")));
    }
    let client = daemon::connect(ui).await?;
    artifacts::import_kernel(ui, &client, &mut interrupts, &args.name, args.force, kernel).await?;
    ui.line(&args.name)
}
