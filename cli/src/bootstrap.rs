//! The tools that a repository asks for by mise: installed in the machine once the repository is there.
//!
//! What runs is the machine's own `mise`, in the machine; the host reads names of files only.

use banger_agent_api::Argument;
use banger_types::VmId;
use banger_workspace::Workspace;

use crate::client::Client;
use crate::error::CliError;
use crate::exec::{self, Exec};
use crate::interrupt::Interrupts;
use crate::ui::Ui;
use crate::workspace;

/// Files at a repository's top by which mise knows what to install.
const FILES: [&str; 3] = ["mise.toml", ".mise.toml", ".tool-versions"];

/// What the script ends with where the machine has no mise.
const NO_MISE: u8 = 44;

/// Finds mise as its installer and packages put it; `$mise` is empty without.
const FIND: &str = "mise=$(command -v mise) || for mise in /root/.local/bin/mise \
                    /usr/local/bin/mise /usr/bin/mise ''; do [ -x \"$mise\" ] && break; done\n";

/// Returns the file by which a repository asks for tools, where it does.
pub fn asks(workspace: &Workspace) -> Option<&'static str> {
    FILES.into_iter().find(|name| workspace.has_file(name.as_ref()))
}

/// Refuses a machine in which nothing could be installed, before it is made.
pub fn check(file: Option<&str>, nat: bool) -> Result<(), CliError> {
    match file {
        Some(file) if !nat => Err(CliError::usage(format!(
            "{file} asks for tools, which mise fetches; the machine would not reach them"
        ))
        .hint("--nat lets the machine reach the network; --no-bootstrap installs nothing")),
        _ => Ok(()),
    }
}

/// Installs what the repository in a machine asks for. What fails is told, and nothing else: the command
/// may not need it.
pub async fn install(
    ui: &Ui,
    client: &Client,
    vm: &VmId,
    interrupts: &mut Interrupts,
    file: &str,
) -> Result<(), CliError> {
    ui.status(format_args!("mise installs what {file} asks for"));
    // Its words are no result of the user's command.
    let script = format!(
        "{FIND}[ -n \"$mise\" ] || exit {NO_MISE}\n\
         exec 1>&2\n\"$mise\" trust --quiet && \"$mise\" install --yes"
    );
    match run(client, vm, interrupts, &script).await? {
        0 => workspace::keeping(client)?.set_bootstrapped(vm.as_str()).map_err(CliError::from),
        NO_MISE => {
            ui.warning(format_args!(
                "the machine has no mise; what {file} asks for is not installed (--no-bootstrap)"
            ));
            Ok(())
        }
        code @ (129 | 130 | 131 | 143) => {
            Err(CliError::new(format!("mise was interrupted in the machine ({code})")))
        }
        code => {
            ui.warning(format_args!(
                "mise ended with {code}; what {file} asks for may be missing in the machine"
            ));
            Ok(())
        }
    }
}

/// Has mise take the configuration that came with a repository for good, where it was installed by it.
pub async fn trust(
    client: &Client,
    vm: &VmId,
    interrupts: &mut Interrupts,
) -> Result<(), CliError> {
    if workspace::keeping(client)?.is_bootstrapped(vm.as_str()) {
        let script = format!("{FIND}[ -z \"$mise\" ] || \"$mise\" trust --quiet >/dev/null 2>&1");
        // It says itself what it does not trust.
        run(client, vm, interrupts, &script).await?;
    }
    Ok(())
}

/// Has a command find the tools that were installed for the machine's repository.
pub fn with_tools(client: &Client, vm: &VmId, exec: Exec) -> Result<Exec, CliError> {
    if !workspace::keeping(client)?.is_bootstrapped(vm.as_str()) {
        return Ok(exec);
    }
    let script = format!("{FIND}[ -n \"$mise\" ] && exec \"$mise\" exec -- \"$@\"\nexec \"$@\"");
    let mut argv = words(&["/bin/sh", "-c", &script, "sh"])?;
    argv.extend(exec.argv);
    Ok(Exec { argv, ..exec })
}

async fn run(
    client: &Client,
    vm: &VmId,
    interrupts: &mut Interrupts,
    script: &str,
) -> Result<u8, CliError> {
    let exec = Exec {
        argv: words(&["/bin/sh", "-c", script])?,
        env: Vec::new(),
        cwd: Some(workspace::guest_path(banger_workspace::GUEST_PATH)?),
        user: None,
        tty: false,
        stdin: false,
        timeout: None,
    };
    exec::exec(client, vm, exec, interrupts).await
}

fn words(words: &[&str]) -> Result<Vec<Argument>, CliError> {
    let words = words.iter().map(|word| Argument::new(*word)).collect::<Result<_, _>>();
    words.map_err(|error| CliError::new("cannot ask for mise").because(&error))
}
