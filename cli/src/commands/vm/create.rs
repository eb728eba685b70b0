//! `banger vm create`.

use clap::Args;

use super::main_process::MainArgs;
use crate::daemon;
use crate::error::CliError;
use crate::interrupt::Interrupts;
use crate::ui::Ui;
use crate::vm_creation::{self, CreationArgs};

/// Arguments of `banger vm create`.
#[derive(Args, Debug)]
#[command(
    after_help = "Example: banger vm create --image postgres -e POSTGRES_PASSWORD -p 5432:5432"
)]
pub struct CreateArgs {
    #[command(flatten)]
    creation: CreationArgs,
    #[command(flatten)]
    main: MainArgs,
}

/// Makes a machine, starts it and prints its name.
pub async fn run(ui: &Ui, args: &CreateArgs) -> Result<(), CliError> {
    let main = args.main.options()?;
    let mut interrupts = Interrupts::install()?;
    let client = daemon::connect(ui).await?;
    let vm =
        vm_creation::create(ui, &client, &mut interrupts, &args.creation, None, None, main).await?;
    ui.line(&vm.name)
}
