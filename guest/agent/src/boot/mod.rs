//! PID 1 of the initrd: from nothing to the image's init, or to the agent as PID 1.
//!
//! Whatever fails before the hand-over is said on the console, and the machine powers off: a VM
//! that hangs without a word is the worst outcome.

mod disks;
mod files;
mod grow;
mod handover;
mod modules;
mod network;

pub(crate) use files::write_name;

use std::convert::Infallible;
use std::process::{ExitCode, Stdio};

use banger_agent_api::{BootConfig, BootConfigError};
use rustix::mount::MountFlags;

use crate::role::Role;
use crate::{console, power};

/// Why the machine cannot boot.
#[derive(Debug, thiserror::Error)]
enum BootError {
    #[error("mount {what} on {target}")]
    Mount {
        what: String,
        target: String,
        #[source]
        source: rustix::io::Errno,
    },
    #[error("{operation} {object}")]
    System {
        operation: &'static str,
        object: String,
        #[source]
        source: std::io::Error,
    },
    #[error("load module {name}")]
    Module {
        name: String,
        #[source]
        source: std::io::Error,
    },
    #[error("kernel command line")]
    Config(#[from] BootConfigError),
    #[error("no disk with file system {uuid} appeared within {seconds} s; found: {found}")]
    NoDisk { uuid: uuid::Uuid, seconds: u64, found: String },
    #[error("the image has no program {0}")]
    NoInit(String),
}

/// Makes the mapping of an I/O error that names the operation and its object.
fn system_error<'a, E: Into<std::io::Error>>(
    operation: &'static str,
    object: impl std::fmt::Display + 'a,
) -> impl FnOnce(E) -> BootError + 'a {
    move |source| BootError::System { operation, object: object.to_string(), source: source.into() }
}

/// Boots. Returns only where the agent itself stays PID 1 and its duty ended.
pub(crate) fn run() -> ExitCode {
    std::panic::set_hook(Box::new(|panic| {
        console::error(&format!("the agent's boot failed: {panic}"));
        power::power_off();
    }));
    match boot() {
        Ok(never) => match never {},
        Err(error) => {
            console::error(&format!("cannot boot: {}", console::chain(&error)));
            power::power_off()
        }
    }
}

fn boot() -> Result<Infallible, BootError> {
    mount("proc", "/proc", "proc", NO_PROGRAMS, "")?;
    mount("sysfs", "/sys", "sysfs", NO_PROGRAMS, "")?;
    mount("devtmpfs", "/dev", "devtmpfs", MountFlags::NOSUID, "mode=0755")?;
    let config = BootConfig::parse(&read("/proc/cmdline")?)?;
    network::bring_up_loopback()?;
    let order = modules::Order::read()?;
    order.load_early()?;
    let (network_state, report) =
        std::io::pipe().map_err(system_error("make a pipe for", "the network's state"))?;
    let mut late = Role::Late.command();
    // Everything it needs is passed on: /proc, /sys and /dev move away while it runs.
    late.arg(config.to_kernel_args()?).stdout(Stdio::from(report));
    if let Ok(log) = std::fs::OpenOptions::new().write(true).open("/dev/kmsg") {
        late.stderr(Stdio::from(log));
    }
    // It runs beside everything below, on the initrd's own files, and ends by itself.
    late.spawn().map_err(system_error("start", "the late loader"))?;
    drop(late);
    let disks = disks::wait_for(&config)?;
    handover::run(&config, &disks, network_state.into())
}

/// The late loader: modules that nothing waited for, then the network, reported as one byte on
/// standard output (`u` up, `n` none, `f` failed).
pub(crate) fn run_late() -> ExitCode {
    use std::io::Write;
    if let Err(error) = modules::Order::read().and_then(|order| order.load_late()) {
        console::error(&console::chain(&error));
    }
    let arguments = std::env::args_os().nth(2).unwrap_or_default();
    let result = BootConfig::parse(&arguments.to_string_lossy()).map_err(BootError::from).and_then(
        |config| config.network.as_ref().map_or(Ok(()), network::configure).map(|()| config),
    );
    let state = match &result {
        Ok(config) if config.network.is_some() => b"u",
        Ok(_) => b"n",
        Err(error) => {
            console::error(&console::chain(error));
            b"f"
        }
    };
    let mut output = std::io::stdout();
    let _ = output.write_all(state).and_then(|()| output.flush());
    ExitCode::SUCCESS
}

const NO_PROGRAMS: MountFlags =
    MountFlags::NOSUID.union(MountFlags::NODEV).union(MountFlags::NOEXEC);

/// Mounts, making the mount point where it is missing; mounted already is success.
fn mount(
    source: &str,
    target: &str,
    kind: &str,
    flags: MountFlags,
    data: &str,
) -> Result<(), BootError> {
    std::fs::create_dir_all(target).map_err(system_error("make directory", target))?;
    let data = std::ffi::CString::new(data).unwrap_or_default();
    match rustix::mount::mount(source, target, kind, flags, Some(data.as_c_str())) {
        Ok(()) | Err(rustix::io::Errno::BUSY) => Ok(()),
        Err(source_error) => Err(BootError::Mount {
            what: format!("{source} ({kind})"),
            target: target.to_owned(),
            source: source_error,
        }),
    }
}

fn read(path: &str) -> Result<String, BootError> {
    std::fs::read_to_string(path).map_err(system_error("read", path))
}
