//! The user's repository in a machine: what `banger-workspace` does, led through the daemon.

use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;

use banger_agent_api::{Call, ErrorCode, GuestPath};
use banger_daemon_api::routes;
use banger_daemon_api::vm::{self, ChangeVm, Vm};
use banger_types::{VmId, VmReference};
use banger_workspace::{
    AgentGuest, Dial, GUEST_PATH, GuestError, Keeping, Kept, Newer, Options, Plan, Prepared,
    Snapshot, Stream, Wanted, Workspace, WorkspaceError,
};
use clap::Args;
use jiff::Timestamp;
use tokio::sync::oneshot;

use crate::agent::{self, CallError};
use crate::client::Client;
use crate::environment;
use crate::error::CliError;
use crate::interrupt::Interrupts;
use crate::progress::Progress;
use crate::ui::Ui;

/// What of a repository is taken along; shared by `vm run` and `vm workspace prepare`.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Workspace options")]
pub struct WorkspaceArgs {
    /// Take untracked files along too; ignored ones never
    #[arg(long, requires = "path")]
    pub include_untracked: bool,
    /// Begin a new branch in the machine
    #[arg(long, value_name = "NAME", requires = "path")]
    pub branch: Option<String>,
    /// Begin it at this commit, with its files instead of those of the working tree
    #[arg(long, value_name = "COMMIT", requires = "branch")]
    pub from: Option<String>,
    /// Install nothing of what mise.toml or .tool-versions in the repository ask for
    #[arg(long, requires = "path")]
    pub no_bootstrap: bool,
    /// Print what would be taken along, and do nothing
    #[arg(long, requires = "path")]
    pub dry_run: bool,
}

impl WorkspaceArgs {
    fn options(&self) -> Options {
        Options {
            include_untracked: self.include_untracked,
            start: self
                .branch
                .clone()
                .map(|branch| banger_workspace::Start { branch, from: self.from.clone() }),
        }
    }

    /// As the machine has it: the repository that its record names, on its own branch if it has one,
    /// and of it what was wanted when it was carried last.
    pub fn reopen(
        self,
        ui: &Ui,
        record: &vm::Workspace,
        wanted: Wanted,
    ) -> Result<Workspace, CliError> {
        let options = self.into_wanted(record, wanted);
        Ok(Self::say_what_stays(ui, Workspace::open(Path::new(&record.source_path), &options)?))
    }

    /// What is carried of the repository that a machine's record names.
    pub fn into_wanted(mut self, record: &vm::Workspace, wanted: Wanted) -> Options {
        if record.own_branch && self.branch.is_none() {
            self.branch.clone_from(&record.branch);
            self.from = wanted.from;
        }
        self.include_untracked |= wanted.include_untracked;
        self.options()
    }

    /// Looks at the repository, and says what stays here.
    pub fn open(&self, ui: &Ui, path: &Path) -> Result<Workspace, CliError> {
        Ok(Self::say_what_stays(ui, Workspace::open(path, &self.options())?))
    }

    /// Says what of a repository stays here.
    pub fn say_what_stays(ui: &Ui, workspace: Workspace) -> Workspace {
        match workspace.skipped_untracked {
            0 => {}
            1 => ui.status("1 untracked file stays here (--include-untracked takes it along)"),
            count => ui.status(format_args!(
                "{count} untracked files stay here (--include-untracked takes them along)"
            )),
        }
        if workspace.leaves_changes() {
            ui.status("the files are those of the commit; changes of the working tree stay here");
        }
        ui.detail(format_args!("{} files of {}", workspace.len(), workspace.top.display()));
        workspace
    }
}

/// Prints what would be taken along: a name a line.
pub fn print_dry_run(ui: &Ui, workspace: &Workspace) -> Result<(), CliError> {
    for name in workspace.names() {
        ui.line(crate::table::printable(&name.to_string_lossy()))?;
    }
    let head = workspace.head.as_deref().map_or("no commit yet", |head| &head[..12]);
    ui.status(format_args!(
        "{} files of {} ({head}) would go to {GUEST_PATH}",
        workspace.len(),
        workspace.top.display()
    ));
    Ok(())
}

impl From<WorkspaceError> for CliError {
    fn from(error: WorkspaceError) -> Self {
        if let WorkspaceError::Output(source) = &error
            && source.kind() == std::io::ErrorKind::BrokenPipe
        {
            return CliError::output_closed();
        }
        let mut made = CliError::new(error.to_string());
        if let Some(source) = std::error::Error::source(&error) {
            made = made.because(source);
        }
        match &error {
            WorkspaceError::Path { .. } => {
                made.hint("a command goes after --: banger vm run [PATH] -- COMMAND")
            }
            WorkspaceError::NotARepository { path } => made.hint(format!(
                "git -C {} init, and git add what the machine needs",
                path.display()
            )),
            WorkspaceError::NothingTracked { .. } => {
                made.hint("git add what the machine needs, or --include-untracked")
            }
            WorkspaceError::NoGit(_) => made.hint("apt-get install git"),
            WorkspaceError::Elsewhere { .. } => made
                .hint("unset core.worktree; banger reads only below the directory that holds .git"),
            WorkspaceError::ForeignGit { path } => made.hint(format!(
                "if it is yours, git clone the repository that {} leads to",
                path.display()
            )),
            WorkspaceError::OddGit { path } => made.hint(format!(
                "banger follows no link in a repository; if {} is yours, git clone it as a whole",
                path.display()
            )),
            WorkspaceError::Alternates { .. } => made
                .hint("to copy the objects: git repack -a -d && rm .git/objects/info/alternates"),
            WorkspaceError::OthersGit { path } => made.hint(format!(
                "if you trust it: git config --global --add safe.directory {}",
                path.display()
            )),
            WorkspaceError::NotKept { .. } => made.hint(
                "only the user who prepared the workspace, on this host, can compare with it",
            ),
            WorkspaceError::NewerWork { .. } => {
                made.hint("banger vm workspace export VM brings it here; --force overwrites it")
            }
            WorkspaceError::BranchInTheWay { theirs, .. } => made.hint(format!(
                "give it another name there: banger vm exec VM -- git branch -m {theirs} NAME"
            )),
            WorkspaceError::Occupied { .. } => {
                made.hint("--force puts the repository over what is there")
            }
            WorkspaceError::CutOff => {
                made.hint("--force puts the whole repository there, over what the machine has")
            }
            WorkspaceError::Watch { source, .. }
                if source.raw_os_error() == Some(rustix::io::Errno::NOSPC.raw_os_error()) =>
            {
                made.hint("watch more directories: sysctl fs.inotify.max_user_watches=1048576")
            }
            WorkspaceError::Guest { source: GuestError::OldAgent, .. } => {
                made.hint("banger vm restart gives the machine this banger's agent")
            }
            _ => made,
        }
    }
}

/// Leads calls through the daemon.
struct ThroughDaemon {
    client: Client,
    vm: VmId,
}

type Dialled = Result<(serde_json::Value, Box<dyn Stream>), GuestError>;

impl Dial for ThroughDaemon {
    fn dial(&self, call: Call) -> Pin<Box<dyn Future<Output = Dialled> + Send + '_>> {
        Box::pin(async move {
            match agent::try_call(&self.client, &self.vm, call).await {
                Ok((answer, stream)) => Ok((answer, Box::new(stream) as Box<dyn Stream>)),
                Err(CallError::Agent(error)) => Err(match error.code {
                    ErrorCode::NotFound => GuestError::NotFound(Box::new(error)),
                    ErrorCode::UnsupportedCall => GuestError::OldAgent,
                    _ => GuestError::other(error),
                }),
                Err(CallError::Way(error)) => Err(GuestError::other(error)),
            }
        })
    }
}

/// The agent of a machine, for work on its files.
pub fn guest(client: &Client, vm: &VmId) -> AgentGuest {
    let dial = ThroughDaemon { client: client.clone(), vm: vm.clone() };
    AgentGuest::new(Box::new(dial), tokio::runtime::Handle::current())
}

/// The place of a machine's repository.
pub fn guest_path(path: &str) -> Result<GuestPath, CliError> {
    GuestPath::new(path).map_err(|error| {
        CliError::new("cannot name the repository's directory in the machine").because(&error)
    })
}

/// Where what was carried into machines is kept.
pub fn keeping(client: &Client) -> Result<Keeping, CliError> {
    let root = environment::user_state()?.join("workspaces");
    Ok(Keeping::new(root, client.socket().display().to_string()))
}

/// Removes what is kept of machines that are gone.
pub async fn forget_the_gone(client: &Client, keeping: &Keeping) {
    // In this order: a machine that is made meanwhile is in neither.
    let known = keeping.known();
    let Ok(vms) = client.get::<Vec<Vm>>(routes::VMS).await else { return };
    for id in known {
        if !vms.iter().any(|vm| vm.id.as_str() == id) {
            // It takes room and nothing else; the next command tries again.
            let _ = keeping.remove(&id);
        }
    }
}

/// Does blocking work on a thread of its own, which a Ctrl-C leaves behind.
pub async fn blocking<T: Send + 'static>(
    interrupts: &mut Interrupts,
    work: impl FnOnce() -> Result<T, WorkspaceError> + Send + 'static,
) -> Result<T, CliError> {
    let (report, result) = oneshot::channel();
    // Nobody waits for the report after an interrupt.
    std::thread::spawn(move || drop(report.send(work())));
    tokio::select! {
        result = result => match result {
            Ok(result) => Ok(result?),
            Err(_) => Err(CliError::new("the work on the workspace ended early")),
        },
        interrupt = interrupts.next() => {
            Err(CliError::interrupted(interrupt, "interrupted while the repository was worked on"))
        }
    }
}

/// What the daemon is to know of a workspace.
pub fn record(workspace: &Workspace) -> vm::Workspace {
    vm::Workspace {
        guest_path: GUEST_PATH.to_owned(),
        source_path: workspace.top.to_string_lossy().into_owned(),
        head_commit: workspace.head.clone(),
        branch: workspace
            .branch
            .as_deref()
            .map(|branch| branch.strip_prefix("refs/heads/").unwrap_or(branch).to_owned()),
        own_branch: workspace.own_branch,
        prepared_at: Some(Timestamp::now()),
    }
}

/// A snapshot that is being taken while a machine starts.
pub struct Taking(oneshot::Receiver<Result<(Kept, Snapshot), WorkspaceError>>);

/// Begins to take a snapshot for a machine that is not there yet.
pub fn begin(keeping: &Keeping, workspace: Workspace) -> Taking {
    let (report, result) = oneshot::channel();
    let keeping = keeping.clone();
    std::thread::spawn(move || {
        let take = || {
            let kept = keeping.begin()?;
            match Snapshot::take(&kept, workspace) {
                Ok(snapshot) => Ok((kept, snapshot)),
                Err(error) => {
                    kept.discard()?;
                    Err(error)
                }
            }
        };
        if let Err(Ok((kept, _))) = report.send(take()) {
            // The machine was not made; what is left goes with the next command.
            let _ = kept.discard();
        }
    });
    Taking(result)
}

impl Taking {
    /// Waits for it, and gives it to the machine.
    pub async fn finish(
        self,
        interrupts: &mut Interrupts,
        vm: &VmId,
    ) -> Result<(Kept, Snapshot), CliError> {
        let taken = tokio::select! {
            taken = self.0 => taken,
            interrupt = interrupts.next() => {
                return Err(CliError::interrupted(interrupt, "interrupted"));
            }
        };
        let early = |_| CliError::new("reading the repository ended early");
        let (kept, snapshot) = taken.map_err(early)??;
        Ok((kept.assign(vm.as_str())?, snapshot))
    }
}

/// Puts a snapshot into a machine that runs.
pub async fn put(
    ui: &Ui,
    client: &Client,
    interrupts: &mut Interrupts,
    vm: &Vm,
    (kept, snapshot): (Kept, Snapshot),
    force: bool,
) -> Result<Prepared, CliError> {
    let progress = Arc::new(Progress::new(ui, format!("VM {}", vm.name)));
    progress.stage("copying the repository");
    let mut guest = guest(client, &vm.id);
    let newer = if force { Newer::Overwrite } else { Newer::Refuse };
    let plan = Plan { guest_path: guest_path(GUEST_PATH)?, newer };
    let shown = Arc::clone(&progress);
    let prepared = blocking(interrupts, move || {
        banger_workspace::prepare(&kept, &snapshot, &mut guest, &plan, &|sent| {
            shown.bytes(sent, None);
        })
    })
    .await;
    drop(progress);
    let prepared = prepared?;
    if prepared.missing > 0 {
        ui.detail(format_args!("{} tracked names are deleted here", prepared.missing));
    }
    for name in &prepared.changed_meanwhile {
        let name = crate::table::printable(&name.to_string_lossy());
        ui.warning(format_args!("{name} changed here while it was carried; prepare again"));
    }
    Ok(prepared)
}

/// Takes the repository anew and brings a machine that runs up to date; the record follows.
pub async fn prepare_again(
    ui: &Ui,
    client: &Client,
    interrupts: &mut Interrupts,
    vm: &Vm,
    workspace: Workspace,
    force: bool,
) -> Result<Prepared, CliError> {
    let keeping = keeping(client)?;
    forget_the_gone(client, &keeping).await;
    let (id, place) = (vm.id.clone(), record(&workspace));
    let taken = blocking(interrupts, move || {
        let kept = keeping.open(id.as_str())?;
        let snapshot = Snapshot::take(&kept, workspace)?;
        Ok((kept, snapshot))
    })
    .await?;
    let prepared = put(ui, client, interrupts, vm, taken, force).await?;
    let change = ChangeVm { workspace: Some(place), ..ChangeVm::default() };
    let path = routes::vm(&VmReference::from(&vm.id), "");
    client.patch::<Vm>(&path, &change).await.map_err(|error| client.explain(error))?;
    Ok(prepared)
}

/// Returns what a machine's record says of its workspace.
pub fn recorded(vm: &Vm) -> Result<&vm::Workspace, CliError> {
    vm.workspace.as_ref().ok_or_else(|| {
        CliError::new(format!("VM {} has no workspace", vm.name))
            .hint(format!("banger vm workspace prepare {} PATH", vm.name))
    })
}

/// Returns the commit that is checked out on the host now, where it is another than the machine's
/// began with; a repository that is not here or cannot be asked has not moved.
pub fn moved_head(record: &vm::Workspace) -> Option<String> {
    let top = PathBuf::from(&record.source_path);
    let now = banger_workspace::current_head(&top).ok()??;
    (record.head_commit.as_ref() != Some(&now)).then_some(now)
}
