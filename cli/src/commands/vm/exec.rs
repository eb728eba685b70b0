//! `banger vm exec`.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::time::Duration;

use banger_agent_api::{Argument, GuestPath};
use clap::Args;

use super::OneVm;
use super::main_process::{PlaceArgs, Said};
use crate::error::CliError;
use crate::exec::{self, Exec};
use crate::interrupt::Interrupts;
use crate::ui::Ui;
use crate::workspace::{self, WorkspaceArgs};
use crate::{bootstrap, daemon, detached, table, terminal};

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
    #[command(flatten)]
    place: PlaceArgs,
    /// End the command after this long (30, 30s, 5m, 1h), with exit code 124
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    timeout: Option<Duration>,
    /// The command and its arguments [default: a login shell]
    #[arg(last = true, value_name = "COMMAND")]
    command: Vec<OsString>,
}

fn parse_duration(text: &str) -> Result<Duration, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = match &text[digits.len()..] {
        "" | "s" => 1,
        "m" => 60,
        "h" => 3600,
        "d" => 86_400,
        _ => return Err("a time is a number of seconds, or one with s, m, h or d".to_owned()),
    };
    let seconds = digits.parse::<u32>().map_err(|_| "a time is a whole number".to_owned())?;
    match u64::from(seconds) * unit {
        0 => Err("a time is more than nothing".to_owned()),
        seconds => Ok(Duration::from_secs(seconds)),
    }
}

impl CommandArgs {
    /// Returns whether a command was given.
    pub fn has_command(&self) -> bool {
        !self.command.is_empty()
    }

    /// Returns what of it counts for a main process.
    pub fn said(&self) -> Said<'_> {
        self.place.said(&self.command)
    }

    /// Returns what to run; `directory` is used where none was asked for.
    pub fn into_exec(self, directory: Option<GuestPath>) -> Result<Exec, CliError> {
        let argv = if self.command.is_empty() {
            exec::login_shell()
        } else {
            self.command
                .into_iter()
                .map(|argument| {
                    let shown = table::printable(&argument.to_string_lossy());
                    Argument::new(argument.into_vec()).map_err(|error| {
                        CliError::usage(format!("{shown:?} cannot be a word of a command"))
                            .because(&error)
                    })
                })
                .collect::<Result<_, _>>()?
        };
        Ok(Exec {
            argv,
            env: self.place.variables.entries(),
            cwd: self.place.workdir.or(directory),
            user: self.place.user,
            tty: self.tty || (!self.no_tty && !self.no_stdin && terminal::is_interactive()),
            stdin: !self.no_stdin,
            timeout: self.timeout,
        })
    }
}

/// Arguments of `banger vm exec`.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  echo data | banger vm exec box -- tee /root/f
  banger vm exec --auto-prepare box -- make test
  banger vm exec -d box -- make server    prints an ID, such as 1
  banger vm exec --list box
  banger vm logs --exec 1 --follow box    its output; banger vm wait --exec 1 box waits for its end

Standard input, output and error pass unchanged; the exit code is the command's.
In a machine with a workspace root's commands run in it. Where the host has other commits than
were carried, a warning says so, and --auto-prepare carries them.")]
pub struct ExecArgs {
    #[command(flatten)]
    vm: OneVm,
    /// Bring the machine's workspace up to date first
    #[arg(long)]
    auto_prepare: bool,
    /// Let the command go on without this one, and print its ID
    #[arg(short, long, requires = "command", conflicts_with_all = ["tty", "interactive", "timeout"])]
    detach: bool,
    /// List the machine's detached commands: those that run, and those that ended last
    #[arg(long, conflicts_with_all = ["command", "detach", "auto_prepare"])]
    list: bool,
    /// List them as JSON
    #[arg(long, requires = "list")]
    json: bool,
    #[command(flatten)]
    command: CommandArgs,
}

/// Runs the command; returns its exit code.
pub async fn run(ui: &Ui, args: ExecArgs) -> Result<u8, CliError> {
    let mut interrupts = Interrupts::install()?;
    let client = daemon::connect(ui).await?;
    let vm = super::get_running(&client, &args.vm.vm).await?;
    if args.list {
        ui.line(detached::list(&client, &vm, args.json).await?)?;
        return Ok(0);
    }
    // Another user than root cannot enter root's home.
    let directory = match &vm.workspace {
        Some(record) if args.command.place.user.is_none() => {
            Some(workspace::guest_path(&record.guest_path)?)
        }
        _ => None,
    };
    let is_in_it = directory.is_some();
    let mut exec = args.command.into_exec(directory)?;
    if is_in_it {
        exec = bootstrap::with_tools(&client, &vm.id, exec)?;
    }
    if args.auto_prepare {
        let record = workspace::recorded(&vm)?;
        let wanted = workspace::keeping(&client)?.wanted(vm.id.as_str());
        let taken = WorkspaceArgs::default().reopen(ui, record, wanted)?;
        workspace::prepare_again(ui, &client, &mut interrupts, &vm, taken, false).await?;
        bootstrap::trust(&client, &vm.id, &mut interrupts).await?;
    } else if let Some(record) = &vm.workspace
        && workspace::moved_head(record).is_some()
    {
        ui.warning(format_args!(
            "{} has other commits than VM {}; --auto-prepare, or banger vm workspace prepare {}",
            crate::table::printable(&record.source_path),
            vm.name,
            vm.name
        ));
    }
    if args.detach {
        ui.line(detached::start(&client, &vm, exec).await?)?;
        return Ok(0);
    }
    exec::exec(&client, &vm.id, exec, &mut interrupts).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_units() {
        for (text, seconds) in [("30", 30), ("30s", 30), ("5m", 300), ("1h", 3600), ("2d", 172_800)]
        {
            assert_eq!(parse_duration(text), Ok(Duration::from_secs(seconds)), "{text}");
        }
        for bad in ["", "0", "s", "-1", "1.5", "5 m", "1w", "99999999999", "1\u{e4}"] {
            assert!(parse_duration(bad).is_err(), "{bad}");
        }
    }
}
