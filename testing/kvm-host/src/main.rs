//! The KVM host's command line, which `cargo xtask kvm-host` passes its words to.
#![forbid(unsafe_code)]

use std::io::Write;
use std::process::ExitCode;

use anyhow::{Context, Result};
use banger_guest_client::AgentClient;
use banger_kvm_host::cache::{Cache, Seat};
use banger_kvm_host::session::{self, Get, Put};
use banger_kvm_host::{host, keeper, note, suite, vmm_binaries};
use clap::{Parser, Subcommand};

/// The exit code where a command's own would be expected and there is none.
const TOOL_FAILED: u8 = 125;

/// The Debian machine with KVM, systemd and device-mapper on which the product's real path is tested.
#[derive(Debug, Parser)]
#[command(bin_name = "cargo xtask kvm-host")]
struct Arguments {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Build the machine's image where it is missing (about a minute)
    Build,
    /// Start the machine, from its saved state where there is one; does nothing if it runs
    Boot,
    /// Run a command in the machine, starting that if needed; its exit code is passed on, and 125
    /// is a failure of this tool
    Run {
        /// In the machine that tests run in
        #[arg(long)]
        tests: bool,
        /// Send a file or folder first; the folder in the machine is /data where none is named
        #[arg(long, value_name = "LOCAL[:FOLDER]")]
        put: Vec<Put>,
        /// Fetch a file or folder afterwards, into the current folder where none is named
        #[arg(long, value_name = "/REMOTE[:LOCAL]")]
        get: Vec<Get>,
        /// Run as this user instead of root
        #[arg(long)]
        user: Option<String>,
        /// The command and its arguments
        #[arg(required = true, last = true)]
        command: Vec<std::ffi::OsString>,
    },
    /// Run this tier's tests in a machine of their own, starting that if needed
    Test(suite::Options),
    /// Open a shell in the machine, starting that if needed
    Shell {
        /// In the machine that tests run in
        #[arg(long)]
        tests: bool,
    },
    /// End the machine, and that of tests
    Stop {
        /// Also remove its saved state, so that the next boot is a cold one
        #[arg(long)]
        forget: bool,
    },
    /// End the machine and remove everything that was built for it
    Clean,
    /// Fetch firecracker and jailer for tests; prints their folder
    #[command(hide = true)]
    VmmBinaries,
    /// Own a running machine (started by boot)
    #[command(hide = true, name = host::KEEP)]
    Keep {
        /// It is the machine that tests run in
        #[arg(long)]
        tests: bool,
    },
}

async fn run(action: Action) -> Result<ExitCode> {
    let cache = Cache::open()?;
    match action {
        Action::Build => {
            let machine = host::build(&cache)?;
            say(machine.image.root.display())?;
        }
        Action::Boot => {
            host::boot(&cache).await?;
        }
        Action::Run { tests, put, get, user, command } => {
            let kept = host::find_or_boot(&seated(&cache, tests)).await?;
            let code = kept.during(run_one(&kept.client(), put, get, user, command)).await?;
            return Ok(ExitCode::from(code));
        }
        Action::Test(options) => return suite::run(&cache.of(Seat::Tests), &options).await,
        Action::Shell { tests } => {
            let kept = host::find_or_boot(&seated(&cache, tests)).await?;
            let shell = session::Command::new(["/bin/bash", "-l"])?;
            let status = kept.during(shell.terminal(&kept.client())).await?;
            return Ok(ExitCode::from(status.shell_code()));
        }
        Action::Stop { forget } => {
            if !host::stop(&cache, forget).await? {
                say("no KVM host runs")?;
            }
        }
        Action::Clean => host::clean(&cache).await?,
        Action::VmmBinaries => say(vmm_binaries::ensure()?.display())?,
        Action::Keep { tests } => keeper::keep(&seated(&cache, tests)).await?,
    }
    Ok(ExitCode::SUCCESS)
}

/// The cache for the machine that is meant.
fn seated(cache: &Cache, tests: bool) -> Cache {
    cache.of(if tests { Seat::Tests } else { Seat::People })
}

/// Runs a command between sending and fetching files, and returns its exit code.
async fn run_one(
    client: &AgentClient,
    put: Vec<Put>,
    get: Vec<Get>,
    user: Option<String>,
    command: Vec<std::ffi::OsString>,
) -> Result<u8> {
    session::put(client, &put).await?;
    let command = session::Command::new(command)?.user(user.as_deref())?;
    let status = command.run(client).await?;
    for file in &get {
        match session::get(client, file).await {
            // The command failed, so it may well not have made its file.
            Err(error) if status.shell_code() != 0 => note(format_args!("{error:#}")),
            result => result?,
        }
    }
    Ok(status.shell_code())
}

fn say(line: impl std::fmt::Display) -> Result<()> {
    writeln!(std::io::stdout().lock(), "{line}").context("write to standard output")
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let failure = match arguments.action {
        Action::Run { .. } | Action::Shell { .. } => ExitCode::from(TOOL_FAILED),
        _ => ExitCode::FAILURE,
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let result = runtime.context("start the runtime").and_then(|runtime| {
        let result = runtime.block_on(run(arguments.action));
        // A thread may wait for input that never comes.
        runtime.shutdown_background();
        result
    });
    match result {
        Ok(code) => code,
        Err(error) => {
            let _ = writeln!(std::io::stderr().lock(), "kvm-host: {error:#}");
            failure
        }
    }
}
