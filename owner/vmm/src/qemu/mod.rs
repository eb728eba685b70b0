//! The QEMU driver: starts, finds and ends `qemu-system-x86_64` processes.
//!
//! How a launch goes, and why it needs no waiting loop and no unsafe code:
//!
//! ```text
//! bind qmp.sock ──► spawn QEMU, which inherits the listening socket as descriptor 0
//!   hold it by pidfd, note its start time       (the child is not reaped yet: the pid is its own)
//!   connect to qmp.sock at once                 (the kernel queues us until QEMU accepts)
//!   greeting ──► its other sockets exist: connect console and agent port
//!   ... the caller writes the identity down, then `resume` sends `cont`
//! ```
//!
//! Until the end of that list everything is undone on failure and on cancellation. Afterwards QEMU
//! runs on without us: it has no controlling terminal's process group, no inherited descriptors
//! beyond the three standard ones, nothing that blocks when no daemon is connected.

mod command_line;
mod console;
mod files;
mod host_clock;
mod last_words;
mod orphans;
mod process;
mod qmp;
mod version;

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;

use async_trait::async_trait;
use banger_engine::seams::{
    Acceleration, LaunchPlan, Nic, RootDisk, Vmm, VmmError, VmmIdentity, VmmKind, VmmProcess,
};
use rustix::process::Signal;
use tokio::sync::watch;

use self::command_line::HostFacts;
use self::files::RuntimeFiles;
use self::last_words::LastWords;
use self::process::QemuProcess;
use crate::held::{self, HeldProcess};
use crate::known_version::KnownVersion;
use crate::probe::{self, AccelerationChoice};
use crate::silent;

pub use self::version::QemuVersion;

/// Where QEMU may be; `$PATH` is never searched, because it is the user's word and not the host's.
const DIRECTORIES: [&str; 2] = ["/usr/bin", "/usr/local/bin"];
const PROGRAM: &str = "qemu-system-x86_64";

/// The QEMU driver.
#[derive(Debug)]
pub struct QemuVmm {
    choice: AccelerationChoice,
    version: KnownVersion<QemuVersion>,
}

impl QemuVmm {
    /// Makes a driver that chooses between KVM and TCG as `choice` says.
    #[must_use]
    pub fn new(choice: AccelerationChoice) -> Self {
        Self { choice, version: KnownVersion::new(QemuVersion::parse) }
    }

    fn acceleration(&self) -> Result<Acceleration, VmmError> {
        let report = probe::host_report(self.choice);
        match self.choice {
            AccelerationChoice::Kvm if report.chosen != Acceleration::Kvm => {
                Err(VmmError::Unavailable {
                    what: "KVM".to_owned(),
                    why: report.reason,
                    hint: "leave the choice to banger: unset BANGER_ACCEL".to_owned(),
                })
            }
            _ => Ok(report.chosen),
        }
    }
}

/// Returns where QEMU may be.
fn programs() -> impl Iterator<Item = PathBuf> {
    DIRECTORIES.iter().map(|directory| Path::new(directory).join(PROGRAM))
}

/// Finds QEMU in the fixed directories.
pub fn find_program() -> Result<PathBuf, VmmError> {
    programs().find(|path| path.is_file()).ok_or_else(|| VmmError::Unavailable {
        what: PROGRAM.to_owned(),
        why: format!("it is in none of {}", DIRECTORIES.join(", ")),
        hint: "apt-get install qemu-system-x86".to_owned(),
    })
}

#[async_trait]
impl Vmm for QemuVmm {
    fn kind(&self) -> VmmKind {
        VmmKind::Qemu
    }

    async fn probe(&self) -> Result<Acceleration, VmmError> {
        find_program()?;
        self.acceleration()
    }

    fn overhead(&self, acceleration: Acceleration) -> u64 {
        match acceleration {
            Acceleration::Kvm => 64 << 20,
            // Its cache of translated code may grow to 256 MiB.
            Acceleration::Tcg => 320 << 20,
        }
    }

    fn root_disks(&self) -> Vec<Arc<dyn RootDisk>> {
        crate::disk::for_qemu()
    }

    async fn launch(&self, plan: LaunchPlan) -> Result<Arc<dyn VmmProcess>, VmmError> {
        let program = find_program()?;
        let acceleration = self.acceleration()?;
        let files = RuntimeFiles::below(&plan.runtime_dir);
        files.check_directory(&plan.runtime_dir)?;
        let host = HostFacts {
            acceleration,
            // Known to matter only to the translator.
            version: match acceleration {
                Acceleration::Tcg => self.version.of(&program).await,
                Acceleration::Kvm => None,
            },
            tsc_khz: host_clock::tsc_khz().map_err(io_error("reading /proc/cpuinfo"))?,
            block_devices: block_devices(&plan)?,
        };
        let arguments = command_line::arguments(&plan, &files, &host)?;
        let host_boot_id = held::host_boot_id().map_err(io_error("reading the host's boot id"))?;

        // Whoever makes this socket owns the directory: another VMM's files are not undone below.
        let listener = listen(&files.monitor)?;
        let mut undo = Undo { files: Some(files.clone()), held: None };
        let stderr = last_words::make_fifo(&files)
            .map_err(io_error(&format!("making {}", files.stderr.display())))?;
        let words = LastWords::follow(&files)
            .map_err(io_error(&format!("reading {}", files.stderr.display())))?;
        let mut command = tokio::process::Command::new(&program);
        command
            .args(arguments)
            .env_clear()
            .current_dir("/")
            // A group of its own: signals typed at the terminal of a daemon that has one do not
            // reach it. (A session of its own would need code between fork and exec.)
            .process_group(0)
            .stdin(OwnedFd::from(listener))
            .stdout(tap_or_null(plan.nic))
            .stderr(stderr)
            .kill_on_drop(false);
        let mut child =
            command.spawn().map_err(io_error(&format!("starting {}", program.display())))?;
        // Our copies of QEMU's descriptors go: only then does its end close the monitor.
        drop(command);
        let held = hold(&child);
        if held.is_err()
            && let Err(error) = child.start_kill()
        {
            tracing::error!(%error, "a QEMU that cannot be held was not killed");
        }
        let exit = reap(child);
        let (pid, held) = held?;
        undo.held = Some(Arc::clone(&held));

        let identity = VmmIdentity {
            kind: VmmKind::Qemu,
            acceleration,
            pid,
            start_time: held.start_time(),
            host_boot_id,
        };
        let connected = QemuProcess::connect(
            identity,
            Arc::clone(&held),
            &files,
            &plan.console_log,
            words,
            Some(exit),
        );
        match connected.await {
            Ok(process) => {
                undo.forget();
                tracing::debug!(pid, version = %process.version(), ?acceleration, "QEMU started");
                Ok(Arc::new(process))
            }
            Err(error) => {
                // The cause is what the caller needs; a QEMU that will not die is in the log.
                if let Err(undo_error) = held::kill(&held, pid, VmmKind::Qemu).await {
                    tracing::error!(pid, error = %undo_error, "a failed launch was not undone");
                }
                drop(undo);
                Err(error)
            }
        }
    }

    async fn adopt(
        &self,
        identity: &VmmIdentity,
        runtime_dir: &Path,
        console_log: &Path,
    ) -> Result<Option<Arc<dyn VmmProcess>>, VmmError> {
        let Some(held) = held::hold_named(identity, VmmKind::Qemu)? else {
            return Ok(None);
        };
        let files = RuntimeFiles::below(runtime_dir);
        let words = LastWords::follow(&files)
            .map_err(io_error(&format!("reading {}", files.stderr.display())))?;
        let held = Arc::new(held);
        let connected = QemuProcess::connect(
            identity.clone(),
            Arc::clone(&held),
            &files,
            console_log,
            words,
            None,
        );
        match connected.await {
            Ok(process) => Ok(Some(Arc::new(process))),
            Err(_) if held.has_ended() => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn hold(&self, identity: &VmmIdentity) -> Result<Option<Arc<dyn VmmProcess>>, VmmError> {
        silent::hold(identity, VmmKind::Qemu)
    }

    async fn end(&self, identity: &VmmIdentity) -> Result<bool, VmmError> {
        match held::hold_named(identity, VmmKind::Qemu)? {
            Some(held) => held::kill(&held, identity.pid, VmmKind::Qemu).await,
            None => Ok(false),
        }
    }

    async fn clean(&self, runtime_dir: &Path) -> Result<bool, VmmError> {
        RuntimeFiles::below(runtime_dir).remove()
    }

    async fn find(&self, runtime_root: &Path) -> Result<Vec<(PathBuf, VmmIdentity)>, VmmError> {
        orphans::find(runtime_root)
    }
}

/// Undoes a launch when dropped before [`Undo::forget`]: the QEMU is killed, its files are removed.
struct Undo {
    files: Option<RuntimeFiles>,
    held: Option<Arc<HeldProcess>>,
}

impl Undo {
    fn forget(mut self) {
        self.files = None;
        self.held = None;
    }
}

impl Drop for Undo {
    fn drop(&mut self) {
        if let Some(held) = &self.held
            && let Err(error) = held.signal(Signal::KILL)
        {
            tracing::error!(%error, "the QEMU of a launch that was given up was not killed");
        }
        if let Some(files) = &self.files
            && let Err(error) = files.remove()
        {
            tracing::error!(%error, "the files of a launch that was given up were not removed");
        }
    }
}

fn hold(child: &tokio::process::Child) -> Result<(u32, Arc<HeldProcess>), VmmError> {
    let gone = || io::Error::other("it ended and was reaped");
    let open = || {
        let pid = child.id().ok_or_else(gone)?;
        let held = HeldProcess::open(pid)?.ok_or_else(gone)?;
        Ok((pid, Arc::new(held)))
    };
    open().map_err(io_error("taking hold of the QEMU just started"))
}

/// Reaps the child when it ends, in a task of its own, and tells its exit status.
fn reap(mut child: tokio::process::Child) -> watch::Receiver<Option<ExitStatus>> {
    let (teller, told) = watch::channel(None);
    tokio::spawn(async move {
        if let Ok(status) = child.wait().await {
            teller.send_replace(Some(status));
        }
    });
    told
}

fn listen(path: &Path) -> Result<UnixListener, VmmError> {
    let act = format!("making socket {}", path.display());
    let listener = UnixListener::bind(path).map_err(io_error(&act))?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))
        .map_err(io_error(&act))?;
    Ok(listener)
}

/// QEMU never writes to its standard output, so the tap can travel there.
fn tap_or_null(nic: Option<Nic>) -> Stdio {
    match nic {
        Some(Nic::Tap { descriptor: Some(descriptor), .. }) => Stdio::from(descriptor),
        _ => Stdio::null(),
    }
}

fn block_devices(plan: &LaunchPlan) -> Result<Vec<bool>, VmmError> {
    plan.disks
        .iter()
        .map(|disk| {
            let path = &disk.image.path;
            let metadata = std::fs::metadata(path)
                .map_err(io_error(&format!("looking at disk {}", path.display())))?;
            Ok(metadata.file_type().is_block_device())
        })
        .collect()
}

fn io_error(act: &str) -> impl FnOnce(io::Error) -> VmmError {
    let act = act.to_owned();
    move |source| VmmError::Io { act, source }
}
