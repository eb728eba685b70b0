//! `banger vm logs`: what a machine wrote to its console.

use std::io::{self, IsTerminal};

use banger_daemon_api::routes;
use clap::Args;

use super::OneVm;
use crate::console_text::ConsoleText;
use crate::daemon;
use crate::error::CliError;
use crate::ui::Ui;

/// Arguments of `banger vm logs`.
#[derive(Args, Debug)]
#[command(
    after_help = "On a terminal, escape sequences of the guest are taken out; a pipe or file gets them unchanged."
)]
pub struct LogsArgs {
    #[command(flatten)]
    vm: OneVm,
    /// Keep printing what comes, until Ctrl-C
    #[arg(short, long)]
    follow: bool,
}

/// Prints the console log.
pub async fn run(ui: &Ui, args: &LogsArgs) -> Result<(), CliError> {
    let client = daemon::connect(ui).await?;
    let vm = super::get(&client, &args.vm.vm).await?;
    let part = if args.follow { "/logs?follow=true" } else { "/logs" };
    let mut stream = client
        .stream(&routes::vm(&(&vm.id).into(), part))
        .await
        .map_err(|error| client.explain(error))?;
    let mut cleaner = io::stdout().is_terminal().then(ConsoleText::default);
    while let Some(bytes) = stream.next().await.map_err(|error| client.explain(error))? {
        match &mut cleaner {
            Some(cleaner) => ui.bytes(cleaner.clean(&bytes).as_bytes())?,
            None => ui.bytes(&bytes)?,
        }
    }
    Ok(())
}
