//! `banger internal launch-daemon`: becomes `bangerd`.
//!
//! Runs in a fresh process with one thread, because uid, groups and capabilities are changed here
//! and each thread has its own. The executable is opened first, as root where the caller is root:
//! the uid it will run as may not be able to reach it. From the drop on no path of the caller is
//! opened. Errors are reported as one JSON line on standard output, as bangerd itself does.

use std::ffi::{CString, OsString};
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use banger_daemon_api::error::{ApiError, ErrorCode};
use clap::Args;
use nix::unistd::{Gid, Uid};
use rustix::fs::{MemfdFlags, Mode, OFlags, SealFlags};
use rustix::thread::CapabilitySet;

use super::binary::{DaemonBinary, build_id};
use super::helper;
use crate::environment::{self, DirectMode};
use crate::error::CliError;

/// Where bangerd finds QEMU, e2fsprogs and the like.
const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
const LANG: &str = "LANG=C.UTF-8";
/// Keeps what an import took from staying with an idle bangerd: glibc would raise the size from
/// which memory is given back at once to 32 MiB after the first large block (mallopt(3),
/// M_MMAP_THRESHOLD).
const ALLOCATOR: &str = "GLIBC_TUNABLES=glibc.malloc.mmap_threshold=1048576";
/// Devices that VMs can use where bangerd may open them.
const DEVICES: [&str; 2] = ["/dev/kvm", "/dev/net/tun"];

/// What the process needs to know to become the daemon.
#[derive(Args, Clone, Debug, PartialEq, Eq)]
pub struct LaunchArgs {
    #[arg(long)]
    pub(super) bangerd: PathBuf,
    #[arg(long)]
    pub(super) state_dir: PathBuf,
    #[arg(long)]
    cache_dir: PathBuf,
    #[arg(long)]
    pub(super) runtime_dir: PathBuf,
    /// Drop to this uid; only root can.
    #[arg(long, requires = "drop_to_gid")]
    drop_to_uid: Option<u32>,
    /// Drop to this gid.
    #[arg(long, requires = "drop_to_uid")]
    drop_to_gid: Option<u32>,
}

impl LaunchArgs {
    /// Says how to start `binary` in `mode`.
    pub fn new(mode: &DirectMode, binary: &DaemonBinary) -> Self {
        Self {
            bangerd: binary.path().to_owned(),
            state_dir: mode.directories.state.clone(),
            cache_dir: mode.directories.cache.clone(),
            runtime_dir: mode.directories.runtime.clone(),
            drop_to_uid: mode.dropped.then_some(mode.uid),
            drop_to_gid: mode.dropped.then_some(mode.gid),
        }
    }

    /// Returns the command line that parses back to this.
    pub fn to_arguments(&self) -> Vec<OsString> {
        let mut arguments: Vec<OsString> = vec!["internal".into(), "launch-daemon".into()];
        for (flag, path) in [
            ("--bangerd", &self.bangerd),
            ("--state-dir", &self.state_dir),
            ("--cache-dir", &self.cache_dir),
            ("--runtime-dir", &self.runtime_dir),
        ] {
            arguments.push(flag.into());
            arguments.push(path.into());
        }
        for (flag, id) in [("--drop-to-uid", self.drop_to_uid), ("--drop-to-gid", self.drop_to_gid)]
        {
            if let Some(id) = id {
                arguments.push(flag.into());
                arguments.push(id.to_string().into());
            }
        }
        arguments
    }
}

/// Becomes the daemon; returns only when that failed, after it was reported on standard output.
pub fn launch(arguments: &LaunchArgs) -> Result<std::convert::Infallible, CliError> {
    let error = match become_daemon(arguments) {
        Ok(never) => match never {},
        Err(error) => error,
    };
    let mut api = ApiError::new(ErrorCode::OperationFailed, error.message.clone());
    api.causes.clone_from(&error.causes);
    api.hint = error.hints.first().cloned();
    let report = serde_json::to_string(&api).unwrap_or_default();
    // Whoever waits for the report is gone when this fails.
    let _ = writeln!(io::stdout().lock(), "{report}");
    Err(error)
}

fn failed<E: std::error::Error + 'static>(what: impl Into<String>) -> impl FnOnce(E) -> CliError {
    let what = what.into();
    move |error| CliError::new(what).because(&error)
}

fn become_daemon(arguments: &LaunchArgs) -> Result<std::convert::Infallible, CliError> {
    let path = arguments.bangerd.display();
    let executable =
        File::open(&arguments.bangerd).map_err(failed(format!("cannot open {path}")))?;
    let metadata = executable.metadata().map_err(failed(format!("cannot look at {path}")))?;
    let build = build_id(&metadata);
    // Own session: the terminal's Ctrl-C and hang-up are not for the daemon.
    rustix::process::setsid().map_err(failed("cannot make a session for bangerd"))?;
    let mut helper_socket = None;
    let executable = match (arguments.drop_to_uid, arguments.drop_to_gid) {
        (Some(uid), Some(gid)) => {
            helper_socket = Some(helper::start(arguments, uid, gid)?);
            let executable = if metadata.mode() & 0o005 == 0o005 {
                OwnedFd::from(executable)
            } else {
                sealed_copy(executable).map_err(failed(format!("cannot copy {path}")))?
            };
            irrevocably_drop_root(Uid::from_raw(uid), Gid::from_raw(gid))?;
            executable
        }
        _ => OwnedFd::from(executable),
    };
    if rustix::process::geteuid().is_root() {
        return Err(CliError::new("bangerd never runs as root"));
    }
    rustix::thread::set_no_new_privs(true).map_err(failed("cannot set no_new_privs"))?;
    rustix::process::umask(Mode::from_raw_mode(0o077));
    std::env::set_current_dir("/").map_err(failed("cannot change to /"))?;
    redirect_stderr(&arguments.runtime_dir)?;
    // Nothing else of the caller's is inherited, such as a pipe that someone waits on.
    close_fds::set_fds_cloexec(3, &[executable.as_raw_fd()]);

    let mut argv = vec![
        OsString::from("bangerd"),
        "--direct".into(),
        "--state-dir".into(),
        arguments.state_dir.clone().into(),
        "--cache-dir".into(),
        arguments.cache_dir.clone().into(),
        "--runtime-dir".into(),
        arguments.runtime_dir.clone().into(),
        "--build-id".into(),
        build.into(),
    ];
    if let Some(socket) = helper_socket {
        argv.extend([OsString::from("--helper-socket"), socket.into()]);
        argv.extend([OsString::from("--jail-dir"), helper::JAILS.into()]);
    }
    let mut environment =
        vec![OsString::from(PATH), OsString::from(LANG), OsString::from(ALLOCATOR)];
    if let Some(level) = std::env::var_os(environment::LOG_LEVEL) {
        let mut entry = OsString::from(environment::LOG_LEVEL);
        entry.push("=");
        entry.push(level);
        environment.push(entry);
    }
    let to_c = |strings: &[OsString]| -> Result<Vec<CString>, CliError> {
        strings
            .iter()
            .map(|text| CString::new(text.clone().into_vec()))
            .collect::<Result<_, _>>()
            .map_err(failed("an argument of bangerd holds a NUL byte"))
    };
    nix::unistd::fexecve(&executable, &to_c(&argv)?, &to_c(&environment)?)
        .map_err(failed(format!("cannot execute {path}")))
}

/// Copies an executable that the new uid may not read into memory, sealed against change.
fn sealed_copy(mut executable: File) -> io::Result<OwnedFd> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    // A host may make memory files unexecutable by default (vm.memfd_noexec, Linux 6.3); an older
    // kernel does not know the flag.
    let copy = rustix::fs::memfd_create("bangerd", flags | MemfdFlags::EXEC)
        .or_else(|_| rustix::fs::memfd_create("bangerd", flags))?;
    let mut copy = File::from(copy);
    io::copy(&mut executable, &mut copy)?;
    copy.set_permissions(std::fs::Permissions::from_mode(0o755))?;
    let seals = SealFlags::WRITE | SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL;
    rustix::fs::fcntl_add_seals(&copy, seals)?;
    Ok(copy.into())
}

/// Gives up root for good: groups, capabilities, all three uids and gids.
fn irrevocably_drop_root(uid: Uid, gid: Gid) -> Result<(), CliError> {
    if uid.is_root() || gid.as_raw() == 0 {
        return Err(CliError::new("bangerd never runs as root"));
    }
    for capability in CapabilitySet::all().iter() {
        // Needs CAP_SETPCAP, and the kernel may not know the newest: the uid is dropped anyway, and
        // no_new_privs keeps it so.
        let _ = rustix::thread::remove_capability_from_bounding_set(capability);
    }
    let groups: Vec<Gid> = device_groups(&DEVICES.map(Path::new)).map(Gid::from_raw).collect();
    nix::unistd::setgroups(&groups).map_err(failed("cannot set bangerd's groups"))?;
    nix::unistd::setresgid(gid, gid, gid).map_err(failed(format!("cannot become gid {gid}")))?;
    nix::unistd::setresuid(uid, uid, uid).map_err(failed(format!("cannot become uid {uid}")))?;
    if nix::unistd::setuid(Uid::from_raw(0)).is_ok() {
        return Err(CliError::new("root could be regained after it was given up"));
    }
    Ok(())
}

/// Returns the groups, root's excepted, through which a device can be read and written.
fn device_groups<'a>(devices: &'a [&'a Path]) -> impl Iterator<Item = u32> + 'a {
    devices
        .iter()
        .filter_map(|device| std::fs::metadata(device).ok())
        .filter(|metadata| metadata.mode() & 0o060 == 0o060 && metadata.gid() != 0)
        .map(|metadata| metadata.gid())
}

/// Points standard error at a file in the runtime directory, for a panic's message.
fn redirect_stderr(runtime: &Path) -> Result<(), CliError> {
    let path = runtime.join(super::STDERR_NAME);
    let failed = |error: rustix::io::Errno| {
        CliError::new(format!("cannot write {}", path.display())).because(&error)
    };
    let flags =
        OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = rustix::fs::open(path.as_os_str().as_bytes(), flags, Mode::from_raw_mode(0o600))
        .map_err(failed)?;
    rustix::stdio::dup2_stderr(file.as_fd()).map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;
    use std::io::Read;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        launch: LaunchArgs,
    }

    #[test]
    fn arguments_parse_back() {
        let launch = LaunchArgs {
            bangerd: "/b/bangerd".into(),
            state_dir: "/s".into(),
            cache_dir: "/c".into(),
            runtime_dir: OsString::from_vec(b"/run/\xff".to_vec()).into(),
            drop_to_uid: Some(60907),
            drop_to_gid: Some(60907),
        };
        let arguments = launch.to_arguments();
        assert_eq!(&arguments[..2], ["internal", "launch-daemon"]);
        assert_eq!(Line::parse_from(&arguments[1..]).launch, launch);
    }

    #[test]
    fn a_sealed_copy_cannot_be_changed() {
        let mut original = tempfile::tempfile().unwrap();
        original.write_all(b"program").unwrap();
        io::Seek::rewind(&mut original).unwrap();
        let mut copy = File::from(sealed_copy(original).unwrap());
        assert!(copy.write_all(b"x").is_err());
        io::Seek::rewind(&mut copy).unwrap();
        let mut text = String::new();
        copy.read_to_string(&mut text).unwrap();
        assert_eq!(text, "program");
    }

    #[test]
    fn groups_are_kept_only_for_devices_that_they_open() {
        let directory = tempfile::tempdir().unwrap();
        let device = directory.path().join("kvm");
        std::fs::write(&device, "").unwrap();
        std::fs::set_permissions(&device, std::fs::Permissions::from_mode(0o600)).unwrap();
        let missing = directory.path().join("none");
        let devices = [device.as_path(), missing.as_path()];
        assert_eq!(device_groups(&devices).count(), 0);
        if rustix::process::geteuid().is_root() {
            std::os::unix::fs::chown(&device, None, Some(104)).unwrap();
            std::fs::set_permissions(&device, std::fs::Permissions::from_mode(0o660)).unwrap();
            assert_eq!(device_groups(&devices).collect::<Vec<_>>(), [104]);
        }
    }
}
