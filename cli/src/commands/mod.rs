//! The verbs, one file each, and what they share.

mod completion;
mod config;
mod daemon;
mod doctor;
mod image;
mod internal;
mod kernel;
mod ps;
mod ssh_config;
mod system;
mod version;
pub mod vm;

use std::process::ExitCode;

use clap::{ArgAction, Args, Parser, Subcommand};

use crate::environment;
use crate::error::{self, CliError};
use crate::ui::Ui;

const EXIT_CODES: &str = "\
Exit codes:
  vm run and vm exec end with the command's own code, or 128 + n where signal n ended it.
  124  --timeout ended that command
  125  banger itself failed before or around that command
  126  the command cannot be executed, 127 it was not found (in the guest)
  1    any other verb failed
  2    the command line is wrong
  130  interrupted by Ctrl-C (128 + n for another signal)
  141  nobody reads the output any more

Environment:
  BANGER_STATE_DIR, BANGER_CACHE_DIR, BANGER_RUNTIME_DIR  where bangerd keeps its files
  BANGER_MODE       direct (a bangerd of your own), system (the installed one) or auto: the
                    installed one for its owner, unless one of the directories is named
  BANGER_BANGERD    the bangerd to start, instead of the one beside banger
  BANGER_LOG_LEVEL  what bangerd logs: error, warn, info, debug or trace
  NO_COLOR          no colours, even on a terminal";

/// Real, disposable Linux machines: `banger vm run ./repo -- make test`
#[derive(Debug, Parser)]
#[command(
    name = "banger",
    version,
    after_help = "See 'banger help COMMAND' for one command, 'banger --help' for exit codes and environment.",
    after_long_help = EXIT_CODES,
    disable_help_subcommand = false,
    max_term_width = 100
)]
pub struct Cli {
    #[command(flatten)]
    global: GlobalArgs,
    #[command(subcommand)]
    command: Command,
}

#[derive(Args, Debug)]
#[command(next_help_heading = "Global options")]
struct GlobalArgs {
    /// Print results and errors only
    #[arg(short, long, global = true)]
    quiet: bool,
    /// Say more about what is done
    #[arg(short, long, global = true, action = ArgAction::Count)]
    verbose: u8,
    /// Use this user's own bangerd even where banger is installed
    #[arg(long, global = true)]
    direct: bool,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make, use and delete machines
    #[command(subcommand)]
    Vm(Box<vm::VmCommand>),
    /// List running machines
    Ps(ps::PsArgs),
    /// What machines are made from
    #[command(subcommand)]
    Image(image::ImageCommand),
    /// What machines boot
    #[command(subcommand)]
    Kernel(kernel::KernelCommand),
    /// Make 'ssh NAME.vm' reach machines
    SshConfig(ssh_config::SshConfigArgs),
    /// Check what this host can do
    Doctor(doctor::DoctorArgs),
    /// Print the version
    Version(version::VersionArgs),
    /// Print a completion script for a shell
    Completion(completion::CompletionArgs),
    /// Look at and change bangerd's settings
    #[command(subcommand)]
    Config(config::ConfigCommand),
    /// Look at bangerd, which does the work in the background
    #[command(subcommand)]
    Daemon(daemon::DaemonCommand),
    /// Install banger as services of this machine, or remove them
    #[command(subcommand)]
    System(system::SystemCommand),
    #[command(subcommand, hide = true)]
    Internal(internal::InternalCommand),
}

impl Command {
    /// Returns the exit code of banger's own failures in this verb.
    fn failure_code(&self) -> u8 {
        match self {
            Self::Vm(command) if command.passes_on() => error::COMMAND_NOT_REACHED,
            _ => error::FAILED,
        }
    }

    async fn run(self, ui: &Ui) -> Result<u8, CliError> {
        match self {
            Self::Vm(command) => command.run(ui).await,
            Self::Ps(args) => ps::run(ui, &args).await.map(|()| 0),
            Self::Image(command) => command.run(ui).await.map(|()| 0),
            Self::Kernel(command) => command.run(ui).await.map(|()| 0),
            Self::SshConfig(args) => ssh_config::run(ui, &args).await.map(|()| 0),
            Self::Doctor(args) => doctor::run(ui, &args).await,
            Self::Version(args) => version::run(ui, &args).map(|()| 0),
            Self::Completion(args) => completion::run(ui, &args).map(|()| 0),
            Self::Config(command) => command.run(ui).await.map(|()| 0),
            Self::Daemon(command) => command.run(ui).await.map(|()| 0),
            Self::System(command) => command.run(ui).await.map(|()| 0),
            Self::Internal(internal::InternalCommand::SshProxy(args)) => {
                internal::ssh_proxy(ui, &args).await.map(|()| 0)
            }
            // Handled before any thread exists.
            Self::Internal(command) => internal::run(&command).map(|()| 0),
        }
    }
}

impl Cli {
    /// Runs the verb and turns its end into an exit code.
    pub fn run(self) -> ExitCode {
        environment::choose_direct(self.global.direct);
        let ui = Ui::new(self.global.quiet, self.global.verbose > 0);
        let failure = self.command.failure_code();
        let result = match self.command {
            Command::Internal(command) if !command.needs_runtime() => {
                internal::run(&command).map(|()| 0)
            }
            command => in_runtime(command.run(&ui)),
        };
        match result {
            Ok(code) => ExitCode::from(code),
            Err(error) => {
                ui.error(&error);
                ExitCode::from(error.exit_code(failure))
            }
        }
    }
}

fn in_runtime(future: impl Future<Output = Result<u8, CliError>>) -> Result<u8, CliError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| CliError::new("cannot start").because(&error))?;
    let result = runtime.block_on(future);
    // A thread that still waits for input must not keep the process.
    runtime.shutdown_background();
    result
}

/// `--json` of every verb that lists or shows.
#[derive(Args, Debug)]
pub struct JsonArgs {
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use clap::{Arg, Command, CommandFactory};

    use super::*;

    /// Begins the table of docs/cli.md, which is the last thing in it.
    const TABLE: &str = "| verb | options |\n|---|---|\n";

    /// An option as people write it: `-e`, `--env`, and other names of it.
    fn names(option: &Arg) -> Vec<String> {
        let short = option.get_short().map(|letter| format!("`-{letter}`"));
        let aliases = option.get_visible_aliases().unwrap_or_default();
        let long = option.get_long().into_iter().chain(aliases).map(|name| format!("`--{name}`"));
        short.into_iter().chain(long).collect()
    }

    /// A line for each verb that can be run, in the order of the help.
    fn lines(command: &Command, verb: &str, table: &mut String) {
        for below in command.get_subcommands().filter(|below| !below.is_hide_set()) {
            lines(below, &format!("{verb} {}", below.get_name()), table);
        }
        let options = command.get_arguments().filter(|argument| !argument.is_positional());
        let shown = options.filter(|option| !option.is_hide_set()).flat_map(names);
        let shown: Vec<String> = shown.collect();
        let runs = !command.has_subcommands() || command.get_arguments().any(Arg::is_positional);
        if runs || !shown.is_empty() {
            table.push_str(&format!("| `{verb}` | {} |\n", shown.join(" ")));
        }
    }

    #[test]
    fn the_documentation_has_every_verb_with_every_option() {
        let mut table = TABLE.to_owned();
        lines(&Cli::command(), "banger", &mut table);
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/cli.md");
        let page = std::fs::read_to_string(&path).unwrap();
        let (before, _) = page.split_once(TABLE).expect("docs/cli.md has the table");
        if std::env::var_os("BANGER_UPDATE_DOCS").is_some() {
            std::fs::write(&path, format!("{before}{table}")).unwrap();
            return;
        }
        let now = &page[before.len()..];
        assert!(now == table, "docs/cli.md has\n{now}\nand banger has\n{table}");
    }

    #[test]
    fn every_option_says_what_it_does() {
        fn check(command: &Command, verb: &str) {
            for argument in command.get_arguments().filter(|argument| !argument.is_hide_set()) {
                let help = argument.get_help().map(ToString::to_string).unwrap_or_default();
                assert!(!help.is_empty(), "{verb}: {}", argument.get_id());
                assert!(!help.ends_with('.'), "{verb}: {}: {help}", argument.get_id());
            }
            for below in command.get_subcommands().filter(|below| !below.is_hide_set()) {
                assert!(below.get_about().is_some(), "{verb} {}", below.get_name());
                check(below, &format!("{verb} {}", below.get_name()));
            }
        }
        check(&Cli::command(), "banger");
    }
}
