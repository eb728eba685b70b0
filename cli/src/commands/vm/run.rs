//! `banger vm run`: a machine, the user's repository and a command, in one go.
//!
//! ```text
//!   look at the repository ─► daemon ─► image and kernel ─► lease (--rm) ─► create and start
//!     ─► files of [[file_sync]] ─► repository ─► its tools ─► command ─► its exit code;  --rm: delete, and close the lease
//! ```
//! Until the command begins, a failure or a signal undoes everything.

use std::path::PathBuf;

use banger_agent_api::GuestPath;
use banger_daemon_api::error::ErrorCode;
use banger_daemon_api::routes;
use banger_daemon_api::vm::{MainOptions, Vm, VmState};
use banger_types::VmId;
use banger_workspace::{Keeping, Workspace};
use clap::Args;

use super::exec::CommandArgs;
use super::main_process::EntrypointArgs;
use crate::client::Client;
use crate::error::{CliError, ErrorKind};
use crate::file_sync::Belongings;
use crate::interrupt::Interrupts;
use crate::ui::Ui;
use crate::vm_creation::{self, CreationArgs, Lease};
use crate::workspace::{self, WorkspaceArgs};
use crate::{artifacts, bootstrap, daemon, exec};

/// Arguments of `banger vm run`.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  banger vm run                             a shell in a new machine
  banger vm run --rm -- sh -c 'uname -a'    a command, then no machine
  banger vm run ./repo -- make test         a command on the repository's tracked files
  banger vm run --name box -d               a machine to use later
  banger vm run -d --image nginx -p 8080:80 a service, whose output is in banger vm logs

With PATH, the git repository around it is put at /root/repo: the tracked files as they are in
the working tree, and a repository with the last 10 commits. The command runs there, in the
same subdirectory as PATH. banger vm workspace export brings its work back as a patch.
Where the repository has a mise.toml, .mise.toml or .tool-versions, the machine's mise installs
what it asks for first; that wants --nat, or --no-bootstrap to do without.
Without a command, standard input goes to a login shell.

An image that is an application (an OCI image whose entrypoint or command is more than a
shell) runs that as the machine's main process, and the machine ends with it. COMMAND takes
the place of the image's command, as with docker. With PATH it is a machine like any other.")]
pub struct RunArgs {
    /// A git repository to take along
    #[arg(value_name = "PATH")]
    path: Option<PathBuf>,
    #[command(flatten)]
    creation: CreationArgs,
    /// Delete the machine at the end, however this ends
    #[arg(long)]
    rm: bool,
    /// Leave the machine running and print its name
    #[arg(short, long, conflicts_with_all = ["rm", "tty"])]
    detach: bool,
    #[command(flatten)]
    workspace: WorkspaceArgs,
    #[command(flatten)]
    entrypoint: EntrypointArgs,
    #[command(flatten)]
    command: CommandArgs,
}

/// Runs it all; returns the command's exit code.
pub async fn run(ui: &Ui, args: RunArgs) -> Result<u8, CliError> {
    let workspace = match &args.path {
        Some(path) => Some(args.workspace.open(ui, path)?),
        None => None,
    };
    if args.workspace.dry_run
        && let Some(workspace) = &workspace
    {
        workspace::print_dry_run(ui, workspace)?;
        return Ok(0);
    }
    let tools = workspace.as_ref().filter(|_| !args.workspace.no_bootstrap);
    let tools = tools.and_then(bootstrap::asks);
    bootstrap::check(tools, args.creation.nat)?;
    let belongings = Belongings::read()?;
    let directory = workspace.as_ref().map(Workspace::guest_directory).map(GuestPath::new);
    let directory = directory.transpose().map_err(|error| {
        CliError::new("cannot name the repository's directory in the machine").because(&error)
    })?;
    // An application begins with its files there, and with somebody to read it.
    let held = !args.detach || belongings.has_files();
    let main = MainOptions { held, ..main_options(&args)? };
    let only_shell = !args.command.has_command();
    let exec = args.command.into_exec(directory)?;

    let mut interrupts = Interrupts::install()?;
    let client = daemon::connect(ui).await?;
    let lease = if args.rm { Some(Lease::take(&client).await?) } else { None };
    let record = workspace.as_ref().map(workspace::record);
    let keeping = match &workspace {
        Some(_) => Some(workspace::keeping(&client)?),
        None => None,
    };
    let mut taking = None;
    if let Some((keeping, workspace)) = keeping.as_ref().zip(workspace) {
        workspace::forget_the_gone(&client, keeping).await;
        taking = Some(workspace::begin(keeping, workspace));
    }
    let vm = vm_creation::create(
        ui,
        &client,
        &mut interrupts,
        &args.creation,
        lease.as_ref(),
        record,
        main,
    )
    .await?;
    let fill = async {
        let mut exec = exec;
        tokio::select! {
            given = belongings.give(ui, &client, &vm) => given?,
            interrupt = interrupts.next() => {
                return Err(CliError::interrupted(interrupt, "interrupted"));
            }
        }
        if let Some(taking) = taking {
            let taken = taking.finish(&mut interrupts, &vm.id).await?;
            workspace::put(ui, &client, &mut interrupts, &vm, taken, false).await?;
        }
        if let Some(file) = tools {
            bootstrap::install(ui, &client, &vm.id, &mut interrupts, file).await?;
            exec = bootstrap::with_tools(&client, &vm.id, exec)?;
        }
        Ok(exec)
    };
    let exec = match fill.await {
        Ok(exec) => exec,
        Err(mut error) => {
            // What fails or is interrupted here takes the machine with it.
            finish(ui, &client, &vm.id).await;
            forget(keeping.as_ref(), &vm);
            if matches!(error.kind, ErrorKind::Interrupted(_)) {
                error.message = format!("interrupted, VM {} is deleted", vm.name);
            }
            return Err(error);
        }
    };
    if args.detach {
        if held && vm.main.is_some() {
            exec::start_main(&client, &vm.id).await;
        }
        ui.line(&vm.name)?;
        return Ok(0);
    }
    let is_main = vm.main.is_some();
    let mut result = match is_main {
        true => exec::attach_main(&client, &vm.id, exec, &mut interrupts).await,
        false => exec::exec(&client, &vm.id, exec, &mut interrupts).await,
    };
    if args.rm {
        finish(ui, &client, &vm.id).await;
        forget(keeping.as_ref(), &vm);
        if let Err(error) = &mut result {
            // They speak of a machine that is gone by now.
            error.hints.clear();
        }
    } else if is_main && result.is_ok() {
        // It ends by itself; it can be run again.
        remind_ended(ui, &vm);
    } else if (ui.stderr_is_terminal() || result.is_err()) && is_running(&client, &vm.id).await {
        remind(ui, &vm, only_shell);
    }
    drop(lease);
    result
}

async fn is_running(client: &Client, id: &VmId) -> bool {
    let now = client.get::<Vm>(&routes::vm(&id.into(), "")).await;
    now.is_ok_and(|vm| vm.state == VmState::Running)
}

/// Removes what is kept of the workspace of a machine that is gone.
fn forget(keeping: Option<&Keeping>, vm: &Vm) {
    // The next command removes what stays.
    let _ = keeping.map(|keeping| keeping.remove(vm.id.as_str()));
}

/// Deletes the machine; a failure to do so is told, but is not the outcome of the run.
async fn finish(ui: &Ui, client: &Client, id: &VmId) {
    let mut deleted = vm_creation::delete(client, id).await;
    if deleted.is_err() && client.ping().await.is_err() {
        if !client.socket().exists() {
            // A daemon that ends in order deletes the machines of its clients.
            return;
        }
        // It was killed; the next one finds the machine without its client, and deletes it.
        deleted = daemon::connect(ui).await.map(drop);
    }
    if let Err(error) = deleted
        && !error.is_code(ErrorCode::NotFound)
    {
        ui.warning(format_args!("the machine could not be deleted: {error}"));
        for cause in &error.causes {
            ui.warning(format_args!("  caused by: {cause}"));
        }
    }
}

/// What is asked for beside the image's own words. With a repository the image is a machine to work in.
fn main_options(args: &RunArgs) -> Result<MainOptions, CliError> {
    let said = args.command.said().options()?;
    if args.path.is_some() {
        if args.entrypoint.words().is_some() {
            return Err(CliError::usage("--entrypoint cannot be used with PATH")
                .hint("give the program after --, which runs it in the repository"));
        }
        if args.detach && said != MainOptions::default() {
            return Err(CliError::usage("-d cannot be used with PATH and a command")
                .hint("banger vm run -d PATH, and then: banger vm exec -d VM -- COMMAND"));
        }
        return Ok(MainOptions { machine: true, ..MainOptions::default() });
    }
    let required = args.detach && said != MainOptions::default();
    if required
        && args.entrypoint.words().is_none()
        && artifacts::can_pull_image(args.creation.image.name())
    {
        let name = args.creation.image.name();
        return Err(CliError::usage(format!(
            "{name} is a machine: it runs commands while somebody waits for them"
        ))
        .hint(
            "leave -d out, or the command; banger vm exec runs commands in a machine that runs",
        ));
    }
    let entrypoint = args.entrypoint.words();
    Ok(MainOptions { entrypoint, required, ..said })
}

fn remind_ended(ui: &Ui, vm: &Vm) {
    if ui.stderr_is_terminal() {
        ui.status(format_args!(
            "VM {0} ends with its main process; banger vm start {0} runs it again, or banger vm delete {0}",
            vm.name
        ));
    }
}

fn remind(ui: &Ui, vm: &Vm, only_shell: bool) {
    let again = if only_shell { "" } else { " -- COMMAND" };
    ui.status(format_args!(
        "VM {0} keeps running; banger vm exec {0}{again}, or banger vm delete {0}",
        vm.name
    ));
}
