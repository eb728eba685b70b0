//! `banger vm ssh`: OpenSSH's client, told of a machine.

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::process::Command;

use banger_daemon_api::vm::Vm;
use clap::Args;

use super::OneVm;
use crate::daemon;
use crate::error::CliError;
use crate::ssh::{self, Options, Store};
use crate::ui::Ui;

/// Arguments of `banger vm ssh`.
#[derive(Args, Debug)]
#[command(
    after_help = "The connection goes through bangerd to the machine's agent, which runs the image's sshd for
it: nothing listens, no network is needed, and the machine's key is known beforehand. The
options are those of ssh(1), and so are the exit code and how COMMAND is read: by the shell
of the machine.

Examples:
  banger vm ssh box                       a shell
  banger vm ssh box -- uname -a           a command
  banger vm ssh -L 8080:localhost:80 -N box
  banger ssh-config --install             makes 'ssh box.vm', scp, sftp, rsync and git work

banger vm exec is faster, and needs no sshd in the image."
)]
pub struct SshArgs {
    #[command(flatten)]
    vm: OneVm,
    /// Log in as this user of the machine [default: root]
    #[arg(short = 'l', long, value_name = "USER", value_parser = user)]
    user: Option<String>,
    /// Let the machine use the keys of this host's SSH agent
    #[arg(short = 'A', long)]
    forward_agent: bool,
    #[arg(
        short = 'L',
        value_name = "FORWARD",
        help = "Lead a port of this host into the machine: [ADDRESS:]PORT:HOST:PORT"
    )]
    local: Vec<OsString>,
    #[arg(
        short = 'R',
        value_name = "FORWARD",
        help = "Lead a port of the machine to this host: [ADDRESS:]PORT:HOST:PORT"
    )]
    remote: Vec<OsString>,
    /// Be a SOCKS proxy into the machine at this port of this host
    #[arg(short = 'D', value_name = "PORT")]
    dynamic: Vec<OsString>,
    /// Run no command: only forward
    #[arg(short = 'N')]
    no_command: bool,
    /// Give the command a terminal
    #[arg(short, long)]
    tty: bool,
    /// Accept that the machine's host key has changed
    #[arg(long)]
    new_host_key: bool,
    /// The command, which the machine's shell reads [default: a login shell]
    #[arg(last = true, value_name = "COMMAND")]
    command: Vec<OsString>,
}

fn user(text: &str) -> Result<String, String> {
    let fine = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    match !text.is_empty() && !text.starts_with('-') && text.chars().all(fine) {
        true => Ok(text.to_owned()),
        false => Err("a user is made of letters, digits, '.', '_' and '-'".to_owned()),
    }
}

/// Becomes ssh; returns only where that fails.
pub async fn run(ui: &Ui, args: SshArgs) -> Result<u8, CliError> {
    let client = daemon::connect(ui).await?;
    let vm = super::get_running(&client, &args.vm.vm).await?;
    let store = Store::open(&client).await?;
    // ssh looks for the key before it starts the proxy.
    store.public_key()?;
    let error = command(&vm, &args, &Options::new(&store, args.new_host_key)?).exec();
    Err(CliError::new(format!("cannot run {}", ssh::SSH))
        .because(&error)
        .hint("apt-get install openssh-client; banger vm exec needs none"))
}

fn command(vm: &Vm, args: &SshArgs, options: &Options) -> Command {
    let mut command = Command::new(ssh::SSH);
    // The user's own configuration may send variables and lead ports to every host there is.
    command.args(["-F", "none"]);
    command.args(options.arguments(args.user.as_deref()));
    for (set, flag) in [(args.forward_agent, "-A"), (args.no_command, "-N"), (args.tty, "-t")] {
        if set {
            command.arg(flag);
        }
    }
    for (flag, values) in [("-L", &args.local), ("-R", &args.remote), ("-D", &args.dynamic)] {
        for value in values {
            command.arg(flag).arg(value);
        }
    }
    command.arg("--").arg(format!("{}{}", vm.name, ssh::DOMAIN)).args(&args.command);
    command
}
