//! `banger vm workspace`: the repository in a machine, and the machine's work on it.

mod diff;
mod export;
mod prepare;
mod status;

use banger_daemon_api::vm::Vm;
use banger_types::VmReference;
use banger_workspace::Work;
use clap::Subcommand;

use crate::client::Client;
use crate::error::CliError;
use crate::interrupt::Interrupts;
use crate::ui::Ui;
use crate::{daemon, table, workspace};

/// Verbs of `banger vm workspace`.
#[derive(Subcommand, Debug)]
pub enum WorkspaceCommand {
    /// Put a repository into a machine, or bring the one that is there up to date
    Prepare(prepare::PrepareArgs),
    /// Print the machine's work as a patch that git apply takes
    Export(export::ExportArgs),
    /// Print the machine's work as a patch, for reading
    Diff(diff::DiffArgs),
    /// Say what is different: on the host since it was carried, and in the machine
    Status(status::StatusArgs),
}

impl WorkspaceCommand {
    /// Runs the verb.
    pub async fn run(self, ui: &Ui) -> Result<(), CliError> {
        match self {
            Self::Prepare(args) => prepare::run(ui, args).await,
            Self::Export(args) => export::run(ui, args).await,
            Self::Diff(args) => diff::run(ui, args).await,
            Self::Status(args) => status::run(ui, args).await,
        }
    }
}

/// Looks at a machine's work.
async fn collect(ui: &Ui, vm: &VmReference) -> Result<(Client, Vm, Work), CliError> {
    let mut interrupts = Interrupts::install()?;
    let client = daemon::connect(ui).await?;
    let vm = super::get_running(&client, vm).await?;
    let root = workspace::guest_path(&workspace::recorded(&vm)?.guest_path)?;
    let keeping = workspace::keeping(&client)?;
    workspace::forget_the_gone(&client, &keeping).await;
    let mut guest = workspace::guest(&client, &vm.id);
    let id = vm.id.clone();
    let work = workspace::blocking(&mut interrupts, move || {
        let kept = keeping.open(id.as_str())?;
        Work::collect(&kept, &mut guest, &root)
    })
    .await?;
    for repository in work.repositories() {
        let name = table::printable(&String::from_utf8_lossy(repository));
        ui.warning(format_args!(
            "{name} is a repository of its own in the machine; not looked into"
        ));
    }
    for file in work.too_large() {
        let name = table::printable(&String::from_utf8_lossy(file));
        ui.warning(format_args!("{name} is new in the machine and too large; left out"));
    }
    if work.is_cut_off() {
        ui.warning(format_args!(
            "the last prepare of VM {} was cut off: files of the host that had arrived by then look \
             like the machine's work",
            vm.name
        ));
    }
    Ok((client, vm, work))
}
