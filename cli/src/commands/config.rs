//! `banger config`: bangerd's settings.

use banger_daemon_api::config::{Config, KERNEL_DEFAULT, KEYS, Setting};
use banger_daemon_api::routes;
use clap::{Args, Subcommand};
use serde::Serialize;

use super::JsonArgs;
use crate::client::Client;
use crate::error::CliError;
use crate::ui::Ui;
use crate::{artifacts, completion, daemon, environment, table};

/// What can be done with settings.
#[derive(Debug, Subcommand)]
pub enum ConfigCommand {
    /// Print a setting
    Get(GetArgs),
    /// Change a setting, at once
    Set(SetArgs),
    /// Print all settings
    #[command(visible_alias = "ls")]
    List(JsonArgs),
    /// Print what is in force, and where each value is from
    #[command(
        after_help = "A value is from an option, a variable of the environment, a line of a file, or is the default.
An option goes before a variable, and that before a file. Lines of a file that banger does not
know stop bangerd at its start, with their names."
    )]
    Show(JsonArgs),
}

/// Arguments of `banger config get`.
#[derive(Args, Debug)]
pub struct GetArgs {
    /// The setting, such as network.subnet
    #[arg(value_parser = key, add = completion::settings())]
    key: String,
}

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

/// Checks a key before a daemon is started for it.
fn key(text: &str) -> Result<String, String> {
    Config::default().get(text).map(|_| text.to_owned()).map_err(|error| error.to_string())
}

impl ConfigCommand {
    /// Runs the verb.
    pub async fn run(self, ui: &Ui) -> Result<(), CliError> {
        match self {
            Self::Get(args) => {
                let settings = settings(&daemon::connect(ui).await?).await?;
                let found = settings.into_iter().find(|setting| setting.key == args.key);
                ui.line(found.map(|setting| setting.value).unwrap_or_default())
            }
            Self::Set(args) => {
                // What cannot be is said before a daemon is started for it.
                Config::default().set(&args.key, &args.value).map_err(|error| {
                    CliError::usage(error.to_string()).hint("banger config set --help")
                })?;
                let client = daemon::connect(ui).await?;
                let setting = Setting { key: args.key, value: args.value, origin: None };
                let set: Result<Vec<Setting>, _> = client.patch(routes::CONFIG, &setting).await;
                set.map(drop).map_err(|error| client.explain(error))?;
                warn(ui, &client, &setting).await
            }
            Self::List(json) => {
                let settings = settings(&daemon::connect(ui).await?).await?;
                if json.json {
                    return ui.json(&settings);
                }
                let facts: Vec<(&str, String)> = KEYS
                    .iter()
                    .filter_map(|(key, _)| {
                        let found = settings.iter().find(|setting| setting.key == *key)?;
                        Some((*key, found.value.clone()))
                    })
                    .collect();
                ui.line(table::facts(&facts))
            }
            Self::Show(json) => {
                let all = in_force(ui).await?;
                if json.json {
                    return ui.json(&all);
                }
                let rows: Vec<[String; 3]> =
                    all.into_iter().map(|one| [one.key, one.value, one.origin]).collect();
                ui.line(table::table(["SETTING", "VALUE", "FROM"], &rows))
            }
        }
    }
}

/// A value that is in force.
#[derive(Debug, Serialize)]
struct InForce {
    key: String,
    value: String,
    origin: String,
}

/// Lists how this program finds its daemon, and that daemon's settings.
async fn in_force(ui: &Ui) -> Result<Vec<InForce>, CliError> {
    let found = environment::origins()?.into_iter();
    let mut all: Vec<InForce> =
        found.map(|(key, value, origin)| InForce { key: key.to_owned(), value, origin }).collect();
    let settings = settings(&daemon::connect(ui).await?).await?;
    all.extend(settings.into_iter().map(|Setting { key, value, origin }| InForce {
        key,
        value,
        origin: origin.unwrap_or_else(|| environment::DEFAULT.to_owned()),
    }));
    Ok(all)
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

async fn settings(client: &Client) -> Result<Vec<Setting>, CliError> {
    client.get(routes::CONFIG).await.map_err(|error| client.explain(error))
}
