//! `banger ssh-config`.

use clap::Args;

use crate::error::CliError;
use crate::ssh::{self, Options, Store};
use crate::ui::Ui;

/// Arguments of `banger ssh-config`.
#[derive(Args, Debug)]
#[command(
    after_help = "With --install, 'ssh NAME.vm' reaches machine NAME, and so do scp, sftp, rsync, git and editors.
~/.ssh/config gets one Include line between two markers, at its beginning; everything else
in it, its mode, and a link to it stay as they are. Without an option, the settings are
printed."
)]
pub struct SshConfigArgs {
    /// Make ssh know machines as NAME.vm; again, after banger has moved
    #[arg(long, conflicts_with = "uninstall")]
    install: bool,
    /// Take that back
    #[arg(long)]
    uninstall: bool,
}

/// Runs the verb.
pub fn run(ui: &Ui, args: &SshConfigArgs) -> Result<(), CliError> {
    let changed = match (args.install, args.uninstall) {
        (true, _) => ssh::install()?,
        (_, true) => ssh::uninstall()?,
        _ => {
            let text = Options::new(&Store::open()?, false)?.file();
            return ui.bytes(text.as_bytes());
        }
    };
    match changed {
        Some(path) => ui.status(format_args!("changed {}", path.display())),
        None => ui.status("nothing to change"),
    }
    Ok(())
}
