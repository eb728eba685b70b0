//! `banger vm wait`.

use banger_agent_api::DetachedOutputCall;
use banger_daemon_api::error::ErrorCode;
use banger_daemon_api::routes;
use banger_daemon_api::vm::Vm;
use banger_types::VmReference;
use clap::Args;

use super::{SomeVms, is_up};
use crate::client::{Client, ClientError};
use crate::error::CliError;
use crate::ui::Ui;
use crate::{artifacts, daemon, detached};

/// Arguments of `banger vm wait`.
#[derive(Args, Debug)]
#[command(
    after_help = "Prints a line a machine, in the order given: its name, and the exit code of its main process,
or its state where it has none. One that does not run is not waited for.
Example: banger vm wait job && banger vm logs job"
)]
pub struct WaitArgs {
    #[command(flatten)]
    vms: SomeVms,
    /// Wait for a detached command of one machine instead, by its ID
    #[arg(long, value_name = "ID", conflicts_with = "all")]
    exec: Option<u32>,
}

/// Waits until every machine has ended.
pub async fn run(ui: &Ui, args: &WaitArgs) -> Result<(), CliError> {
    let client = daemon::connect(ui).await?;
    if let Some(id) = args.exec {
        return wait_for_command(ui, &client, &args.vms.vms, id).await;
    }
    let vms = args.vms.resolve(&client, is_up).await?;
    let mut failures = Vec::new();
    let waits = vms.iter().map(async |reference| {
        let vm = super::get(&client, reference).await?;
        let end = end_of(&client, &vm).await?;
        Ok::<_, CliError>(match end {
            None => format!("{} deleted", vm.name),
            Some(end) => match end.main_exit.filter(|_| end.main.is_some()) {
                Some(exit) => format!("{} {}", end.name, exit.code),
                None => format!("{} {}", end.name, end.state),
            },
        })
    });
    for ended in futures::future::join_all(waits).await {
        match ended {
            Ok(line) => ui.line(line)?,
            Err(error) => failures.push(error),
        }
    }
    artifacts::report_all(ui, failures)
}

/// Returns whether a machine still runs, and was not started anew meanwhile.
fn is_same_run(now: &Vm, before: &Vm) -> bool {
    let started = |vm: &Vm| vm.runtime.as_ref().map(|runtime| runtime.started_at);
    is_up(now) && started(now) == started(before)
}

/// Waits until a machine does not run any more as it did, also where it was started anew at once; `None`
/// where it is deleted then.
pub async fn end_of_run(client: &Client, vm: &Vm) -> Result<Option<Vm>, CliError> {
    let path = routes::vm(&(&vm.id).into(), "/wait");
    loop {
        match client.get::<Vm>(&path).await {
            Ok(now) if is_same_run(&now, vm) => {}
            Ok(now) => return Ok(Some(now)),
            Err(ClientError::Api(error)) if error.code == ErrorCode::NotFound => return Ok(None),
            Err(error) => return Err(client.explain(error)),
        }
    }
}

/// Waits until a detached command has ended, and prints its exit code.
async fn wait_for_command(
    ui: &Ui,
    client: &Client,
    vms: &[VmReference],
    id: u32,
) -> Result<(), CliError> {
    let [vm] = vms else {
        return Err(CliError::usage(format!("command {id} is of one machine, not of several"))
            .hint(format!("banger vm wait --exec {id} VM")));
    };
    let vm = super::get_running(client, vm).await?;
    let call = DetachedOutputCall { id, follow: true, skip_kept: true };
    match detached::silent_end(client, &vm, call).await? {
        Some(code) => ui.line(format_args!("{id} {code}")),
        None => Err(CliError::new(format!("VM {} did not say how command {id} ended", vm.name))
            .hint(format!("banger vm exec --list {}", vm.name))),
    }
}

/// Waits until a machine does not run any more; `None` where it is deleted then.
pub async fn end_of(client: &Client, vm: &Vm) -> Result<Option<Vm>, CliError> {
    let path = routes::vm(&(&vm.id).into(), "/wait");
    loop {
        match client.get::<Vm>(&path).await {
            // A daemon that ends says how things are.
            Ok(vm) if is_up(&vm) => {}
            Ok(vm) => return Ok(Some(vm)),
            Err(ClientError::Api(error)) if error.code == ErrorCode::NotFound => return Ok(None),
            Err(error) => return Err(client.explain(error)),
        }
    }
}
