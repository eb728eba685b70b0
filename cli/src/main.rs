//! `banger`: the command line. It talks only to `bangerd`, and is the only part that reads the
//! user's own files.
#![forbid(unsafe_code)]

mod agent;
mod artifacts;
mod beneath;
mod bootstrap;
mod bridges;
mod client;
mod commands;
mod completion;
mod console_text;
mod copy;
mod daemon;
mod debian;
mod detached;
mod environment;
mod error;
mod exec;
mod file_sync;
mod firewall;
mod guest_text;
mod host;
mod host_checks;
mod install;
mod interrupt;
mod operation;
mod progress;
mod registry;
mod ssh;
mod streams;
mod subordinate_ids;
mod table;
mod terminal;
mod terminal_reset;
mod terminal_text;
mod ui;
mod user_config;
mod vm_creation;
mod workspace;

use std::process::ExitCode;

use clap::{CommandFactory, Parser};

fn main() -> ExitCode {
    clap_complete::CompleteEnv::with_factory(commands::Cli::command).complete();
    commands::Cli::parse().run()
}
