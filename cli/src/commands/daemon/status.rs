//! `banger daemon status`.

use jiff::Timestamp;
use serde_json::json;

use crate::error::CliError;
use crate::ui::Ui;
use crate::{daemon, table};

/// Runs the verb.
pub async fn run(ui: &Ui, json: bool) -> Result<(), CliError> {
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
