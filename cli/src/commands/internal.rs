//! Hidden verbs: what banger starts itself, and what packaging needs.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use clap::{CommandFactory, Subcommand};

use crate::daemon::{self, LaunchArgs};
use crate::debian;
use crate::error::CliError;

/// The hidden verbs.
#[derive(Debug, Subcommand)]
pub enum InternalCommand {
    /// Become bangerd
    LaunchDaemon(LaunchArgs),
    /// Run PROGRAM until it ends or standard input closes, then remove DIRECTORY
    Supervise {
        #[arg(long)]
        directory: PathBuf,
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
        InternalCommand::Supervise { directory, command } => supervise(directory, command),
        InternalCommand::Man { directory } => {
            clap_mangen::generate_to(super::Cli::command(), directory).map_err(|error| {
                CliError::new(format!("cannot write man pages to {}", directory.display()))
                    .because(&error)
            })
        }
    }
}

fn supervise(directory: &Path, command: &[OsString]) -> Result<(), CliError> {
    let (program, arguments) =
        command.split_first().ok_or_else(|| CliError::usage("no program given"))?;
    let failed = format!("{} failed", Path::new(program).display());
    match debian::supervise(directory, program, arguments) {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(CliError::new(format!("{failed} ({status})"))),
        Err(error) => Err(CliError::new(failed).because(&error)),
    }
}
