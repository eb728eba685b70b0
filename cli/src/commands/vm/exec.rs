//! `banger vm exec`.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;

use banger_agent_api::{Argument, EnvironmentEntry, GuestPath, TextError, UserSpec};
use banger_daemon_api::vm::VmState;
use clap::Args;

use super::OneVm;
use super::main_process::Said;
use crate::error::CliError;
use crate::exec::{self, Exec};
use crate::interrupt::Interrupts;
use crate::ui::Ui;
use crate::{daemon, terminal};

/// How a command runs; shared by `vm run` and `vm exec`.
#[derive(Args, Debug)]
#[command(next_help_heading = "Command options")]
pub struct CommandArgs {
    /// Give the command a terminal [default: where standard input and output are terminals]
    #[arg(short, long, overrides_with = "no_tty")]
    tty: bool,
    /// Give the command pipes, even on a terminal
    #[arg(short = 'T', long)]
    no_tty: bool,
    /// Accepted for those used to it: standard input is always passed on
    #[arg(short, long, hide = true)]
    interactive: bool,
    /// Do not pass standard input on
    #[arg(short = 'n', long, conflicts_with = "interactive")]
    no_stdin: bool,
    /// Run as this user of the machine: NAME or UID, with an optional :GROUP
    #[arg(short, long)]
    user: Option<UserSpec>,
    /// Run in this directory of the machine
    #[arg(short, long, value_name = "DIRECTORY")]
    workdir: Option<GuestPath>,
    /// Set a variable: NAME=VALUE, or NAME to pass our own value on
    #[arg(short, long = "env", value_name = "NAME[=VALUE]", value_parser = parse_variable)]
    env: Vec<EnvironmentEntry>,
    /// The command and its arguments [default: a login shell]
    #[arg(last = true, value_name = "COMMAND")]
    command: Vec<OsString>,
}

pub fn parse_variable(text: &str) -> Result<EnvironmentEntry, String> {
    if text.contains('=') {
        return text.parse().map_err(|error: TextError| error.to_string());
    }
    let value = std::env::var_os(text).ok_or_else(|| format!("{text} is not set here"))?;
    let mut entry = format!("{text}=").into_bytes();
    entry.extend(value.into_vec());
    EnvironmentEntry::new(entry).map_err(|error| error.to_string())
}

impl CommandArgs {
    /// Returns whether a command was given.
    pub fn has_command(&self) -> bool {
        !self.command.is_empty()
    }

    /// Returns what of it counts for a main process.
    pub fn said(&self) -> Said<'_> {
        Said {
            command: &self.command,
            env: &self.env,
            workdir: self.workdir.as_ref(),
            user: self.user.as_ref(),
        }
    }

    /// Returns what to run; `directory` is used where none was asked for.
    pub fn into_exec(self, directory: Option<GuestPath>) -> Result<Exec, CliError> {
        let argv = if self.command.is_empty() {
            exec::login_shell()
        } else {
            self.command
                .into_iter()
                .map(|argument| Argument::new(argument.into_vec()))
                .collect::<Result<_, _>>()
                .map_err(|error| CliError::usage("bad argument").because(&error))?
        };
        Ok(Exec {
            argv,
            env: self.env,
            cwd: self.workdir.or(directory),
            user: self.user,
            tty: self.tty || (!self.no_tty && !self.no_stdin && terminal::is_interactive()),
            stdin: !self.no_stdin,
        })
    }
}

/// Arguments of `banger vm exec`.
#[derive(Args, Debug)]
#[command(
    after_help = "Standard input, output and error pass unchanged; the exit code is the command's.
Example: echo data | banger vm exec box -- tee /root/f"
)]
pub struct ExecArgs {
    #[command(flatten)]
    vm: OneVm,
    #[command(flatten)]
    command: CommandArgs,
}

/// Runs the command; returns its exit code.
pub async fn run(ui: &Ui, args: ExecArgs) -> Result<u8, CliError> {
    let mut interrupts = Interrupts::install()?;
    let exec = args.command.into_exec(None)?;
    let client = daemon::connect(ui).await?;
    let vm = super::get(&client, &args.vm.vm).await?;
    match vm.state {
        VmState::Running => {}
        VmState::Created | VmState::Stopped | VmState::Failed => {
            return Err(CliError::new(format!("VM {} is {}", vm.name, vm.state))
                .hint(format!("banger vm start {}", vm.name)));
        }
        VmState::Starting | VmState::Stopping | VmState::Deleting => {
            return Err(CliError::new(format!("VM {} is {}", vm.name, vm.state))
                .hint("wait for that to end: banger vm list"));
        }
    }
    exec::exec(&client, &vm.id, exec, &mut interrupts).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_have_a_value_or_pass_ours_on() {
        assert_eq!(parse_variable("A=b=c").unwrap().as_bytes(), b"A=b=c");
        assert!(parse_variable("=x").is_err());
        assert!(parse_variable("BANGER_SURELY_NOT_SET").is_err());
        assert!(parse_variable("PATH").unwrap().as_bytes().starts_with(b"PATH="));
    }
}
