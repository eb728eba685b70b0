//! The Firecracker driver: has the root helper launch machines in jails, finds and ends them.
//!
//! ```text
//! claim the runtime directory (`vm`) ──► the initrd below the state directory
//!   priv.launch_firecracker: jail, vm.json, jailer, Firecracker; answers once its API does
//!   hold the process by pidfd, note its start time; the guest runs already
//! ```
//!
//! The helper has written down what it launched before it answers, and its link `fc.sock` in the
//! runtime directory leads to it: a daemon that was killed meanwhile finds the machine by that. A
//! launch that nobody waits for any more is carried to its end all the same, in a task of its own,
//! and then undone: there is no moment at which half a launch can be taken back.
//!
//! What only root can do is asked of the helper; all else is done as the owner, whose uid Firecracker
//! has.

mod api;
mod console;
mod files;
mod last_words;
mod links;
mod orphans;
mod plan;
mod process;
mod room;
mod version;

use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use banger_daemon_api::orphan::{Orphan, OrphanKind};
use banger_engine::seams::{
    Acceleration, LaunchPlan, Nic, RootDisk, Vmm, VmmError, VmmIdentity, VmmKind, VmmProcess,
};
use banger_helper_api::{
    Changed, CleanupJailerChrootParams, DeleteTapParams, Empty, ErrorCode,
    FindFirecrackerPidParams, KillProcessParams, LaunchResult, Method,
    ResolveFirecrackerBinaryParams, ResolveFirecrackerBinaryResult, SnapshotHandles,
};
use banger_helper_client::{CallError, HelperClient};
use banger_types::VmId;
use serde::Serialize;
use serde::de::DeserializeOwned;

use self::api::{Api, InstanceState};
use self::files::RuntimeFiles;
use self::process::FirecrackerProcess;
use crate::disk::DmSnapshotDisk;
use crate::held::{self, HeldProcess};
use crate::known_version::KnownVersion;
use crate::probe::{self, AccelerationChoice, KvmStatus};
use crate::silent;

pub use self::version::{Exposure, FirecrackerVersion, KNOWN_FLAWS, KnownFlaw, OLDEST};

/// The most bytes a socket's path can have: `sun_path` has 108 with the closing NUL (unix(7)).
const SOCKET_PATH_LIMIT: usize = 107;
/// How long the removal of a jail waits for a launch that is still under way in it, and how often it
/// looks.
const CLEAN_PATIENCE: Duration = Duration::from_secs(90);
const CLEAN_PACE: Duration = Duration::from_millis(50);

/// The Firecracker driver. Cheap to clone.
#[derive(Clone, Debug)]
pub struct FirecrackerVmm(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    helper: HelperClient,
    jails: PathBuf,
    choice: AccelerationChoice,
    version: KnownVersion<FirecrackerVersion>,
    snapshots: DmSnapshotDisk,
    marks: PathBuf,
    is_exclusive: bool,
    bridge: String,
}

/// Where Firecracker is, and which.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Program {
    /// Its path, as the helper takes it.
    pub path: PathBuf,
    /// Its version.
    pub version: FirecrackerVersion,
}

impl FirecrackerVmm {
    /// Makes a driver over a helper whose jails are below `jails`. With [`AccelerationChoice::Kvm`]
    /// any KVM will do, else only one with the processor's own virtualisation. Which machines were
    /// asked for is marked in the directory `marks`; nobody else has jails there if `is_exclusive`.
    /// Taps are those of `bridge`, and those of none.
    #[must_use]
    pub fn new(
        helper: HelperClient,
        jails: PathBuf,
        choice: AccelerationChoice,
        marks: PathBuf,
        is_exclusive: bool,
        bridge: String,
    ) -> Self {
        let version = KnownVersion::new(FirecrackerVersion::parse);
        let snapshots = DmSnapshotDisk::new(helper.clone());
        let inner =
            Inner { helper, jails, choice, version, snapshots, marks, is_exclusive, bridge };
        Self(Arc::new(inner))
    }

    /// Finds Firecracker and asks which it is.
    ///
    /// # Errors
    /// It is not installed where the helper looks, it does not say its version, or that is refused.
    pub async fn program(&self) -> Result<Program, VmmError> {
        let params = ResolveFirecrackerBinaryParams { requested: String::new() };
        let asked = Method::ResolveFirecrackerBinary;
        let found: Result<ResolveFirecrackerBinaryResult, _> =
            self.0.helper.call(asked, &params, "").await;
        let unusable = |why: String, hint: &str| VmmError::Unavailable {
            what: "Firecracker".to_owned(),
            why,
            hint: hint.to_owned(),
        };
        let hint = "put firecracker and jailer, of root's alone, into /usr/local/bin";
        let path = match found {
            Ok(found) => PathBuf::from(found.path),
            Err(CallError::Helper { error, .. }) => return Err(unusable(error.message, hint)),
            Err(error) => return Err(self.failed(error)),
        };
        let version = self.0.version.of(&path).await;
        let version = version.ok_or_else(|| {
            unusable(format!("{} does not say its version", path.display()), hint)
        })?;
        match version.refusal() {
            None => Ok(Program { path, version }),
            Some(why) => Err(unusable(
                format!("{}: {why}", path.display()),
                &format!("install Firecracker {OLDEST} or later, without known flaws"),
            )),
        }
    }

    async fn ask<R: DeserializeOwned>(
        &self,
        method: Method,
        params: &(impl Serialize + Sync),
        op_id: &str,
    ) -> Result<R, VmmError> {
        self.0.helper.call(method, params, op_id).await.map_err(|error| self.failed(error))
    }

    fn failed(&self, error: CallError) -> VmmError {
        match error {
            CallError::Helper { error, .. } if error.code == ErrorCode::OperationFailed => {
                VmmError::Ended { vmm: "Firecracker", act: "starting", reason: error.message }
            }
            CallError::Helper { method, error } => VmmError::Refused {
                vmm: "the root helper",
                command: method.name().to_owned(),
                message: error.message,
            },
            CallError::Reach { source, .. } => VmmError::Unavailable {
                what: "the root helper".to_owned(),
                why: source.to_string(),
                hint: "banger doctor".to_owned(),
            },
            CallError::Answer { method, source } => {
                VmmError::Io { act: format!("asking the root helper for {method}"), source }
            }
        }
    }

    /// Launches, holds and describes a machine; what fails is undone by the caller.
    async fn start(&self, plan: &LaunchPlan) -> Result<FirecrackerProcess, VmmError> {
        let files = RuntimeFiles::below(&plan.runtime_dir);
        let program = self.program().await?;
        let host_boot_id = held::host_boot_id().map_err(io_error("reading the host's boot id"))?;
        let (initrd, log) = (plan.initrd.clone(), plan.console_log.clone());
        let placed = tokio::task::spawn_blocking(move || files::place_initrd(&initrd, &log)).await;
        let initrd = placed.map_err(|error| io_error("placing the initrd")(error.into()))??;
        let jail = plan::Jail {
            firecracker: program.path.to_str().unwrap_or_default(),
            jailer: program.path.with_file_name("jailer").display().to_string(),
            jails: &self.0.jails,
            uid: rustix::process::getuid().as_raw(),
            gid: rustix::process::getgid().as_raw(),
        };
        let params = plan::parameters(plan, &initrd, &files, &jail)?;
        files::mark(&self.0.marks, &plan.id)?;
        let op_id = plan.op_id.as_str();
        let LaunchResult { pid } = self.ask(Method::LaunchFirecracker, &params, op_id).await?;
        let ended = || {
            let reason = match last_words::read(&plan.console_log) {
                last_words::End::Explained(words) => words,
                _ => "it ended at once".to_owned(),
            };
            VmmError::Ended { vmm: "Firecracker", act: "starting", reason }
        };
        // Only the helper's word ties the pid to our machine, and only while it runs: asked again
        // once it is held, because it may have ended and its pid be another's.
        let held = HeldProcess::open(pid).map_err(io_error("taking hold of Firecracker"))?;
        let held = Arc::new(held.ok_or_else(ended)?);
        if self.pid_behind(&files).await? != Some(pid) || held.has_ended() {
            return Err(ended());
        }
        let identity = VmmIdentity {
            kind: VmmKind::Firecracker,
            acceleration: Acceleration::Kvm,
            pid,
            start_time: held.start_time(),
            host_boot_id,
        };
        tracing::debug!(pid, version = %program.version, "Firecracker started");
        let process = FirecrackerProcess::new(identity, held, &files, &plan.console_log, false);
        // Long before its guest has loaded a driver for the card.
        if let Some(Nic::Tap { limits, .. }) = &plan.nic
            && !limits.is_unlimited()
        {
            process.limit_network(limits).await?;
        }
        Ok(process)
    }

    /// Asks the helper which process a runtime directory's API socket is of.
    async fn pid_behind(&self, files: &RuntimeFiles) -> Result<Option<u32>, VmmError> {
        if std::fs::symlink_metadata(&files.api).is_err() {
            return Ok(None);
        }
        let params = FindFirecrackerPidParams { api_sock: files.api.display().to_string() };
        match self.0.helper.call(Method::FindFirecrackerPid, &params, "").await {
            Ok(LaunchResult { pid }) => Ok(Some(pid)),
            // It ended.
            Err(CallError::Helper { .. }) => Ok(None),
            Err(error) => Err(self.failed(error)),
        }
    }

    /// Has a VM's jail removed, and first what runs in it without an owner: a launch whose daemon
    /// was killed may be under way still.
    async fn remove_jail(&self, vm: &VmId, files: &RuntimeFiles) -> Result<(), VmmError> {
        let root = self.0.jails.join("firecracker").join(vm.as_str()).join("root");
        let params = CleanupJailerChrootParams { chroot_root: root.display().to_string() };
        let deadline = tokio::time::Instant::now() + CLEAN_PATIENCE;
        loop {
            let cleaned = self.0.helper.call::<_, Empty>(Method::CleanupJailerChroot, &params, "");
            let error = match cleaned.await {
                Ok(Empty {}) => return files::unmark(&self.0.marks, vm),
                Err(error) => error,
            };
            let busy = matches!(&error, CallError::Helper { error, .. }
                if error.code == ErrorCode::InvalidPath);
            if !busy || tokio::time::Instant::now() > deadline {
                return Err(match self.failed(error) {
                    VmmError::Ended { reason, .. } => VmmError::Refused {
                        vmm: "the root helper",
                        command: Method::CleanupJailerChroot.name().to_owned(),
                        message: reason,
                    },
                    other => other,
                });
            }
            if let Some(pid) = self.pid_behind(files).await? {
                tracing::warn!(%vm, pid, "ending a Firecracker whose launch nobody waited for");
                let params = KillProcessParams { pid: pid.into() };
                // It may end by itself meanwhile; the next removal shows.
                let _ = self.ask::<Empty>(Method::KillProcess, &params, "").await;
            }
            tokio::time::sleep(CLEAN_PACE).await;
        }
    }

    fn place<'a>(&'a self, vms: &'a Path) -> orphans::Place<'a> {
        orphans::Place {
            proc: Path::new("/proc"),
            sys: Path::new("/sys"),
            jails: &self.0.jails,
            vms,
            uid: rustix::process::getuid().as_raw(),
            is_exclusive: self.0.is_exclusive,
            bridge: &self.0.bridge,
            taps: links::taps().unwrap_or_else(|error| {
                tracing::warn!(%error, "the taps cannot be listed");
                Vec::new()
            }),
            marked: orphans::marked(&self.0.marks),
        }
    }

    /// Ends a Firecracker whose runtime directory is gone.
    async fn end_orphan(&self, orphan: &Orphan, vms: &Path) -> Result<(), VmmError> {
        let Ok(pid) = orphan.name.parse() else { return Ok(()) };
        let held = HeldProcess::open(pid).map_err(io_error("taking hold of Firecracker"))?;
        let Some(held) = held else { return Ok(()) };
        // Of the one that is held now.
        if self.place(vms).machine_of(pid).as_deref() != Some(&orphan.vm) || held.has_ended() {
            return Ok(());
        }
        held::kill(&held, pid, VmmKind::Firecracker).await.map(drop)
    }

    async fn clean_up(&self, runtime_dir: &Path) -> Result<bool, VmmError> {
        let files = RuntimeFiles::below(runtime_dir);
        let marked = || files::marked_for(&self.0.marks, runtime_dir);
        if let Some(vm) = files.claimed_by()?.or_else(marked) {
            self.remove_jail(&vm, &files).await?;
        }
        files.remove()
    }
}

#[async_trait]
impl Vmm for FirecrackerVmm {
    fn kind(&self) -> VmmKind {
        VmmKind::Firecracker
    }

    async fn probe(&self) -> Result<Acceleration, VmmError> {
        let report = probe::host_report(AccelerationChoice::Auto);
        // Whether the jail may open the device is the helper's to say, not our user's rights.
        let usable = match (self.0.choice, &report.kvm) {
            (AccelerationChoice::Tcg, _) => false,
            (_, KvmStatus::Usable | KvmStatus::Forbidden) => true,
            (AccelerationChoice::Kvm, KvmStatus::WithoutHardware) => true,
            _ => false,
        };
        if !usable {
            let (why, hint) = match self.0.choice {
                AccelerationChoice::Tcg => ("BANGER_ACCEL is tcg".to_owned(), None),
                _ => (report.kvm.describe(), report.kvm.hint()),
            };
            return Err(VmmError::Unavailable {
                what: "KVM".to_owned(),
                why,
                hint: hint.unwrap_or("use --vmm auto").to_owned(),
            });
        }
        self.program().await?;
        Ok(Acceleration::Kvm)
    }

    fn root_disks(&self) -> Vec<Arc<dyn RootDisk>> {
        crate::disk::for_firecracker(self.0.snapshots.clone())
    }

    fn holds(&self) -> bool {
        false
    }

    fn has_power_switch(&self) -> bool {
        false
    }

    fn has_user_network(&self) -> bool {
        false
    }

    fn limits_network(&self) -> bool {
        true
    }

    fn takes_open_tap(&self) -> bool {
        false
    }

    async fn launch(&self, plan: LaunchPlan) -> Result<Arc<dyn VmmProcess>, VmmError> {
        let files = RuntimeFiles::below(&plan.runtime_dir);
        check_length(&files)?;
        // Whoever makes this file owns the directory: another VMM's files are not undone below.
        files.claim(&plan.id)?;
        let (teller, told) = tokio::sync::oneshot::channel();
        let driver = self.clone();
        tokio::spawn(async move {
            let error = match driver.start(&plan).await {
                Ok(process) => match teller.send(Ok(Arc::new(process) as Arc<dyn VmmProcess>)) {
                    // Nobody waits any more: it goes the way of a failed one.
                    Err(Ok(process)) => process.kill().await.err(),
                    _ => return,
                },
                Err(error) => {
                    if let Err(undo) = driver.clean_up(&plan.runtime_dir).await {
                        tracing::error!(vm = %plan.id, error = %undo, "a failed launch was not undone");
                    }
                    let _ = teller.send(Err(error));
                    return;
                }
            };
            if let Some(error) = error {
                tracing::error!(vm = %plan.id, %error, "a machine that nobody waits for was not ended");
            }
            if let Err(error) = driver.clean_up(&plan.runtime_dir).await {
                tracing::error!(vm = %plan.id, %error, "a launch that was given up was not undone");
            }
        });
        told.await.unwrap_or_else(|_| {
            let source = io::Error::other("its task ended without a word");
            Err(VmmError::Io { act: "launching Firecracker".to_owned(), source })
        })
    }

    async fn adopt(
        &self,
        identity: &VmmIdentity,
        runtime_dir: &Path,
        console_log: &Path,
    ) -> Result<Option<Arc<dyn VmmProcess>>, VmmError> {
        let Some(held) = held::hold_named(identity, VmmKind::Firecracker)? else { return Ok(None) };
        let files = RuntimeFiles::below(runtime_dir);
        let answered = Api::at(&files.api).instance().await;
        if held.has_ended() {
            return Ok(None);
        }
        let found = answered?;
        if files.claimed_by()?.is_none_or(|vm| vm.as_str() != found.id) {
            let source = io::Error::other(format!("machine {} answers there", found.id));
            return Err(VmmError::Io { act: "adopting Firecracker".to_owned(), source });
        }
        tracing::debug!(pid = identity.pid, version = found.vmm_version, "Firecracker adopted");
        // An earlier daemon held it for want of room, and this one lets it go on.
        let is_paused = found.state == InstanceState::Paused;
        let (identity, held) = (identity.clone(), Arc::new(held));
        let process = FirecrackerProcess::new(identity, held, &files, console_log, is_paused);
        Ok(Some(Arc::new(process)))
    }

    fn hold(&self, identity: &VmmIdentity) -> Result<Option<Arc<dyn VmmProcess>>, VmmError> {
        silent::hold(identity, VmmKind::Firecracker)
    }

    async fn end(&self, identity: &VmmIdentity) -> Result<bool, VmmError> {
        match held::hold_named(identity, VmmKind::Firecracker)? {
            Some(held) => held::kill(&held, identity.pid, VmmKind::Firecracker).await,
            None => Ok(false),
        }
    }

    async fn clean(&self, runtime_dir: &Path) -> Result<bool, VmmError> {
        // In a task of its own: half of it is of no use to anybody.
        let (driver, runtime_dir) = (self.clone(), runtime_dir.to_owned());
        let cleaned = tokio::spawn(async move { driver.clean_up(&runtime_dir).await }).await;
        cleaned.unwrap_or_else(|error| Err(io_error("removing a jail")(error.into())))
    }

    async fn find(&self, runtime_root: &Path) -> Result<Vec<(PathBuf, VmmIdentity)>, VmmError> {
        let fail = io_error("looking for Firecracker's machines");
        let entries = match std::fs::read_dir(runtime_root) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.map_err(fail)?,
        };
        let host_boot_id = held::host_boot_id().map_err(io_error("reading the host's boot id"))?;
        let mut found = Vec::new();
        for runtime_dir in entries.flatten().map(|entry| entry.path()) {
            let files = RuntimeFiles::below(&runtime_dir);
            let Some(pid) = self.pid_behind(&files).await? else { continue };
            let held = HeldProcess::open(pid).map_err(io_error("looking at Firecracker"))?;
            let Some(held) = held else { continue };
            // Held, it is asked for again: so the pid that the helper means is the one held.
            if self.pid_behind(&files).await? != Some(pid) || held.has_ended() {
                continue;
            }
            let identity = VmmIdentity {
                kind: VmmKind::Firecracker,
                acceleration: Acceleration::Kvm,
                pid,
                start_time: held.start_time(),
                host_boot_id: host_boot_id.clone(),
            };
            found.push((runtime_dir, identity));
        }
        Ok(found)
    }

    async fn traces(&self, vms_dir: &Path) -> Result<Vec<Orphan>, VmmError> {
        let (driver, vms_dir) = (self.clone(), vms_dir.to_owned());
        let looked = tokio::task::spawn_blocking(move || driver.place(&vms_dir).traces()).await;
        looked.map_err(|error| io_error("looking at the host")(error.into()))
    }

    async fn erase(&self, orphan: &Orphan, vms_dir: &Path) -> Result<(), VmmError> {
        let name = || orphan.name.clone();
        match orphan.kind {
            OrphanKind::Vmm => self.end_orphan(orphan, vms_dir).await,
            OrphanKind::Tap | OrphanKind::Firewall => {
                let params = DeleteTapParams { tap_name: name() };
                self.ask::<Changed>(Method::DeleteTap, &params, "").await.map(drop)
            }
            OrphanKind::Mount | OrphanKind::Jail | OrphanKind::Cgroup => {
                let Ok(vm) = orphan.vm.parse() else { return Ok(()) };
                let nowhere = RuntimeFiles::below(&self.0.jails.join(&orphan.vm));
                self.remove_jail(&vm, &nowhere).await
            }
            OrphanKind::Device => {
                let handles = SnapshotHandles { dm_name: name(), ..SnapshotHandles::default() };
                self.ask::<Empty>(Method::CleanupDmSnapshot, &handles, "").await.map(drop)
            }
            OrphanKind::Loop => {
                let handles = SnapshotHandles { cow_loop: name(), ..SnapshotHandles::default() };
                self.ask::<Empty>(Method::CleanupDmSnapshot, &handles, "").await.map(drop)
            }
            OrphanKind::Sockets => {
                let files = RuntimeFiles::below(Path::new(&orphan.name));
                match files.claimed_by() {
                    // Only what the directory's own name says is its.
                    Ok(Some(vm)) if vm.as_str().starts_with(&orphan.vm) => {
                        self.remove_jail(&vm, &files).await
                    }
                    _ => Ok(()),
                }
            }
            OrphanKind::Folder | OrphanKind::Row | OrphanKind::Leftovers => Ok(()),
        }
    }
}

fn check_length(files: &RuntimeFiles) -> Result<(), VmmError> {
    let length = files.vsock.as_os_str().as_bytes().len();
    if length <= SOCKET_PATH_LIMIT {
        return Ok(());
    }
    let problem = format!("the path has {length} bytes, a socket's at most {SOCKET_PATH_LIMIT}");
    Err(VmmError::Io {
        act: format!("using {}", files.vsock.display()),
        source: io::Error::new(io::ErrorKind::InvalidInput, problem),
    })
}

fn io_error(act: &str) -> impl FnOnce(io::Error) -> VmmError {
    let act = act.to_owned();
    move |source| VmmError::Io { act, source }
}
