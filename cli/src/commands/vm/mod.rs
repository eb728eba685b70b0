//! `banger vm`: make, use and delete machines.

mod console;
mod copy;
mod create;
mod delete;
mod exec;
mod forward;
mod kill;
pub mod list;
mod logs;
mod main_process;
mod ports;
mod prune;
mod rename;
mod restart;
mod run;
mod set;
mod show;
mod ssh;
mod start;
mod stats;
mod stop;
mod sync;
mod top;
mod variables;
mod wait;
mod workspace;

use std::collections::HashSet;

use banger_daemon_api::error::ErrorCode;
use banger_daemon_api::operation::OperationStarted;
use banger_daemon_api::routes;
use banger_daemon_api::vm::{Vm, VmState};
use banger_types::VmReference;
use clap::{Args, Subcommand};

use crate::client::{Client, ClientError};
use crate::error::CliError;
use crate::file_sync::Belongings;
use crate::interrupt::Interrupts;
use crate::progress::Progress;
use crate::ui::Ui;
use crate::{artifacts, completion, operation, vm_creation};

/// What can be done with machines.
#[derive(Debug, Subcommand)]
pub enum VmCommand {
    /// Make a machine and run a command, or a shell, in it
    Run(run::RunArgs),
    /// Run a command, or a shell, in a running machine
    Exec(exec::ExecArgs),
    /// Log in to a running machine, or run a command there, by OpenSSH
    Ssh(ssh::SshArgs),
    /// Read and type at a machine's serial console
    Console(console::ConsoleArgs),
    /// Copy files and directories into a running machine, or out of it
    #[command(name = "cp")]
    Copy(copy::CopyArgs),
    /// Make a machine and start it
    Create(create::CreateArgs),
    /// Start stopped machines
    Start(start::StartArgs),
    /// Stop machines cleanly; their disks are kept
    Stop(stop::StopArgs),
    /// Stop machines and start them again
    Restart(stop::StopArgs),
    /// Change the CPUs, memory, disks or limits of stopped machines, and what machines may on the
    /// network
    Set(set::SetArgs),
    /// Give a machine another name, running or not
    Rename(rename::RenameArgs),
    /// Send a signal to machines' VMM; KILL ends them at once
    Kill(kill::KillArgs),
    /// Delete machines and their disks
    #[command(visible_alias = "rm")]
    Delete(delete::DeleteArgs),
    /// List machines
    #[command(visible_alias = "ls")]
    List(super::JsonArgs),
    /// Show a machine
    Show(show::ShowArgs),
    /// Measure what machines use: CPU, memory, disks
    Stats(stats::StatsArgs),
    /// Watch what running machines use, on the whole terminal
    Top(top::TopArgs),
    /// Show what a machine listens on, and lead ports of this host there
    Ports(ports::PortsArgs),
    /// Lead ports of this host into a machine until Ctrl-C
    Forward(forward::ForwardArgs),
    /// Wait until machines have ended
    Wait(wait::WaitArgs),
    /// Delete the machines that do not run
    Prune(prune::PruneArgs),
    /// Print what a machine wrote to its console
    Logs(logs::LogsArgs),
    /// Have a machine's repository follow this host's, once or for as long as it is watched
    Sync(sync::SyncArgs),
    /// Bring a repository into a machine, and the machine's work back
    #[command(subcommand)]
    Workspace(workspace::WorkspaceCommand),
}

impl VmCommand {
    /// Returns whether its exit code is that of a command in a machine.
    pub const fn passes_on(&self) -> bool {
        matches!(self, Self::Run(_) | Self::Exec(_) | Self::Ssh(_))
    }

    /// Runs the verb; returns the exit code.
    pub async fn run(self, ui: &Ui) -> Result<u8, CliError> {
        match self {
            Self::Run(args) => return run::run(ui, args).await,
            Self::Exec(args) => return exec::run(ui, args).await,
            Self::Ssh(args) => return ssh::run(ui, args).await,
            Self::Console(args) => console::run(ui, &args).await?,
            Self::Copy(args) => copy::run(ui, args).await?,
            Self::Create(args) => create::run(ui, &args).await?,
            Self::Start(args) => start::run(ui, &args).await?,
            Self::Stop(args) => stop::run(ui, &args).await?,
            Self::Restart(args) => restart::run(ui, &args).await?,
            Self::Rename(args) => rename::run(ui, &args).await?,
            Self::Kill(args) => kill::run(ui, &args).await?,
            Self::Set(args) => set::run(ui, &args).await?,
            Self::Delete(args) => delete::run(ui, &args).await?,
            Self::List(json) => list::print(ui, true, json.json).await?,
            Self::Show(args) => show::run(ui, &args).await?,
            Self::Stats(args) => stats::run(ui, &args).await?,
            Self::Top(args) => top::run(ui, &args).await?,
            Self::Ports(args) => ports::run(ui, &args).await?,
            Self::Forward(args) => forward::run(ui, &args).await?,
            Self::Wait(args) => wait::run(ui, &args).await?,
            Self::Prune(args) => prune::run(ui, &args).await?,
            Self::Logs(args) => logs::run(ui, &args).await?,
            Self::Sync(args) => sync::run(ui, args).await?,
            Self::Workspace(command) => command.run(ui).await?,
        }
        Ok(0)
    }
}

/// One machine, by name, id or the beginning of its id.
#[derive(Args, Debug)]
pub struct OneVm {
    /// The machine: its name, its id or the beginning of its id, 4 digits or more
    #[arg(value_name = "VM", add = completion::vms())]
    pub vm: VmReference,
}

/// Some machines.
#[derive(Args, Debug)]
pub struct SomeVms {
    /// The machines: names, ids or beginnings of ids
    #[arg(required_unless_present = "all", value_name = "VM", add = completion::vms())]
    vms: Vec<VmReference>,
    /// All machines
    #[arg(short, long, conflicts_with = "vms")]
    all: bool,
}

impl SomeVms {
    /// The machines meant; of all of them, those that `concerns` says are meant.
    async fn resolve(
        &self,
        client: &Client,
        concerns: impl Fn(&Vm) -> bool,
    ) -> Result<Vec<VmReference>, CliError> {
        if !self.all {
            return Ok(self.vms.clone());
        }
        let vms = client.get::<Vec<Vm>>(routes::VMS).await;
        let vms = vms.map_err(|error| client.explain(error))?;
        Ok(vms.iter().filter(|vm| concerns(vm)).map(|vm| VmReference::from(&vm.id)).collect())
    }
}

/// Whether there is something to stop.
fn is_up(vm: &Vm) -> bool {
    !matches!(vm.state, VmState::Created | VmState::Stopped | VmState::Failed | VmState::Deleting)
}

/// Stops all machines that run, in order; what takes longer than `grace_ms` is killed.
pub async fn stop_all(ui: &Ui, client: &Client, grace_ms: u64) -> Result<(), CliError> {
    let all = SomeVms { vms: Vec::new(), all: true }.resolve(client, is_up).await?;
    let body = serde_json::json!({ "grace_ms": grace_ms });
    for_each(ui, client, &all, Act::Post("/stop", &body)).await
}

/// Gets a machine; an unknown one brings close names as a hint.
pub async fn get(client: &Client, reference: &VmReference) -> Result<Vm, CliError> {
    match client.get(&routes::vm(reference, "")).await {
        Ok(vm) => Ok(vm),
        Err(error) => Err(explain_missing(client, reference, error).await),
    }
}

/// Gets a machine that runs; any other is an error that says how to start it.
pub async fn get_running(client: &Client, reference: &VmReference) -> Result<Vm, CliError> {
    let vm = get(client, reference).await?;
    let is =
        |hint: String| Err(CliError::new(format!("VM {} is {}", vm.name, vm.state)).hint(hint));
    match vm.state {
        VmState::Running => Ok(vm),
        VmState::Created | VmState::Stopped | VmState::Failed => {
            is(format!("banger vm start {}", vm.name))
        }
        VmState::Starting | VmState::Stopping | VmState::Deleting => {
            is("wait for that to end: banger vm list".to_owned())
        }
    }
}

async fn explain_missing(client: &Client, reference: &VmReference, error: ClientError) -> CliError {
    let mut error = client.explain(error);
    if !error.is_code(ErrorCode::NotFound) {
        return error;
    }
    let known: Vec<Vm> = client.get(routes::VMS).await.unwrap_or_default();
    if let Some(close) = closest(reference.as_str(), known.iter().map(|vm| vm.name.as_str())) {
        error.hints.insert(0, format!("did you mean {close}?"));
    }
    if !error.hints.iter().any(|hint| hint.contains("banger vm list")) {
        error = error.hint("banger vm list");
    }
    error
}

/// Returns the name at most two edits away that is nearest.
fn closest<'a>(text: &str, names: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    const MOST_EDITS: usize = 2;
    names
        .map(|name| (edits(text, name), name))
        .filter(|&(distance, name)| distance <= MOST_EDITS && distance < name.len())
        .min_by_key(|&(distance, _)| distance)
        .map(|(_, name)| name)
}

/// Counts insertions, deletions and replacements between two names (Levenshtein).
fn edits(from: &str, to: &str) -> usize {
    let mut row: Vec<usize> = (0..=to.len()).collect();
    for (i, a) in from.bytes().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, b) in to.bytes().enumerate() {
            let replaced = diagonal + usize::from(a != b);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[to.len()]
}

/// What to do with each machine of a command line.
#[derive(Clone, Copy, Debug)]
enum Act<'a> {
    /// Begins an operation by `POST` to this part of its path, with this body.
    Post(&'a str, &'a serde_json::Value),
    /// As that, and then gives it what every machine gets that starts.
    Start(&'a str, &'a serde_json::Value, &'a Belongings),
    /// Deletes it.
    Delete,
    /// Deletes it, unless it runs or is about to.
    DeleteIdle,
}

/// Does the same to several machines at once; prints their names in the order given.
async fn for_each(
    ui: &Ui,
    client: &Client,
    vms: &[VmReference],
    act: Act<'_>,
) -> Result<(), CliError> {
    let mut seen = HashSet::new();
    let mut targets = Vec::new();
    let mut failures = Vec::new();
    for reference in vms {
        match get(client, reference).await {
            Ok(vm) => {
                if seen.insert(vm.id.clone()) {
                    targets.push(vm);
                }
            }
            Err(error) => failures.push(error),
        }
    }
    let alone = targets.len() == 1;
    let results =
        futures::future::join_all(targets.iter().map(|vm| act_on(ui, client, vm, act, alone)))
            .await;
    let mut deleted = Vec::new();
    for (vm, result) in targets.iter().zip(results) {
        match result {
            Ok(()) => {
                ui.line(&vm.name)?;
                match act {
                    Act::Post(part, _) | Act::Start(part, ..) => {
                        warn_of_it(ui, client, vm, part != "/stop").await;
                    }
                    Act::Delete | Act::DeleteIdle => deleted.push(vm.id.clone()),
                }
            }
            Err(error) => failures.push(error),
        }
    }
    if let Err(error) = crate::ssh::deleted(&deleted) {
        ui.warning(format_args!("keys of machines that are gone are still known: {error}"));
    }
    artifacts::report_all(ui, failures)
}

/// Says what went wrong in an end that was reached all the same (a guest that had to be killed), and
/// what is to be known of a start or a change.
async fn warn_of_it(ui: &Ui, client: &Client, vm: &Vm, has_news: bool) {
    let now = client.get::<Vm>(&routes::vm(&VmReference::from(&vm.id), "")).await;
    let Ok(now) = now else { return };
    if let Vm { state: VmState::Stopped, last_error: Some(error), .. } = &now {
        ui.warning(&error.message);
    }
    if has_news {
        vm_creation::warn_of_notes(ui, &now);
    }
}

async fn act_on(
    ui: &Ui,
    client: &Client,
    vm: &Vm,
    act: Act<'_>,
    alone: bool,
) -> Result<(), CliError> {
    // Listens on its own, so that Ctrl-C reaches every machine's operation.
    let mut interrupts = Interrupts::install()?;
    let what = format!("VM {}", vm.name);
    let reference = VmReference::from(&vm.id);
    let started: OperationStarted = match act {
        Act::Post(part, body) | Act::Start(part, body, _) => {
            client.post(&routes::vm(&reference, part), body).await
        }
        Act::Delete => client.delete(&routes::vm(&reference, "")).await,
        Act::DeleteIdle => client.delete(&routes::vm(&reference, "?idle=true")).await,
    }
    .map_err(|error| client.explain(error))?;
    let progress = if alone { Progress::new(ui, what.clone()) } else { Progress::hidden() };
    let end =
        operation::follow(client, started, &|latest| progress.operation(latest), &mut interrupts)
            .await?;
    drop(progress);
    end.into_result(&what)?;
    match act {
        Act::Start(.., belongings) => tokio::select! {
            given = belongings.give(ui, client, vm) => given,
            interrupt = interrupts.next() => Err(CliError::interrupted(
                interrupt,
                format!("interrupted; {what} runs without the files of file_sync"),
            )),
        },
        Act::Post(..) | Act::Delete | Act::DeleteIdle => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn close_names_are_suggested_far_ones_are_not() {
        let names = ["box", "web-server", "db"];
        assert_eq!(closest("bxo", names.into_iter()), Some("box"));
        assert_eq!(closest("web-srver", names.into_iter()), Some("web-server"));
        assert_eq!(closest("zzzzzz", names.into_iter()), None);
        assert_eq!(closest("x", ["ab"].into_iter()), None);
    }

    #[test]
    fn edits_are_counted() {
        assert_eq!(edits("", ""), 0);
        assert_eq!(edits("abc", ""), 3);
        assert_eq!(edits("kitten", "sitting"), 3);
    }
}
