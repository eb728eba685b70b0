//! `banger config set`.

use banger_daemon_api::config::{Config, KERNEL_DEFAULT, Setting};
use banger_daemon_api::routes;
use clap::Args;

use super::key;
use crate::client::Client;
use crate::error::CliError;
use crate::ui::Ui;
use crate::{artifacts, completion, daemon};

/// Arguments of `banger config set`.
#[derive(Args, Debug)]
#[command(after_help = "Settings:
  kernel.default  the kernel of machines for which neither they nor their image say another, or auto
  network.mode    auto (the bridge where there can be one), bridge or user (QEMU's own network)
  network.subnet  the bridge's address and prefix such as 172.16.0.1/24, or auto: a free one
  network.dns     name servers for machines with NAT, with commas, or auto: this host's own
  registry.mirrors   REGISTRY=URL, with commas: asked for that registry's images before it
  registry.insecure  registries spoken to in plain HTTP, with commas
  registry.ca_file   a PEM file of certificate authorities to know registries by
  ssh.key            your private key for machines, or auto: one of banger's own
  storage.overcommit true lets one machine have larger disks than this host could hold")]
pub struct SetArgs {
    /// The setting, such as network.subnet
    #[arg(value_parser = key, add = completion::settings())]
    key: String,
    /// Its new value; auto brings the default back
    value: String,
}

/// Runs the verb.
pub async fn run(ui: &Ui, args: SetArgs) -> Result<(), CliError> {
    // What cannot be is said before a daemon is started for it.
    Config::default()
        .set(&args.key, &args.value)
        .map_err(|error| CliError::usage(error.to_string()).hint("banger config set --help"))?;
    let client = daemon::connect(ui).await?;
    let setting = Setting { key: args.key, value: args.value, origin: None };
    let set: Result<Vec<Setting>, _> = client.patch(routes::CONFIG, &setting).await;
    set.map(drop).map_err(|error| client.explain(error))?;
    warn(ui, &client, &setting).await
}

/// Says what a new value does not do yet.
async fn warn(ui: &Ui, client: &Client, setting: &Setting) -> Result<(), CliError> {
    if setting.key == KERNEL_DEFAULT
        && setting.value != "auto"
        && let Ok(name) = setting.value.parse()
        && artifacts::find_kernel(client, &name).await.is_err()
    {
        ui.warning(format_args!(
            "there is no kernel {name} yet, and machines need it: banger kernel import FILE --name {name}"
        ));
    }
    Ok(())
}
