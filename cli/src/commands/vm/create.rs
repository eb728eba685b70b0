//! `banger vm create`.

use clap::Args;

use crate::daemon;
use crate::error::CliError;
use crate::interrupt::Interrupts;
use crate::ui::Ui;
use crate::vm_creation::{self, CreationArgs};

/// Arguments of `banger vm create`.
#[derive(Args, Debug)]
pub struct CreateArgs {
    #[command(flatten)]
    creation: CreationArgs,
}

/// Makes a machine, starts it and prints its name.
pub async fn run(ui: &Ui, args: &CreateArgs) -> Result<(), CliError> {
    let mut interrupts = Interrupts::install()?;
    let client = daemon::connect(ui).await?;
    let vm = vm_creation::create(ui, &client, &mut interrupts, &args.creation, None, None).await?;
    ui.line(&vm.name)
}
