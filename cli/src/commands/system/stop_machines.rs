//! `banger system stop-machines`: what `banger-shutdown.service` does when it ends.

use std::process::{Command, Stdio};

use super::services::SYSTEMCTL;
use crate::commands::vm;
use crate::daemon;
use crate::error::CliError;
use crate::ui::Ui;

/// How long a machine may take for its end: what the unit allows, less what the services need.
const GRACE_MS: u64 = 60_000;

/// Stops what runs, each in order and all at once, if the host is on its way down; a stop of the
/// unit by hand, or its removal, ends no machine.
pub async fn run(ui: &Ui) -> Result<(), CliError> {
    if !host_goes_down()? {
        return Ok(());
    }
    let client = daemon::connect(ui).await?;
    vm::stop_all(ui, &client, GRACE_MS).await
}

/// What systemctl(1) says of `is-system-running`: `stopping` from the moment that the shutdown is
/// decided.
fn host_goes_down() -> Result<bool, CliError> {
    let output = Command::new(SYSTEMCTL)
        .arg("is-system-running")
        .env_clear()
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .output()
        .map_err(|error| {
            CliError::new(format!("cannot run {SYSTEMCTL} is-system-running")).because(&error)
        })?;
    Ok(output.stdout.trim_ascii() == b"stopping")
}
