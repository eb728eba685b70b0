//! `banger vm sync`: the machine's repository follows the host's.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use banger_daemon_api::routes;
use banger_daemon_api::vm::{self, ChangeVm, Vm, VmState};
use banger_types::VmReference;
use banger_workspace::{Mirror, Options, Round, Told, Watch, WorkspaceError, follow};
use clap::Args;
use tokio::sync::{mpsc, oneshot};

use super::OneVm;
use crate::client::Client;
use crate::error::CliError;
use crate::interrupt::Interrupts;
use crate::ui::Ui;
use crate::workspace::{self, WorkspaceArgs};
use crate::{daemon, table};

/// Names that are shown of those that are left alone at once.
const SHOWN: usize = 20;
/// How long the daemon may take to record the end of a machine.
const END_DEADLINE: Duration = Duration::from_secs(2);

/// Arguments of `banger vm sync`.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  banger vm sync box                 carry what has changed here, once
  banger vm sync box --watch         and whenever something changes, until Ctrl-C
  banger vm sync box . --watch       in a machine without a workspace: begin with this repository

As banger vm workspace prepare, but what the machine has changed itself is left alone, named
once, and everything else is carried. A machine whose branches have commits of its own keeps its
repository, and gets the files. With --watch a change is carried within a second; it ends with
the machine.")]
pub struct SyncArgs {
    #[command(flatten)]
    vm: OneVm,
    /// The repository [default: the one that the machine has]
    #[arg(value_name = "PATH")]
    path: Option<PathBuf>,
    /// Go on: carry changes as they are made, until Ctrl-C
    #[arg(short, long)]
    watch: bool,
    /// Overwrite what the machine has changed
    #[arg(short, long)]
    force: bool,
    /// Take untracked files along too; ignored ones never
    #[arg(long)]
    include_untracked: bool,
}

/// What the thread that does the work reports.
enum Report {
    Round { round: Round, record: Option<vm::Workspace> },
    Trouble(CliError),
}

/// Brings the machine up to date, and keeps it so with `--watch`.
pub async fn run(ui: &Ui, args: SyncArgs) -> Result<(), CliError> {
    let mut interrupts = Interrupts::install()?;
    let client = daemon::connect(ui).await?;
    let vm = super::get_running(&client, &args.vm.vm).await?;
    let keeping = workspace::keeping(&client)?;
    workspace::forget_the_gone(&client, &keeping).await;
    let (path, options) = source(&args, &vm, keeping.wanted(vm.id.as_str()))?;
    if args.watch && options.start.as_ref().is_some_and(|start| start.from.is_some()) {
        return Err(CliError::new(format!(
            "VM {} has the files of a commit, which do not change",
            vm.name
        ))
        .hint(format!(
            "name the repository to follow it: banger vm sync {} PATH --watch",
            vm.name
        )));
    }
    // What is wrong with the repository is said before anything is done.
    let opened =
        WorkspaceArgs::say_what_stays(ui, banger_workspace::Workspace::open(&path, &options)?);
    let source = (path, options.clone());
    let mut sync = Mirror::new(
        (keeping, vm.id.to_string()),
        source,
        workspace::guest(&client, &vm.id),
        workspace::guest_path(banger_workspace::GUEST_PATH)?,
        args.force,
    );
    let mut follower = Follower { ui, client: &client, vm: &vm, record: vm.workspace.clone() };
    if !args.watch {
        let begun = Instant::now();
        let (round, record) = workspace::blocking(&mut interrupts, move || {
            let round = sync.whole(opened)?;
            Ok((round, sync.workspace().map(workspace::record)))
        })
        .await?;
        follower.round(round, record).await?;
        ui.detail(format_args!("in {} ms", begun.elapsed().as_millis()));
        return Ok(());
    }
    let (mut watch, stop) = Watch::new(options.include_untracked)?;
    let (tell, mut reports) = mpsc::unbounded_channel();
    let (end, mut ended) = oneshot::channel();
    std::thread::spawn(move || {
        let result = follow(&mut sync, &mut watch, &mut |told| {
            // Nobody listens when this process is about to end.
            let _ = tell.send(match told {
                Told::Round(round, now) => {
                    Report::Round { round, record: now.map(workspace::record) }
                }
                Told::Trouble(error) => Report::Trouble(trouble(error)),
            });
        });
        drop(end.send(result));
    });
    ui.status(format_args!(
        "VM {} follows {}; Ctrl-C ends it",
        vm.name,
        table::printable(&opened.top.to_string_lossy())
    ));
    let mut stop = Some(stop);
    let machine = super::wait::end_of_run(&client, &vm);
    tokio::pin!(machine);
    loop {
        tokio::select! {
            biased;
            Some(report) = reports.recv() => match report {
                Report::Round { round, record } => follower.round(round, record).await?,
                Report::Trouble(error) => ui.warning(&error),
            },
            result = &mut ended => return match result {
                Ok(Ok(())) => Ok(()),
                // The machine's end says more than what it cut off.
                Ok(Err(error @ WorkspaceError::Guest { .. })) => {
                    match tokio::time::timeout(END_DEADLINE, &mut machine).await {
                        Ok(Ok(now)) => Err(gone(&vm, now)),
                        _ => Err(error.into()),
                    }
                }
                Ok(Err(error)) => Err(error.into()),
                Err(_) => Err(CliError::new("the work on the workspace ended early")),
            },
            ending = &mut machine => return Err(gone(&vm, ending?)),
            interrupt = interrupts.next() => {
                // What is under way ends first; who insists does not wait for it.
                if stop.take().is_none() {
                    return Err(CliError::interrupted(interrupt, "interrupted while files went"));
                }
                ui.detail("ending");
            }
        }
    }
}

/// Which repository, and what of it.
fn source(
    args: &SyncArgs,
    vm: &Vm,
    wanted: banger_workspace::Wanted,
) -> Result<(PathBuf, Options), CliError> {
    let (path, mut options) = match &args.path {
        Some(path) => (path.clone(), Options::default()),
        None => {
            let record = workspace::recorded(vm)?;
            let options = WorkspaceArgs::default().into_wanted(record, wanted);
            (PathBuf::from(&record.source_path), options)
        }
    };
    options.include_untracked |= args.include_untracked;
    Ok((path, options))
}

fn trouble(error: &WorkspaceError) -> CliError {
    let mut made = CliError::new(format!("nothing was carried: {error}"));
    if let Some(source) = std::error::Error::source(error) {
        made = made.because(source);
    }
    made
}

fn gone(vm: &Vm, now: Option<Vm>) -> CliError {
    match now {
        None => CliError::new(format!("VM {} is deleted", vm.name)),
        Some(now) if matches!(now.state, VmState::Starting | VmState::Running) => {
            CliError::new(format!("VM {} was started anew", now.name))
                .hint(format!("banger vm sync {} --watch", now.name))
        }
        Some(now) => CliError::new(format!("VM {} is {}", now.name, now.state))
            .hint(format!("banger vm start {0}, then banger vm sync {0} --watch", now.name)),
    }
}

/// Tells what rounds did, and has the machine's record follow.
struct Follower<'f> {
    ui: &'f Ui,
    client: &'f Client,
    vm: &'f Vm,
    record: Option<vm::Workspace>,
}

impl Follower<'_> {
    async fn round(&mut self, round: Round, record: Option<vm::Workspace>) -> Result<(), CliError> {
        let name = &self.vm.name;
        let leaves = |what: &str| {
            self.ui.warning(format_args!(
                "VM {name} has changed {}; left alone (--force overwrites it)",
                table::printable(what)
            ));
        };
        for left in round.left_anew.iter().take(SHOWN) {
            leaves(&String::from_utf8_lossy(left));
        }
        if let Some(more) = round.left_anew.len().checked_sub(SHOWN).filter(|more| *more > 0) {
            leaves(&format!("{more} more files"));
        }
        for branch in &round.branches_anew {
            leaves(&format!("branch {branch}"));
        }
        let prepared = &round.prepared;
        for name in &prepared.changed_meanwhile {
            let name = table::printable(&name.to_string_lossy());
            self.ui.detail(format_args!("{name} changed while it was read"));
        }
        if prepared.sent + prepared.removed > 0 {
            self.ui.status(format_args!(
                "VM {name}: {} files sent, {} names removed",
                prepared.sent, prepared.removed
            ));
        } else {
            self.ui.detail(format_args!("VM {name}: nothing is different"));
        }
        match record.filter(|_| prepared.left_branches.is_empty()) {
            Some(record) if !self.is_recorded(&record) => self.set_record(record).await,
            _ => Ok(()),
        }
    }

    fn is_recorded(&self, record: &vm::Workspace) -> bool {
        self.record.as_ref().is_some_and(|before| {
            vm::Workspace { prepared_at: before.prepared_at, ..record.clone() } == *before
        })
    }

    async fn set_record(&mut self, record: vm::Workspace) -> Result<(), CliError> {
        let change = ChangeVm { workspace: Some(record.clone()), ..ChangeVm::default() };
        let path = routes::vm(&VmReference::from(&self.vm.id), "");
        self.client
            .patch::<Vm>(&path, &change)
            .await
            .map_err(|error| self.client.explain(error))?;
        self.record = Some(record);
        Ok(())
    }
}
