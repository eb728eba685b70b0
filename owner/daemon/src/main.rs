//! `bangerd`, the owner's daemon: it wires the engine, the image and kernel stores and the VMM
//! drivers together and serves them over one unix socket.
//!
//! ```text
//! arguments -> process (never root, umask, no_new_privs, limits)
//!           -> directories (0700, ours) -> locks -> log
//!           -> services (store, stores of images and kernels, VMMs, engine; reconcile)
//!           -> server (peer check, HTTP, api/*) -> `ready` on standard output
//!           -> until SIGTERM, SIGINT, POST /v1/shutdown or idle: orderly end, VMs keep running
//! ```
#![forbid(unsafe_code)]

mod agent_binary;
mod api;
mod arguments;
mod artifacts;
mod config_file;
mod directories;
#[cfg(feature = "fault-hooks")]
mod held_guests;
mod idle;
mod log;
mod migrations;
mod process;
mod readiness;
mod server;
mod services;
mod start_error;

use std::process::ExitCode;

use banger_store::StateLock;
use clap::Parser;

use crate::arguments::Arguments;
use crate::readiness::Readiness;
use crate::start_error::StartError;

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let mut readiness = Readiness::new();
    if arguments.check_migrations {
        return migrations::check(&arguments.state_dir);
    }
    match run(&arguments, &mut readiness) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(error = %error, "bangerd cannot run");
            readiness.failed(&error.to_api_error());
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments, readiness: &mut Readiness) -> Result<(), StartError> {
    let identity = process::harden()?;
    let directories = directories::Directories::prepare(arguments, identity.uid)?;
    let lock = StateLock::acquire(&directories.state)?;
    let _socket_lock = directories.lock()?;
    log::start(&directories.log_file(arguments))?;
    tracing::info!(
        pid = identity.pid,
        uid = identity.uid,
        version = env!("CARGO_PKG_VERSION"),
        build_id = arguments.build_id,
        state_dir = %directories.state.display(),
        "starting"
    );
    // Two workers and few blocking threads: the daemon waits far more than it computes, and each
    // thread costs memory while idle.
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .max_blocking_threads(32)
        .thread_keep_alive(std::time::Duration::from_secs(5))
        .thread_name("bangerd")
        .enable_all()
        .build()
        .map_err(|source| StartError::Io { act: "starting the runtime".to_owned(), source })?;
    let outcome = runtime.block_on(server::run(arguments, identity, &directories, lock, readiness));
    // A blocking task that outlives its grace is abandoned: whatever it stages is swept at the next
    // start.
    runtime.shutdown_timeout(std::time::Duration::from_secs(5));
    tracing::info!(ok = outcome.is_ok(), "ended");
    outcome
}
