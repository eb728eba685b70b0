//! The root helper of direct mode: started by root beside `bangerd`, and ended with it.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use super::launch::LaunchArgs;
use crate::bridges;
use crate::error::CliError;

const NAME: &str = "bangerd-root";
/// Where an installation puts it.
const INSTALLED: &str = "/usr/local/lib/banger/bangerd-root";
/// Below it each helper has a directory for its socket and its records, named after the runtime
/// directory's device and inode.
const RUNTIME: &str = "/run/banger-root";
const SOCKET: &str = "bangerd-root.sock";
/// The jails of all direct daemons; ids of VMs are unique.
pub const JAILS: &str = "/var/lib/banger-root/jail-direct";
/// What the helpers of direct mode did, one line of JSON a call.
const LOG: &str = "/var/lib/banger-root/direct.log";
/// The log's size at which it becomes the old one.
const LONGEST_LOG: u64 = 4 << 20;
/// How long the helper of a daemon that has ended may take to end.
const ENDING_DEADLINE: Duration = Duration::from_secs(5);
const ATTEMPTS: u32 = 3;
/// Most bytes of the line by which it reports.
const REPORT_LIMIT: u64 = 4 << 10;

fn failed(what: &str, path: &Path) -> impl FnOnce(io::Error) -> CliError {
    let text = format!("cannot {what} {}", path.display());
    move |error| CliError::new(text).because(&error)
}

/// Starts it for an owner and waits until it is ready; returns its socket.
pub fn start(arguments: &LaunchArgs, uid: u32, gid: u32) -> Result<PathBuf, CliError> {
    let program = find(&arguments.bangerd)?;
    let runtime = &arguments.runtime_dir;
    let socket = own_directory(runtime).map_err(failed("look at", runtime))?.join(SOCKET);
    // One that is ending may take the directory away in which the next one begins.
    for _ in 0..ATTEMPTS {
        wait_until_free(&socket);
        if spawn(&program, arguments, &socket, uid, gid)? {
            return Ok(socket);
        }
    }
    Err(CliError::new("the root helper did not start").hint(format!("its log is {LOG}")))
}

/// The directory of the helper of the daemon with this runtime directory.
fn own_directory(runtime: &Path) -> io::Result<PathBuf> {
    let place = fs::symlink_metadata(runtime)?;
    Ok(Path::new(RUNTIME).join(format!("direct-{:x}-{:x}", place.dev(), place.ino())))
}

/// Ends the bridge of a daemon that has ended, if no machine is on it.
pub fn end_bridge(runtime: &Path) {
    if let Ok(own) = own_directory(runtime) {
        wait_until_free(&own.join(SOCKET));
        let _ = bridges::end_unused(&own);
    }
}

/// Whether the helper of the daemon with this runtime directory has ended although the daemon runs: it
/// was killed.
pub fn has_ended(runtime: &Path) -> bool {
    let Ok(own) = own_directory(runtime) else { return false };
    let gone = |error: io::Error| {
        matches!(error.kind(), io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound)
    };
    UnixStream::connect(own.join(SOCKET)).is_err_and(gone)
}

/// Waits for the helper of a bangerd that has just ended: it ends a moment later.
fn wait_until_free(socket: &Path) {
    let deadline = Instant::now() + ENDING_DEADLINE;
    while UnixStream::connect(socket).is_ok() && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Starts it once; whether it is ready.
fn spawn(
    program: &Path,
    arguments: &LaunchArgs,
    socket: &Path,
    uid: u32,
    gid: u32,
) -> Result<bool, CliError> {
    let log = open_log().map_err(failed("write", Path::new(LOG)))?;
    let mut child = Command::new(program)
        .arg("--direct")
        .arg("--socket")
        .arg(socket)
        .args(["--owner-uid", &uid.to_string(), "--owner-gid", &gid.to_string()])
        .arg("--state-dir")
        .arg(&arguments.state_dir)
        .arg("--runtime-dir")
        .arg(&arguments.runtime_dir)
        .args(["--jail-dir", JAILS])
        .env_clear()
        .env("LC_ALL", "C")
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(log)
        .spawn()
        .map_err(failed("start", program))?;
    let mut report = String::new();
    if let Some(stdout) = child.stdout.take() {
        // It says a line or ends: nothing that it waits for can keep it from both.
        let _ = BufReader::new(stdout.take(REPORT_LIMIT)).read_line(&mut report);
    }
    let is_ready = report.trim() == "ready";
    if !is_ready {
        let _ = child.kill();
        let _ = child.wait();
    }
    Ok(is_ready)
}

/// Finds the program beside bangerd, beside banger, or where an installation puts it.
fn find(bangerd: &Path) -> Result<PathBuf, CliError> {
    let this = std::env::current_exe().unwrap_or_default();
    let beside = [bangerd, &this].into_iter().filter_map(Path::parent).map(|at| at.join(NAME));
    let places: Vec<PathBuf> = beside.chain([PathBuf::from(INSTALLED)]).collect();
    places.iter().find(|path| path.is_file()).cloned().ok_or_else(|| {
        CliError::new(format!("there is no {NAME} beside {}", bangerd.display()))
            .hint("build it: cargo build --release -p banger-helper")
    })
}

/// Opens the log, moved aside first where it is long.
fn open_log() -> io::Result<File> {
    let path = Path::new(LOG);
    let parent = path.parent().unwrap_or(Path::new("/"));
    match fs::DirBuilder::new().mode(0o711).create(parent) {
        Ok(()) => fs::set_permissions(parent, fs::Permissions::from_mode(0o711))?,
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        Err(error) => return Err(error),
    }
    if fs::metadata(path).is_ok_and(|metadata| metadata.len() > LONGEST_LOG) {
        fs::rename(path, path.with_extension("log.1"))?;
    }
    let no_follow = rustix::fs::OFlags::NOFOLLOW.bits().cast_signed();
    File::options().append(true).create(true).mode(0o600).custom_flags(no_follow).open(path)
}
