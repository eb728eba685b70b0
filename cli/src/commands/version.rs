//! `banger version`.

use clap::Args;
use serde_json::json;

use super::JsonArgs;
use crate::error::CliError;
use crate::ui::Ui;

/// This build's version.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Arguments of `banger version`.
#[derive(Args, Debug)]
pub struct VersionArgs {
    #[command(flatten)]
    json: JsonArgs,
}

/// Prints the version; starts nothing.
pub fn run(ui: &Ui, args: &VersionArgs) -> Result<(), CliError> {
    let api = banger_daemon_api::API_VERSION;
    let agent = banger_agent_api::PROTOCOL_VERSION;
    if args.json.json {
        return ui.json(&json!({
            "version": VERSION, "api_version": api, "agent_protocol_version": agent,
        }));
    }
    ui.line(format_args!("banger {VERSION} (API {api}, agent protocol {agent})"))
}
