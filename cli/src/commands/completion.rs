//! `banger completion`: scripts that ask `banger` itself what comes next.

use clap::Args;
use clap::builder::PossibleValuesParser;
use clap_complete::env::Shells;

use crate::error::CliError;
use crate::ui::Ui;

/// The variable by which a shell's script asks; see `clap_complete::CompleteEnv`.
const VARIABLE: &str = "COMPLETE";

/// Arguments of `banger completion`.
#[derive(Args, Debug)]
#[command(after_help = "bash: source <(banger completion bash)
zsh:  source <(banger completion zsh)
fish: banger completion fish | source")]
pub struct CompletionArgs {
    /// The shell
    #[arg(value_parser = PossibleValuesParser::new(["bash", "elvish", "fish", "powershell", "zsh"]))]
    shell: String,
}

/// Prints the script.
pub fn run(ui: &Ui, args: &CompletionArgs) -> Result<(), CliError> {
    let shells = Shells::builtins();
    let shell = shells
        .completer(&args.shell)
        .ok_or_else(|| CliError::usage(format!("no completion for {}", args.shell)))?;
    let mut script = Vec::new();
    shell
        .write_registration(VARIABLE, "banger", "banger", "banger", &mut script)
        .map_err(|error| CliError::output(&error))?;
    ui.bytes(&script)
}
