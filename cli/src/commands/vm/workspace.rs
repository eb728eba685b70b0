//! `banger vm workspace`: the repository in a machine, and the machine's work on it.

use std::fs::OpenOptions;
use std::io::{self, IsTerminal, Write};
use std::path::PathBuf;

use banger_daemon_api::vm::Vm;
use banger_types::VmReference;
use banger_workspace::{Change, ChangeKind, Options, Work, Workspace};
use clap::{Args, Subcommand};
use serde_json::json;

use super::OneVm;
use crate::client::Client;
use crate::error::CliError;
use crate::interrupt::Interrupts;
use crate::ui::Ui;
use crate::workspace::{self, WorkspaceArgs};
use crate::{bootstrap, daemon, table};

/// Verbs of `banger vm workspace`.
#[derive(Subcommand, Debug)]
pub enum WorkspaceCommand {
    /// Put a repository into a machine, or bring the one that is there up to date
    Prepare(PrepareArgs),
    /// Print the machine's work as a patch that git apply takes
    Export(ExportArgs),
    /// Print the machine's work as a patch, for reading
    Diff(DiffArgs),
    /// Say what is different: on the host since it was carried, and in the machine
    Status(StatusArgs),
}

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

/// Arguments of `banger vm workspace export`.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  banger vm workspace export box | git apply
  banger vm workspace export box -o work.patch
  banger vm workspace export box --base-commit HEAD

The patch leads from the files as they were carried into the machine, uncommitted changes of
the host included, to the files as the machine has them, commits of the machine included.
With --base-commit it begins at that commit of the host's repository. Ignored files are not
in it. The machine needs no git, and its repository is not touched.")]
pub struct ExportArgs {
    #[command(flatten)]
    vm: OneVm,
    /// Write the patch to this file instead of standard output
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Print it even where standard output is a terminal, which obeys what the machine put into it
    #[arg(short, long)]
    force: bool,
    /// Compare with this commit of the host's repository
    #[arg(long, value_name = "COMMIT")]
    base_commit: Option<String>,
}

/// Arguments of `banger vm workspace diff`.
#[derive(Args, Debug)]
#[command(after_help = "Example: banger vm workspace diff box
Control characters are replaced; banger vm workspace export has every byte.")]
pub struct DiffArgs {
    #[command(flatten)]
    vm: OneVm,
}

/// Arguments of `banger vm workspace status`.
#[derive(Args, Debug)]
#[command(after_help = "Example: banger vm workspace status box")]
pub struct StatusArgs {
    #[command(flatten)]
    vm: OneVm,
    #[command(flatten)]
    json: crate::commands::JsonArgs,
}

impl WorkspaceCommand {
    /// Runs the verb.
    pub async fn run(self, ui: &Ui) -> Result<(), CliError> {
        match self {
            Self::Prepare(args) => prepare(ui, args).await,
            Self::Export(args) => export(ui, args).await,
            Self::Diff(args) => diff(ui, args).await,
            Self::Status(args) => status(ui, args).await,
        }
    }
}

async fn prepare(ui: &Ui, args: PrepareArgs) -> Result<(), CliError> {
    let given = args.path.as_ref().map(|path| args.workspace.open(ui, path)).transpose()?;
    if args.workspace.dry_run
        && let Some(workspace) = &given
    {
        return workspace::print_dry_run(ui, workspace);
    }
    let mut interrupts = Interrupts::install()?;
    let client = daemon::connect(ui).await?;
    let vm = super::get_running(&client, &args.vm.vm).await?;
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

async fn export(ui: &Ui, args: ExportArgs) -> Result<(), CliError> {
    if args.output.is_none() && !args.force && io::stdout().is_terminal() {
        let name = &args.vm.vm;
        return Err(CliError::usage(
            "the machine's patch would go to a terminal, which obeys control characters in it",
        )
        .hint(format!(
            "to read it: banger vm workspace diff {name}; to have it: -o FILE, or | git apply"
        )));
    }
    let (_, vm, mut work) = collect(ui, &args.vm.vm).await?;
    if let Some(commit) = &args.base_commit {
        let top = PathBuf::from(&workspace::recorded(&vm)?.source_path);
        work.compare_with(&Workspace::open(&top, &Options::default())?, commit)?;
    }
    match &args.output {
        None => work.write_patch(&mut io::stdout().lock())?,
        Some(path) => {
            let failed = |error: io::Error| {
                CliError::new(format!("cannot write {}", path.display())).because(&error)
            };
            let mut file = OpenOptions::new()
                .write(true)
                .create(true)
                .truncate(true)
                .open(path)
                .map_err(failed)?;
            work.write_patch(&mut file)?;
            file.sync_all().map_err(failed)?;
        }
    }
    ui.detail(format_args!("{} files are different", work.changes().len()));
    Ok(())
}

async fn diff(ui: &Ui, args: DiffArgs) -> Result<(), CliError> {
    let (_, _, work) = collect(ui, &args.vm.vm).await?;
    let mut printable = PrintablePatch { line: Vec::new() };
    work.write_patch(&mut printable)?;
    printable.end().map_err(|error| CliError::output(&error))
}

/// Writes lines of a patch to standard output without what a terminal would obey.
struct PrintablePatch {
    line: Vec<u8>,
}

/// Longest line that is shown as one.
const LINE_LIMIT: usize = 1 << 16;

impl PrintablePatch {
    fn end(&mut self) -> io::Result<()> {
        if self.line.is_empty() {
            return Ok(());
        }
        let text = String::from_utf8_lossy(&self.line);
        let shown: String = text
            .chars()
            .map(|c| if c.is_control() && c != '\t' { '\u{fffd}' } else { c })
            .collect();
        self.line.clear();
        writeln!(io::stdout(), "{shown}")
    }
}

impl Write for PrintablePatch {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let end = bytes.iter().position(|&byte| byte == b'\n');
        let part = &bytes[..end.unwrap_or(bytes.len())];
        self.line.extend_from_slice(part);
        if self.line.len() > LINE_LIMIT {
            self.end()?;
        }
        if end.is_some() {
            if self.line.is_empty() {
                writeln!(io::stdout())?;
            }
            self.end()?;
        }
        Ok(part.len() + usize::from(end.is_some()))
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

async fn status(ui: &Ui, args: StatusArgs) -> Result<(), CliError> {
    let (_, vm, work) = collect(ui, &args.vm.vm).await?;
    let record = workspace::recorded(&vm)?;
    let moved = workspace::moved_head(record);
    let branches = work.moved_branches();
    if args.json.json {
        let changes: Vec<_> = work
            .changes()
            .iter()
            .map(|change| {
                json!({
                    "kind": kind(change.kind),
                    "name": String::from_utf8_lossy(&change.name),
                    "from": change.from.as_deref().map(String::from_utf8_lossy),
                })
            })
            .collect();
        return ui.json(&json!({
            "source_path": record.source_path,
            "guest_path": record.guest_path,
            "head_commit": record.head_commit,
            "host_head_commit": moved.as_ref().or(record.head_commit.as_ref()),
            "host_moved": moved.is_some(),
            "prepare_cut_off": work.is_cut_off(),
            "moved_branches": branches,
            "changes": changes,
        }));
    }
    ui.line(format_args!("{} from {}", record.guest_path, table::printable(&record.source_path)))?;
    match (&moved, &record.head_commit) {
        (Some(now), Some(then)) => ui.line(format_args!(
            "the host has gone on from {} to {}; banger vm workspace prepare {}",
            short(then),
            short(now),
            vm.name
        ))?,
        (Some(now), None) => {
            ui.line(format_args!("the host has its first commit, {}", short(now)))?
        }
        (None, Some(then)) => ui.line(format_args!("the host is at {}, as it was", short(then)))?,
        (None, None) => ui.line("the host has no commit yet")?,
    }
    for branch in branches {
        ui.line(format_args!("commits of the machine: {}", table::printable(branch)))?;
    }
    if work.changes().is_empty() {
        return ui.line("no file is different in the machine");
    }
    for change in work.changes() {
        ui.line(shown(change))?;
    }
    Ok(())
}

fn short(commit: &str) -> &str {
    commit.get(..12).unwrap_or(commit)
}

fn kind(kind: ChangeKind) -> &'static str {
    match kind {
        ChangeKind::Added => "added",
        ChangeKind::Modified => "modified",
        ChangeKind::Deleted => "deleted",
        ChangeKind::Renamed => "renamed",
        ChangeKind::Retyped => "retyped",
    }
}

fn shown(change: &Change) -> String {
    let name = |bytes: &[u8]| table::printable(&String::from_utf8_lossy(bytes));
    let from = change.from.as_deref().map(|from| format!("{} -> ", name(from)));
    format!("{:8}  {}{}", kind(change.kind), from.unwrap_or_default(), name(&change.name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_a_guest_chose_cannot_harm_a_terminal() {
        let change = Change {
            kind: ChangeKind::Renamed,
            name: b"a\x1b[2J\n".to_vec(),
            from: Some(b"\xff".to_vec()),
        };
        let text = shown(&change);
        assert!(text.starts_with("renamed ") && !text.contains(['\x1b', '\n']), "{text:?}");
    }
}
