//! `banger vm logs`: what a machine wrote to its console.

use std::io::{self, IsTerminal};

use banger_agent_api::DetachedOutputCall;
use banger_daemon_api::routes;
use banger_daemon_api::vm::Vm;
use bytes::Buf;
use clap::Args;

use super::OneVm;
use crate::client::Client;
use crate::console_text::ConsoleText;
use crate::error::CliError;
use crate::ui::Ui;
use crate::{daemon, detached};

/// Arguments of `banger vm logs`.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  banger vm logs -n 20 -f box
  banger vm logs --exec 1 box             what banger vm exec -d started, to our two streams

Of a detached command the last MiB is kept, in the machine's memory, until it stops.
On a terminal, escape sequences of the guest are taken out; a pipe or file gets them unchanged.")]
pub struct LogsArgs {
    #[command(flatten)]
    vm: OneVm,
    /// Keep printing what comes, until Ctrl-C
    #[arg(short, long)]
    follow: bool,
    /// Begin with the last so many lines [default: all that is kept]
    #[arg(short = 'n', long, value_name = "COUNT")]
    lines: Option<usize>,
    /// The output of a detached command instead, by its ID
    #[arg(long, value_name = "ID", conflicts_with = "lines")]
    exec: Option<u32>,
}

/// Prints the console log.
pub async fn run(ui: &Ui, args: &LogsArgs) -> Result<(), CliError> {
    let client = daemon::connect(ui).await?;
    if let Some(id) = args.exec {
        let vm = super::get_running(&client, &args.vm.vm).await?;
        let call = DetachedOutputCall { id, follow: args.follow, skip_kept: false };
        return detached::output(&client, &vm, call).await.map(drop);
    }
    let vm = super::get(&client, &args.vm.vm).await?;
    let mut skip = match args.lines {
        Some(lines) => before_last(lines, &everything(&client, &vm).await?),
        None => 0,
    };
    let part = if args.follow { "/logs?follow=true" } else { "/logs" };
    let mut stream = client
        .stream(&routes::vm(&(&vm.id).into(), part))
        .await
        .map_err(|error| client.explain(error))?;
    let mut cleaner = io::stdout().is_terminal().then(ConsoleText::default);
    while let Some(mut bytes) = stream.next().await.map_err(|error| client.explain(error))? {
        let skipped = skip.min(bytes.len());
        skip -= skipped;
        bytes.advance(skipped);
        match &mut cleaner {
            Some(cleaner) => ui.bytes(cleaner.clean(&bytes).as_bytes())?,
            None => ui.bytes(&bytes)?,
        }
    }
    Ok(())
}

/// Gets what is kept of the console; the daemon keeps a few MiB.
async fn everything(client: &Client, vm: &Vm) -> Result<Vec<u8>, CliError> {
    let path = routes::vm(&(&vm.id).into(), "/logs");
    let mut stream = client.stream(&path).await.map_err(|error| client.explain(error))?;
    let mut all = Vec::new();
    while let Some(bytes) = stream.next().await.map_err(|error| client.explain(error))? {
        all.extend_from_slice(&bytes);
    }
    Ok(all)
}

/// Returns how many bytes come before the last `lines` lines, of which the very last may be unfinished.
fn before_last(lines: usize, text: &[u8]) -> usize {
    let ends = text.strip_suffix(b"\n").unwrap_or(text);
    let mut starts = ends.iter().enumerate().rev().filter(|(_, byte)| **byte == b'\n');
    match lines {
        0 => text.len(),
        _ => starts.nth(lines - 1).map_or(0, |(position, _)| position + 1),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_lines_are_found() {
        for (lines, text, rest) in [
            (0, "a\nb\n", ""),
            (1, "a\nb\n", "b\n"),
            (1, "a\nb", "b"),
            (2, "a\nb\n", "a\nb\n"),
            (9, "a\nb\n", "a\nb\n"),
            (1, "a\n\n", "\n"),
            (3, "", ""),
        ] {
            assert_eq!(&text[before_last(lines, text.as_bytes())..], rest, "{lines} {text:?}");
        }
    }
}
