//! `banger daemon`: look at `bangerd`, or end it.

use clap::Subcommand;
use jiff::Timestamp;
use serde_json::json;

use super::JsonArgs;
use crate::environment::Site;
use crate::error::CliError;
use crate::table;
use crate::ui::Ui;
use crate::{daemon, environment};

/// What can be done with `bangerd`.
#[derive(Debug, Subcommand)]
pub enum DaemonCommand {
    /// Say whether bangerd runs, and how it does
    Status(JsonArgs),
    /// End bangerd; machines keep running
    Stop,
}

impl DaemonCommand {
    /// Runs the verb.
    pub async fn run(self, ui: &Ui) -> Result<(), CliError> {
        match self {
            Self::Status(json) => status(ui, json.json).await,
            Self::Stop => {
                let site = environment::site()?;
                if matches!(site, Site::System { .. }) {
                    return Err(CliError::usage("bangerd is a service here, which systemd ends")
                        .hint("sudo systemctl stop bangerd; --direct means your own bangerd"));
                }
                let client = daemon::client(&site);
                if daemon::shut_down(&client).await? {
                    ui.status("bangerd has ended; machines keep running");
                } else {
                    ui.status("bangerd was not running");
                }
                if let Site::Direct(direct) = &site {
                    daemon::end_bridge(&direct.directories.runtime);
                }
                Ok(())
            }
        }
    }
}

async fn status(ui: &Ui, json: bool) -> Result<(), CliError> {
    let Some(daemon) = daemon::running().await? else {
        if json {
            return ui.json(&json!({ "running": false }));
        }
        ui.line("bangerd is not running")?;
        ui.hint("any command that needs it starts it");
        return Ok(());
    };
    let ping = daemon.ping;
    if json {
        return ui.json(&json!({ "running": true, "daemon": ping }));
    }
    ui.line(table::facts(&[
        ("state", "running".to_owned()),
        ("version", ping.version.clone()),
        ("pid", ping.pid.to_string()),
        ("uid", ping.uid.to_string()),
        ("started", table::ago(ping.started_at, Timestamp::now())),
        ("socket", daemon.client.socket().display().to_string()),
        ("state directory", ping.state_dir.clone()),
        ("cache directory", ping.cache_dir.clone()),
        ("running VMs", ping.running_vms.to_string()),
        ("operations", ping.active_operations.to_string()),
        ("commands and leases", ping.open_sessions.to_string()),
    ]))
}
