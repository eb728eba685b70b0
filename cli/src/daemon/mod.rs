//! Direct mode's daemon: find it, start it, replace it by the build beside us.
//!
//! ```text
//!   ping ── answers, our build ───────────────────────────────► use it
//!    │  └── answers, another build, or its helper is dead
//!    │                            ├ busy ──► use it, say so
//!    │                            └ idle ──► shut it down ───┐
//!    └── nobody there ───────────────────────────────────────┴► start ours
//! ```
//! A helper serves the daemon beside which it was started, so both are started again; the new daemon
//! takes back what the old one could not. Starting and replacing happen under a lock file in the runtime directory, so that two commands
//! at once start one daemon; the second finds it when it gets the lock.

mod binary;
mod directories;
mod helper;
mod launch;

use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use banger_daemon_api::API_VERSION;
use banger_daemon_api::daemon::Ping;
use banger_daemon_api::error::{ApiError, ErrorCode};
use banger_daemon_api::routes;
use rustix::fs::{Mode, OFlags};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
use tokio::process::Command;

pub use binary::DaemonBinary;
pub use helper::end_bridge;
pub use launch::{LaunchArgs, launch};

use crate::client::{Client, ClientError};
use crate::environment::{self, DirectMode, Site};
use crate::error::CliError;
use crate::ui::Ui;

/// The daemon's log in its state directory.
const LOG_NAME: &str = "bangerd.log";
/// What the daemon writes to standard error (a panic's message), in its runtime directory.
const STDERR_NAME: &str = "bangerd.stderr";
const LOCK_NAME: &str = "start.lock";
/// How long a new daemon may take until it is ready; it adopts the running VMs before.
const READY_DEADLINE: Duration = Duration::from_secs(120);
/// How long another command may take to start a daemon.
const LOCK_DEADLINE: Duration = Duration::from_secs(150);
/// How long a daemon that answers no more may take to disappear.
const DYING_DEADLINE: Duration = Duration::from_secs(5);
/// How long a daemon may take to end.
const SHUTDOWN_DEADLINE: Duration = Duration::from_secs(60);
/// Most bytes of the line by which a daemon reports.
const REPORT_LIMIT: u64 = 64 << 10;

/// A daemon that answers, and where it lives.
#[derive(Debug)]
pub struct Daemon {
    /// Requests go here.
    pub client: Client,
    /// Its answer to our ping.
    pub ping: Ping,
}

/// Returns the daemon's log file.
pub fn log_path(mode: &DirectMode) -> PathBuf {
    mode.directories.state.join(LOG_NAME)
}

/// Makes a client without asking whether the daemon runs.
pub fn client(site: &Site) -> Client {
    match site {
        Site::Direct(mode) => Client::new(&mode.directories.runtime, mode.uid, log_path(mode)),
        Site::System { owner } => {
            let log = Path::new(environment::SYSTEM_STATE).join(LOG_NAME);
            Client::new(Path::new(environment::SYSTEM_RUNTIME), *owner, log)
        }
    }
}

/// Returns the running daemon, or `None` where there is none; never starts one.
pub async fn running() -> Result<Option<Daemon>, CliError> {
    let client = client(&environment::site()?);
    match client.ping().await {
        Ok(ping) => Ok(Some(Daemon { client, ping })),
        Err(ClientError::NotRunning { .. }) => Ok(None),
        Err(error) => Err(client.explain(error)),
    }
}

/// Returns the daemon, started or replaced where that is needed.
pub async fn connect(ui: &Ui) -> Result<Client, CliError> {
    let site = environment::site()?;
    let client = client(&site);
    let mode = match site {
        Site::Direct(mode) => mode,
        Site::System { .. } => return service(ui, client).await,
    };
    let binary = DaemonBinary::find();
    if let Found::Use(ping) = look(&client, &mode, binary.as_ref().ok()).await? {
        warn_of_helper(ui, &mode, &ping);
        return use_daemon(ui, client, &ping, binary.as_ref().ok());
    }
    let binary = binary?;
    directories::prepare(&mode)?;
    let _lock = lock(&mode.directories.runtime).await?;
    match look(&client, &mode, Some(&binary)).await? {
        Found::Use(ping) => {
            warn_of_helper(ui, &mode, &ping);
            return use_daemon(ui, client, &ping, Some(&binary));
        }
        Found::Replace(ping) => {
            ui.detail(format_args!("replacing bangerd {} (pid {})", ping.version, ping.pid));
            shut_down(&client).await?;
        }
        Found::Nobody => {}
    }
    let deadline = Instant::now() + DYING_DEADLINE;
    loop {
        match start(ui, &mode, &binary).await {
            // One that was killed lets go of the state a moment after its socket.
            Err(error) if error.is_code(ErrorCode::InUse) && Instant::now() < deadline => {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            started => break started?,
        }
    }
    let ping = client.ping().await.map_err(|error| client.explain(error))?;
    use_daemon(ui, client, &ping, Some(&binary))
}

/// Uses the installed service, which only systemd starts.
async fn service(ui: &Ui, client: Client) -> Result<Client, CliError> {
    match client.ping().await {
        Ok(ping) => use_daemon(ui, client, &ping, None),
        Err(ClientError::NotRunning { socket, .. }) => {
            let socket = socket.display();
            Err(CliError::new(format!("the service bangerd does not answer at {socket}"))
                .hint("sudo systemctl restart bangerd, or see: systemctl status bangerd")
                .hint("--direct uses a bangerd of your own"))
        }
        Err(error) => Err(client.explain(error)),
    }
}

fn use_daemon(
    ui: &Ui,
    client: Client,
    ping: &Ping,
    binary: Option<&DaemonBinary>,
) -> Result<Client, CliError> {
    if ping.api_version != API_VERSION {
        return Err(CliError::new(format!(
            "bangerd {} speaks API version {}, this banger speaks {API_VERSION}",
            ping.version, ping.api_version
        ))
        .hint("it is busy; run the command again when its operations and commands have ended"));
    }
    if binary.is_some_and(|binary| !binary.is_build(&ping.build_id)) {
        ui.warning(format_args!(
            "bangerd (pid {}) is of another build and busy; it is used as it is",
            ping.pid
        ));
    }
    ui.detail(format_args!("bangerd: pid {}, {}", ping.pid, client.socket().display()));
    Ok(client)
}

/// What is at the socket.
enum Found {
    Use(Ping),
    Replace(Ping),
    Nobody,
}

/// Whether somebody would lose work if the daemon ended: an operation, a command, a lease.
fn is_busy(ping: &Ping) -> bool {
    ping.active_operations > 0 || ping.open_sessions > 0
}

/// Whether the daemon has lost the root helper that it was started with.
fn lacks_helper(mode: &DirectMode) -> bool {
    mode.dropped && helper::has_ended(&mode.directories.runtime)
}

/// Says that a daemon which is too busy to be replaced cannot do root's work.
fn warn_of_helper(ui: &Ui, mode: &DirectMode, ping: &Ping) {
    if lacks_helper(mode) {
        ui.warning(format_args!(
            "the root helper of bangerd (pid {}) has ended: it is started again by the first command \
             that finds nothing under way, or after `banger daemon stop`; machines keep running",
            ping.pid
        ));
    }
}

async fn look(
    client: &Client,
    mode: &DirectMode,
    binary: Option<&DaemonBinary>,
) -> Result<Found, CliError> {
    let mut answer = client.ping().await;
    let deadline = Instant::now() + DYING_DEADLINE;
    // A daemon that is being killed may still take the connection; soon nobody does.
    while matches!(answer, Err(ClientError::Lost { .. })) && Instant::now() < deadline {
        tokio::time::sleep(Duration::from_millis(10)).await;
        answer = client.ping().await;
    }
    match answer {
        Ok(ping) => {
            let same = binary.is_none_or(|binary| binary.is_build(&ping.build_id));
            let is_whole = same && !lacks_helper(mode);
            Ok(if is_whole || is_busy(&ping) { Found::Use(ping) } else { Found::Replace(ping) })
        }
        Err(ClientError::NotRunning { .. }) => Ok(Found::Nobody),
        Err(error) => Err(client.explain(error)),
    }
}

/// Ends the daemon and waits until its process is gone; VMs keep running. Returns whether one ran.
pub async fn shut_down(client: &Client) -> Result<bool, CliError> {
    let stream = match client.connect().await {
        Ok(stream) => stream,
        Err(ClientError::NotRunning { .. }) => return Ok(false),
        Err(error) => return Err(client.explain(error)),
    };
    let pid = stream.peer_cred().ok().and_then(|peer| peer.pid());
    // Held before the request, so that a reused pid cannot be mistaken for the daemon.
    let process = pid.and_then(rustix::process::Pid::from_raw).and_then(|pid| {
        rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()).ok()
    });
    drop(stream);
    match client.post::<serde_json::Value>(routes::SHUTDOWN, &serde_json::json!({})).await {
        // It may be gone before its answer is out.
        Ok(_) | Err(ClientError::Lost { .. } | ClientError::NotRunning { .. }) => {}
        Err(error) => return Err(client.explain(error).context("bangerd refuses to end")),
    }
    let deadline = Instant::now() + SHUTDOWN_DEADLINE;
    loop {
        let gone = match &process {
            Some(process) => has_exited(process),
            None => matches!(client.connect().await, Err(ClientError::NotRunning { .. })),
        };
        if gone {
            return Ok(true);
        }
        if Instant::now() > deadline {
            let pid = pid.map_or_else(|| "unknown".to_owned(), |pid| pid.to_string());
            return Err(CliError::new(format!("bangerd (pid {pid}) does not end"))
                .hint(format!("kill {pid}; VMs keep running")));
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// A pidfd is readable once its process has ended (pidfd_open(2)).
fn has_exited(process: &std::os::fd::OwnedFd) -> bool {
    let mut fds = [rustix::event::PollFd::new(process, rustix::event::PollFlags::IN)];
    let now = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };
    rustix::event::poll(&mut fds, Some(&now)).is_ok_and(|ready| ready > 0)
}

/// Takes the start lock; it is let go when the file is dropped.
async fn lock(runtime: &Path) -> Result<File, CliError> {
    let path = runtime.join(LOCK_NAME);
    let failed = |error: &dyn std::error::Error| {
        let text = error.to_string();
        CliError::new(format!("cannot lock {}", path.display()))
            .because(&std::io::Error::other(text))
            .hint("run the command again when no other banger starts a bangerd")
    };
    let flags =
        OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let file = rustix::fs::open(&path, flags, Mode::from_raw_mode(0o600))
        .map_err(|error| failed(&error))?;
    let file = File::from(file);
    let deadline = Instant::now() + LOCK_DEADLINE;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(std::fs::TryLockError::WouldBlock) if Instant::now() < deadline => {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            Err(std::fs::TryLockError::WouldBlock) => {
                return Err(failed(&std::io::Error::other("another banger holds it for too long")));
            }
            Err(std::fs::TryLockError::Error(error)) => return Err(failed(&error)),
        }
    }
}

/// Starts the daemon through a fresh process, which drops its privileges and becomes it.
async fn start(ui: &Ui, mode: &DirectMode, binary: &DaemonBinary) -> Result<(), CliError> {
    ui.detail(format_args!("starting {}", binary.path().display()));
    let mut child = Command::new("/proc/self/exe")
        .args(LaunchArgs::new(mode, binary).to_arguments())
        .stdin(std::process::Stdio::null())
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::null())
        .spawn()
        .map_err(|error| CliError::new("cannot start bangerd").because(&error))?;
    let mut report = String::new();
    if let Some(stdout) = child.stdout.take() {
        let mut reader = BufReader::new(stdout.take(REPORT_LIMIT));
        match tokio::time::timeout(READY_DEADLINE, reader.read_line(&mut report)).await {
            Ok(Ok(_)) => {}
            Ok(Err(error)) => {
                return Err(not_ready(mode, &format!("its report cannot be read: {error}")));
            }
            Err(_) => {
                return Err(not_ready(mode, "it is not ready after two minutes"));
            }
        }
    }
    match report.trim() {
        "ready" => Ok(()),
        "" => Err(not_ready(mode, "it ended before it was ready")),
        line => match serde_json::from_str::<ApiError>(line) {
            Ok(error) => Err(CliError::from(error).context("bangerd did not start")),
            Err(_) => Err(not_ready(mode, "it reported what banger does not understand")),
        },
    }
}

fn not_ready(mode: &DirectMode, why: &str) -> CliError {
    let mut error = CliError::new("bangerd did not start");
    error.causes.push(why.to_owned());
    if let Some(last_words) = last_words(&mode.directories.runtime) {
        error.causes.push(last_words);
    }
    error.hint(format!("its log is {}", log_path(mode).display()))
}

/// Returns the end of what the daemon wrote to its standard error.
fn last_words(runtime: &Path) -> Option<String> {
    const SHOWN: usize = 500;
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let file = rustix::fs::open(runtime.join(STDERR_NAME), flags, Mode::empty()).ok()?;
    let mut text = Vec::new();
    std::io::Read::read_to_end(&mut std::io::Read::take(File::from(file), REPORT_LIMIT), &mut text)
        .ok()?;
    let text = String::from_utf8_lossy(&text);
    let tail: Vec<char> = text.trim().chars().rev().take(SHOWN).collect();
    let tail: String = tail.into_iter().rev().map(|c| if c == '\n' { ' ' } else { c }).collect();
    (!tail.is_empty()).then(|| banger_agent_api::printable_excerpt(&tail, SHOWN))
}
