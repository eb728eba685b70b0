//! `banger vm workspace export`: the machine's work as a patch that git takes.

use std::fs::OpenOptions;
use std::io::{self, IsTerminal};
use std::path::PathBuf;

use banger_workspace::{Options, Workspace};
use clap::Args;

use super::collect;
use crate::commands::vm::OneVm;
use crate::error::CliError;
use crate::ui::Ui;
use crate::workspace;

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

/// Runs the verb.
pub async fn run(ui: &Ui, args: ExportArgs) -> Result<(), CliError> {
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
