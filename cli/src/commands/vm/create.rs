//! `banger vm create`.

use banger_daemon_api::vm::MainOptions;
use clap::Args;

use super::main_process::MainArgs;
use crate::error::CliError;
use crate::file_sync::Belongings;
use crate::interrupt::Interrupts;
use crate::ui::Ui;
use crate::vm_creation::{self, CreationArgs};
use crate::{daemon, exec};

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
    let belongings = Belongings::read()?;
    // An application begins with its files there.
    let main = MainOptions { held: belongings.has_files(), ..args.main.options()? };
    let mut interrupts = Interrupts::install()?;
    let client = daemon::connect(ui).await?;
    let vm =
        vm_creation::create(ui, &client, &mut interrupts, &args.creation, None, None, main).await?;
    let given = tokio::select! {
        given = belongings.give(ui, &client, &vm) => given,
        interrupt = interrupts.next() => Err(CliError::interrupted(
            interrupt,
            format!("interrupted, VM {} is deleted", vm.name),
        )),
    };
    if let Err(error) = given {
        vm_creation::delete(&client, &vm.id).await?;
        return Err(error);
    }
    if belongings.has_files() && vm.main.is_some() {
        exec::start_main(&client, &vm.id).await;
    }
    ui.line(&vm.name)
}
