//! `banger vm workspace prepare`.

use std::path::PathBuf;

use clap::Args;

use crate::commands::vm::{OneVm, get_running};
use crate::error::CliError;
use crate::interrupt::Interrupts;
use crate::ui::Ui;
use crate::workspace::{self, WorkspaceArgs};
use crate::{bootstrap, daemon};

/// Arguments of `banger vm workspace prepare`.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  banger vm workspace prepare box           bring the machine's repository up to date
  banger vm workspace prepare box ./repo    put a repository into a machine without one
  banger vm workspace prepare box . --force over what the machine has changed

Only what is different is sent. Files that the machine's rules ignore, such as what it has
built, stay. What the machine has changed or committed itself is never overwritten without --force.")]
pub struct PrepareArgs {
    #[command(flatten)]
    vm: OneVm,
    /// The repository [default: the one that the machine has]
    #[arg(value_name = "PATH")]
    path: Option<PathBuf>,
    #[command(flatten)]
    workspace: WorkspaceArgs,
    /// Overwrite what the machine has changed
    #[arg(short, long)]
    force: bool,
}

/// Runs the verb.
pub async fn run(ui: &Ui, args: PrepareArgs) -> Result<(), CliError> {
    let given = args.path.as_ref().map(|path| args.workspace.open(ui, path)).transpose()?;
    if args.workspace.dry_run
        && let Some(workspace) = &given
    {
        return workspace::print_dry_run(ui, workspace);
    }
    let mut interrupts = Interrupts::install()?;
    let client = daemon::connect(ui).await?;
    let vm = get_running(&client, &args.vm.vm).await?;
    let taken = match given {
        Some(workspace) => workspace,
        None => {
            let record = workspace::recorded(&vm)?;
            let wanted = workspace::keeping(&client)?.wanted(vm.id.as_str());
            args.workspace.clone().reopen(ui, record, wanted)?
        }
    };
    let tools = bootstrap::asks(&taken).filter(|_| !args.workspace.no_bootstrap);
    let prepared =
        workspace::prepare_again(ui, &client, &mut interrupts, &vm, taken, args.force).await?;
    ui.status(format_args!(
        "VM {}: {} files sent, {} names removed",
        vm.name, prepared.sent, prepared.removed
    ));
    match tools {
        Some(file) if vm.spec.nat => {
            bootstrap::install(ui, &client, &vm.id, &mut interrupts, file).await
        }
        Some(file) => {
            ui.warning(format_args!(
                "what {file} asks for is not installed: VM {} does not reach the network (--nat)",
                vm.name
            ));
            bootstrap::trust(&client, &vm.id, &mut interrupts).await
        }
        None => Ok(()),
    }
}
