//! `banger kernel pull`: a kernel from a Debian package, by way of the host's apt.

use banger_types::KernelName;
use clap::Args;

use crate::error::CliError;
use crate::interrupt::Interrupts;
use crate::ui::Ui;
use crate::{artifacts, daemon, host};

/// Arguments of `banger kernel pull`.
#[derive(Args, Debug)]
pub struct PullArgs {
    /// The kernel: debian-6.12-cloud or debian-6.1-cloud
    #[arg(value_name = "KERNEL", default_value = host::DEFAULT_KERNEL)]
    name: KernelName,
    /// Replace a kernel of this name
    #[arg(long)]
    force: bool,
}

/// Runs the verb.
pub async fn run(ui: &Ui, args: &PullArgs) -> Result<(), CliError> {
    let mut interrupts = Interrupts::install()?;
    let client = daemon::connect(ui).await?;
    artifacts::pull_kernel(ui, &client, &mut interrupts, &args.name, args.force).await?;
    ui.line(&args.name)
}
