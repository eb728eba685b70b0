//! Hidden verbs: what banger starts itself, and what packaging needs.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use clap::{Args, CommandFactory, Subcommand};

use crate::daemon::{self, LaunchArgs};
use crate::debian;
use crate::error::CliError;
use crate::ssh;
use crate::ui::Ui;

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
    /// Carry an SSH connection between standard streams and a machine (ssh_config(5), ProxyCommand)
    SshProxy(SshProxyArgs),
    /// Write the man pages
    Man { directory: PathBuf },
}

/// Arguments of `banger internal ssh-proxy`.
#[derive(Args, Debug)]
pub struct SshProxyArgs {
    /// The machine's name as ssh has it: NAME.vm
    host: String,
    /// Accept that its host key has changed
    #[arg(long)]
    new_host_key: bool,
}

impl InternalCommand {
    /// Returns whether it does what other verbs do, too.
    pub const fn needs_runtime(&self) -> bool {
        matches!(self, Self::SshProxy(_))
    }
}

/// Carries an SSH connection.
pub async fn ssh_proxy(ui: &Ui, args: &SshProxyArgs) -> Result<(), CliError> {
    let client = daemon::connect(ui).await?;
    ssh::proxy(&client, &args.host, args.new_host_key).await
}

/// Runs the verb; no other thread may exist yet.
pub fn run(command: &InternalCommand) -> Result<(), CliError> {
    match command {
        InternalCommand::LaunchDaemon(arguments) => match daemon::launch(arguments)? {},
        InternalCommand::Supervise { directory, command } => supervise(directory, command),
        InternalCommand::SshProxy(_) => Err(CliError::usage("ssh-proxy runs by itself")),
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
