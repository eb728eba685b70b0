//! Hidden verbs: what banger starts itself, and what packaging needs.

use std::convert::Infallible;
use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;

use clap::{CommandFactory, Subcommand};
use rustix::process::Signal;

use crate::daemon::{self, LaunchArgs};
use crate::error::CliError;

/// The hidden verbs.
#[derive(Debug, Subcommand)]
pub enum InternalCommand {
    /// Become bangerd
    LaunchDaemon(LaunchArgs),
    /// Become PROGRAM, and be ended when the process that started us ends
    DieWithParent {
        #[arg(required = true, last = true)]
        command: Vec<OsString>,
    },
    /// Write the man pages
    Man { directory: PathBuf },
}

/// Runs the verb; no other thread may exist yet.
pub fn run(command: &InternalCommand) -> Result<(), CliError> {
    match command {
        InternalCommand::LaunchDaemon(arguments) => match daemon::launch(arguments)? {},
        InternalCommand::DieWithParent { command } => match die_with_parent(command)? {},
        InternalCommand::Man { directory } => {
            clap_mangen::generate_to(super::Cli::command(), directory).map_err(|error| {
                CliError::new(format!("cannot write man pages to {}", directory.display()))
                    .because(&error)
            })
        }
    }
}

fn die_with_parent(command: &[OsString]) -> Result<Infallible, CliError> {
    let failed = |error: &(dyn std::error::Error + 'static)| {
        CliError::new("cannot become another program").because(error)
    };
    let parent = rustix::process::getppid();
    rustix::process::set_parent_process_death_signal(Some(Signal::TERM))
        .map_err(|error| failed(&error))?;
    // It may have ended before the line above.
    if rustix::process::getppid() != parent {
        return Err(CliError::new("the process that wanted this program has ended"));
    }
    let (program, arguments) =
        command.split_first().ok_or_else(|| CliError::usage("no program given"))?;
    Err(failed(&std::process::Command::new(program).args(arguments).exec()))
}
