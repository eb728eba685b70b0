//! `banger ssh-config`.

use clap::Args;

use crate::daemon;
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
pub async fn run(ui: &Ui, args: &SshConfigArgs) -> Result<(), CliError> {
    let changed = if args.uninstall {
        ssh::uninstall()?
    } else {
        // It knows which key is to be used.
        let store = Store::open(&daemon::connect(ui).await?).await?;
        if !args.install {
            return ui.bytes(Options::new(&store, false)?.file().as_bytes());
        }
        ssh::install(&store)?
    };
    match changed {
        Some(path) => ui.status(format_args!("changed {}", path.display())),
        None => ui.status("nothing to change"),
    }
    Ok(())
}
