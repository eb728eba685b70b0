//! A scripted host behind the engine's traits: it fails where a test says, and its processes
//! outlive the engine as real VMMs outlive the daemon.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use banger_agent_api::{
    AgentError, Call, ConfigureCall, Empty, ErrorCode, ExitStatus, Frame, FrameWriter, HealthReply,
    InitKind, MAX_REQUEST, MAX_RESPONSE, NetworkState, Outcome, Request, Response, read_message,
    write_message,
};
use banger_guest_client::{BoxedStream, ChannelError, GuestChannel};
use banger_types::{DiskSize, ImageName, KernelName, VmId};
use rustix::process::Signal;
use tokio::io::AsyncReadExt;
use tokio::sync::watch;
use uuid::Uuid;

use crate::seams::{
    Acceleration, ArtifactError, Artifacts, BaseImage, BootKernel, DiskError, DiskFormat,
    DiskImage, DiskUsage, HostError, HostFacts, HostMemory, LaunchPlan, RootDisk, Vmm, VmmError,
    VmmIdentity, VmmKind, VmmProcess, VmmState,
};

/// How a guest behaves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Guest {
    #[default]
    Good,
    /// Its agent never answers.
    Silent,
    /// It ends while booting.
    Dies,
    /// It agrees to power off and does not.
    Stubborn,
    /// Its agent refuses every call after the first.
    Rude,
    /// Its agent never says that it has another name.
    Mute,
}

#[derive(Debug)]
pub(super) struct Process {
    identity: VmmIdentity,
    runtime_dir: PathBuf,
    guest: Guest,
    state: watch::Sender<VmmState>,
    resumed: watch::Sender<bool>,
    boot_id: String,
    main_exit: watch::Sender<Option<ExitStatus>>,
    /// What it was told to run.
    configured: Mutex<Vec<ConfigureCall>>,
}

#[derive(Debug, Default)]
pub(super) struct Script {
    pub(super) guest: Guest,
    /// Calls that fail from now on.
    pub(super) failing: Vec<&'static str>,
    /// VMMs that do not answer whoever adopts them.
    pub(super) stopped: BTreeSet<u32>,
    pub(super) memory: u64,
    pub(super) disk: u64,
    /// How full a root disk is.
    pub(super) fill_percent: Option<u8>,
    /// How the image wants to be run.
    pub(super) config: Option<banger_types::ImageConfig>,
    /// How a main process ends, as soon as somebody listens.
    pub(super) main_exit: Option<ExitStatus>,
}

#[derive(Debug)]
pub(super) struct Machine {
    pub(super) dir: tempfile::TempDir,
    pub(super) script: Mutex<Script>,
    processes: Mutex<BTreeMap<u32, Arc<Process>>>,
    next_pid: AtomicU64,
    pub(super) taps: super::network::Taps,
    pub(super) ports: super::ports::OpenPorts,
    /// VMs whose root disk is attached.
    attached: Mutex<BTreeSet<VmId>>,
}

impl Machine {
    pub(super) fn new() -> Arc<Self> {
        let dir = tempfile::tempdir().unwrap();
        for sub in ["state", "images", "run"] {
            std::fs::create_dir(dir.path().join(sub)).unwrap();
        }
        std::fs::write(dir.path().join("images/rootfs.ext4"), "base").unwrap();
        let script = Script { memory: 8 << 30, disk: 100 << 30, ..Script::default() };
        Arc::new(Self {
            dir,
            script: Mutex::new(script),
            processes: Mutex::default(),
            next_pid: AtomicU64::new(1_000_000),
            taps: super::network::Taps::default(),
            ports: super::ports::OpenPorts::default(),
            attached: Mutex::default(),
        })
    }

    pub(super) fn script(&self, change: impl FnOnce(&mut Script)) {
        change(&mut self.script.lock().unwrap());
    }

    pub(super) fn state_dir(&self) -> PathBuf {
        self.dir.path().join("state")
    }

    pub(super) fn fails(&self, call: &'static str) -> bool {
        self.script.lock().unwrap().failing.contains(&call)
    }

    pub(super) fn failure(call: &'static str) -> std::io::Error {
        std::io::Error::other(format!("{call} was told to fail"))
    }

    fn vmm_failure(&self, call: &'static str) -> Result<(), VmmError> {
        if self.fails(call) {
            return Err(VmmError::Io { act: call.to_owned(), source: Self::failure(call) });
        }
        Ok(())
    }

    /// Pids of VMMs that are alive.
    pub(super) fn alive(&self) -> Vec<u32> {
        self.processes
            .lock()
            .unwrap()
            .values()
            .filter(|process| *process.state.borrow() == VmmState::Alive)
            .map(|process| process.identity.pid)
            .collect()
    }

    fn stopped(&self, pid: u32) -> bool {
        self.script.lock().unwrap().stopped.contains(&pid)
    }

    /// What the guest of a VMM was told to run.
    pub(super) fn configured(&self, pid: u32) -> Vec<ConfigureCall> {
        self.processes.lock().unwrap()[&pid].configured.lock().unwrap().clone()
    }

    /// Ends the main process in the guest of a VMM.
    pub(super) fn end_main(&self, pid: u32, status: ExitStatus) {
        self.processes.lock().unwrap()[&pid].main_exit.send_replace(Some(status));
    }

    /// Ends a VMM behind the engine's back.
    pub(super) fn end(&self, pid: u32, reason: Option<&str>) {
        let process = self.processes.lock().unwrap()[&pid].clone();
        process.die(reason);
    }

    /// Everything that is there and would not be if there were no VM.
    pub(super) fn leftovers(&self) -> Vec<String> {
        let mut found: Vec<String> =
            self.alive().iter().map(|pid| format!("process {pid}")).collect();
        for (what, guests) in [("tap", &self.taps.taps), ("name", &self.taps.names)] {
            found.extend(guests.lock().unwrap().values().map(|guest| format!("{what} {guest:?}")));
        }
        found.extend(self.attached.lock().unwrap().iter().map(|vm| format!("root disk of {vm}")));
        let ports = self.ports.lock().unwrap();
        found.extend(ports.values().map(|ports| format!("ports {ports:?}")));
        for root in [self.state_dir().join("vms"), self.dir.path().join("run/vms")] {
            for entry in std::fs::read_dir(root).into_iter().flatten().flatten() {
                found.push(entry.path().display().to_string());
            }
        }
        found
    }
}

impl Process {
    fn die(&self, reason: Option<&str>) {
        let reason = reason.map(ToOwned::to_owned);
        self.state.send_if_modified(|state| {
            let alive = *state == VmmState::Alive;
            if alive {
                *state = VmmState::Dead { reason };
            }
            alive
        });
    }
}

#[derive(Debug)]
struct Hold {
    machine: Arc<Machine>,
    process: Arc<Process>,
}

#[async_trait]
impl VmmProcess for Hold {
    fn identity(&self) -> &VmmIdentity {
        &self.process.identity
    }

    async fn resume(&self) -> Result<(), VmmError> {
        self.machine.vmm_failure("resume")?;
        self.process.resumed.send_replace(true);
        if self.process.guest == Guest::Dies {
            self.process.die(Some("qemu: guest panicked"));
        }
        Ok(())
    }

    fn channel(&self) -> Arc<dyn GuestChannel> {
        Arc::new(Channel(Arc::clone(&self.process)))
    }

    fn state(&self) -> VmmState {
        self.process.state.borrow().clone()
    }

    async fn wait(&self) -> VmmState {
        let mut state = self.process.state.subscribe();
        let ended = state.wait_for(|state| *state != VmmState::Alive).await.unwrap();
        ended.clone()
    }

    fn signal(&self, signal: Signal) -> Result<bool, VmmError> {
        let alive = self.state() == VmmState::Alive;
        if signal == Signal::KILL {
            self.process.die(Some("killed by signal 9"));
        }
        Ok(alive)
    }

    async fn kill(&self) -> Result<(), VmmError> {
        self.machine.vmm_failure("kill")?;
        self.process.die(None);
        Ok(())
    }
}

#[derive(Debug)]
struct Channel(Arc<Process>);

impl Channel {
    fn dead(&self) -> bool {
        *self.0.state.borrow() != VmmState::Alive
    }
}

#[async_trait]
impl GuestChannel for Channel {
    async fn open(&self) -> Result<BoxedStream, ChannelError> {
        if self.dead() {
            return Err(ChannelError::Closed);
        }
        let (ours, theirs) = tokio::io::duplex(64 * 1024);
        tokio::spawn(serve(Arc::clone(&self.0), theirs));
        Ok(Box::new(ours))
    }

    async fn wait_ready(&self) -> Result<(), ChannelError> {
        let mut resumed = self.0.resumed.subscribe();
        resumed.wait_for(|resumed| *resumed).await.unwrap();
        match self.0.guest {
            Guest::Silent => std::future::pending().await,
            _ if self.dead() => Err(ChannelError::Closed),
            _ => Ok(()),
        }
    }

    async fn closed(&self) {
        let mut state = self.0.state.subscribe();
        state.wait_for(|state| *state != VmmState::Alive).await.unwrap();
    }
}

async fn serve(process: Arc<Process>, mut stream: tokio::io::DuplexStream) {
    let Ok(request) = read_message::<Request>(&mut stream, MAX_REQUEST).await else { return };
    if process.guest == Guest::Rude && request.call != Call::Health {
        let refusal = AgentError::new(ErrorCode::Failed, "\x1b[31mno\x1b[0m");
        let answer = Response::<Empty>::new(Outcome::Error(refusal));
        let _ = write_message(&mut stream, &answer, MAX_RESPONSE).await;
        return;
    }
    let names = matches!(&request.call, Call::SetIdentity(call) if call.hostname.is_some());
    if process.guest == Guest::Mute && names {
        return std::future::pending().await;
    }
    if request.call == Call::Health {
        let reply = HealthReply {
            agent_version: "0.1.0\x1b[2J".to_owned(),
            boot_id: process.boot_id.clone(),
            kernel: "6.12.0-test".to_owned(),
            hostname: "guest".to_owned(),
            uptime_millis: 1,
            init: InitKind::Agent,
            network: NetworkState::Up,
            session: None,
            execs: 0,
        };
        let _ = write_message(&mut stream, &Response::new(Outcome::Ok(reply)), MAX_RESPONSE).await;
        return;
    }
    let answer = Response::new(Outcome::Ok(Empty {}));
    let _ = write_message(&mut stream, &answer, MAX_RESPONSE).await;
    if let Call::Configure(call) = &request.call {
        process.configured.lock().unwrap().push(call.clone());
    }
    if request.call == Call::WaitMain {
        let mut exit = process.main_exit.subscribe();
        let exit = exit.wait_for(Option::is_some).await.map(|exit| *exit);
        let Ok(Some(status)) = exit else { return };
        let (mut reader, writer) = tokio::io::split(stream);
        let mut writer = FrameWriter::new(writer);
        let _ = writer.send(&Frame::Exit(status)).await;
        let _ = writer.shutdown().await;
        // As the agent does: the machine ends when the host has heard it.
        let _ = reader.read(&mut [0]).await;
        process.die(None);
        return;
    }
    if matches!(request.call, Call::PowerOff(_)) && process.guest == Guest::Good {
        process.die(None);
    }
}

#[derive(Debug)]
pub(super) struct FakeVmm(pub(super) Arc<Machine>);

#[async_trait]
impl Vmm for FakeVmm {
    fn kind(&self) -> VmmKind {
        VmmKind::Qemu
    }

    async fn probe(&self) -> Result<Acceleration, VmmError> {
        if self.0.fails("probe") {
            return Err(VmmError::Unavailable {
                what: "qemu-system-x86_64".to_owned(),
                why: "it is not installed".to_owned(),
                hint: "apt-get install qemu-system-x86".to_owned(),
            });
        }
        Ok(Acceleration::Tcg)
    }

    fn root_disks(&self) -> Vec<Arc<dyn RootDisk>> {
        vec![Arc::new(FakeDisk(Arc::clone(&self.0)))]
    }

    async fn launch(&self, plan: LaunchPlan) -> Result<Arc<dyn VmmProcess>, VmmError> {
        self.0.vmm_failure("launch")?;
        assert!(
            plan.runtime_dir.is_dir() && plan.disks.iter().all(|disk| disk.image.path.exists())
        );
        assert!(plan.kernel_args.contains(&format!("banger.hostname={}", plan.name)));
        std::fs::write(plan.runtime_dir.join("qmp.sock"), "").unwrap();
        let pid = u32::try_from(self.0.next_pid.fetch_add(1, Ordering::Relaxed)).unwrap();
        let (guest, main_exit) = {
            let script = self.0.script.lock().unwrap();
            (script.guest, script.main_exit)
        };
        let process = Arc::new(Process {
            identity: VmmIdentity {
                kind: VmmKind::Qemu,
                acceleration: Acceleration::Tcg,
                pid,
                start_time: 1,
                host_boot_id: crate::reconcile::host_boot_id().unwrap(),
            },
            runtime_dir: plan.runtime_dir,
            guest,
            state: watch::Sender::new(VmmState::Alive),
            resumed: watch::Sender::new(false),
            boot_id: Uuid::new_v4().to_string(),
            main_exit: watch::Sender::new(main_exit),
            configured: Mutex::default(),
        });
        self.0.processes.lock().unwrap().insert(pid, Arc::clone(&process));
        Ok(Arc::new(Hold { machine: Arc::clone(&self.0), process }))
    }

    async fn adopt(
        &self,
        identity: &VmmIdentity,
        _: &Path,
        _: &Path,
    ) -> Result<Option<Arc<dyn VmmProcess>>, VmmError> {
        self.0.vmm_failure("adopt")?;
        let found = self.hold(identity)?;
        if let Some(process) = &found
            && self.0.stopped(process.identity().pid)
        {
            // Connected, and nobody answers.
            process.wait().await;
            return Ok(None);
        }
        Ok(found)
    }

    fn hold(&self, identity: &VmmIdentity) -> Result<Option<Arc<dyn VmmProcess>>, VmmError> {
        self.0.vmm_failure("hold")?;
        let process = self.0.processes.lock().unwrap().get(&identity.pid).cloned();
        let process = process.filter(|process| {
            process.identity == *identity && *process.state.borrow() == VmmState::Alive
        });
        let hold = |process| Arc::new(Hold { machine: Arc::clone(&self.0), process });
        Ok(process.map(|process| hold(process) as Arc<dyn VmmProcess>))
    }

    async fn end(&self, identity: &VmmIdentity) -> Result<bool, VmmError> {
        self.0.vmm_failure("end")?;
        let process = self.0.processes.lock().unwrap().get(&identity.pid).cloned();
        Ok(process.is_some_and(|process| {
            let alive = *process.state.borrow() == VmmState::Alive;
            process.die(None);
            alive
        }))
    }

    async fn clean(&self, runtime_dir: &Path) -> Result<bool, VmmError> {
        self.0.vmm_failure("clean")?;
        let live = |process: &Arc<Process>| {
            process.runtime_dir == runtime_dir && *process.state.borrow() == VmmState::Alive
        };
        assert!(!self.0.processes.lock().unwrap().values().any(live), "cleaned under a live VMM");
        Ok(std::fs::remove_file(runtime_dir.join("qmp.sock")).is_ok())
    }

    async fn find(&self, root: &Path) -> Result<Vec<(PathBuf, VmmIdentity)>, VmmError> {
        self.0.vmm_failure("find")?;
        let processes = self.0.processes.lock().unwrap();
        let ours = processes.values().filter(|process| {
            process.runtime_dir.starts_with(root) && *process.state.borrow() == VmmState::Alive
        });
        Ok(ours.map(|process| (process.runtime_dir.clone(), process.identity.clone())).collect())
    }
}

#[derive(Debug)]
struct FakeDisk(Arc<Machine>);

impl FakeDisk {
    fn failure(&self, call: &'static str, path: &Path) -> Result<(), DiskError> {
        if self.0.fails(call) {
            return Err(DiskError::NoSpace { act: call, path: path.to_owned() });
        }
        Ok(())
    }
}

#[async_trait]
impl RootDisk for FakeDisk {
    fn kind(&self) -> &'static str {
        "qcow2-overlay"
    }

    async fn usable(&self, _: &Path, _: &Path) -> Result<bool, DiskError> {
        Ok(true)
    }

    async fn create(
        &self,
        base: &Path,
        dir: &Path,
        stem: &str,
        size: DiskSize,
    ) -> Result<DiskImage, DiskError> {
        let path = dir.join(format!("{stem}.qcow2"));
        self.failure("create root disk", &path)?;
        assert!(base.exists() && !path.exists());
        std::fs::write(&path, size.bytes().to_string()).unwrap();
        Ok(DiskImage { path, format: DiskFormat::Qcow2, kind: self.kind().to_owned(), base: None })
    }

    async fn measure(&self, disk: &DiskImage) -> Result<DiskUsage, DiskError> {
        let size = std::fs::read_to_string(&disk.path).unwrap_or_default();
        let fill_percent = self.0.script.lock().unwrap().fill_percent;
        Ok(DiskUsage { size: size.trim().parse().unwrap_or(0), allocated: 4096, fill_percent })
    }

    async fn check(&self, disk: &DiskImage) -> Result<(), DiskError> {
        if self.0.fails("check root disk") {
            let problem = "is broken: it overflowed".to_owned();
            return Err(DiskError::Invalid { path: disk.path.clone(), problem });
        }
        Ok(())
    }

    async fn grow(&self, disk: &DiskImage, size: DiskSize) -> Result<bool, DiskError> {
        self.failure("grow root disk", &disk.path)?;
        std::fs::write(&disk.path, size.bytes().to_string()).unwrap();
        Ok(true)
    }

    async fn attach(&self, disk: &DiskImage, vm: &VmId) -> Result<DiskImage, DiskError> {
        self.0.attached.lock().unwrap().insert(vm.clone());
        Ok(disk.clone())
    }

    async fn detach(&self, vm: &VmId) -> Result<(), DiskError> {
        self.failure("detach root disk", Path::new("/dev/mapper"))?;
        self.0.attached.lock().unwrap().remove(vm);
        Ok(())
    }

    async fn remove(&self, disk: &DiskImage) -> Result<bool, DiskError> {
        self.failure("remove root disk", &disk.path)?;
        Ok(std::fs::remove_file(&disk.path).is_ok())
    }
}

#[derive(Debug)]
pub(super) struct FakeArtifacts(pub(super) Arc<Machine>);

impl FakeArtifacts {
    fn failure(&self, call: &'static str) -> Result<(), ArtifactError> {
        if self.0.fails(call) {
            return Err(ArtifactError::Failed {
                act: call,
                object: "something".to_owned(),
                source: Machine::failure(call).into(),
            });
        }
        Ok(())
    }
}

#[async_trait]
impl Artifacts for FakeArtifacts {
    async fn image(&self, name: &ImageName) -> Result<BaseImage, ArtifactError> {
        if name.as_str() != "image" {
            return Err(ArtifactError::NotFound { kind: "image", name: name.to_string() });
        }
        let rootfs = self.0.dir.path().join("images/rootfs.ext4");
        Ok(BaseImage {
            rootfs,
            uuid: Uuid::from_u128(1),
            size: 4096,
            config: self.0.script.lock().unwrap().config.clone(),
        })
    }

    async fn kernel(&self, name: &KernelName) -> Result<BootKernel, ArtifactError> {
        if name.as_str() != "kernel" {
            return Err(ArtifactError::NotFound { kind: "kernel", name: name.to_string() });
        }
        let file = self.0.dir.path().join("images/rootfs.ext4");
        Ok(BootKernel {
            bzimage: file.clone(),
            vmlinux: file.clone(),
            modules_disk: Some((file, Uuid::from_u128(2))),
        })
    }

    async fn initrd(&self, _: &KernelName) -> Result<PathBuf, ArtifactError> {
        self.failure("initrd")?;
        Ok(self.0.dir.path().join("images/rootfs.ext4"))
    }

    async fn make_work_disk(
        &self,
        _: &ImageName,
        path: &Path,
        size: DiskSize,
        _: Uuid,
    ) -> Result<(), ArtifactError> {
        self.failure("work disk")?;
        let file = std::fs::File::create_new(path).unwrap();
        file.set_len(size.bytes()).unwrap();
        Ok(())
    }
}

#[derive(Debug)]
pub(super) struct FakeFacts(pub(super) Arc<Machine>);

impl HostFacts for FakeFacts {
    fn memory(&self) -> Result<HostMemory, HostError> {
        let total = self.0.script.lock().unwrap().memory;
        Ok(HostMemory { total, available: total })
    }

    fn resident(&self, _: u32) -> u64 {
        0
    }

    fn cpu_time(&self, pid: u32) -> Option<Duration> {
        self.0.alive().contains(&pid).then_some(Duration::from_secs(7))
    }

    fn free_disk(&self, _: &Path) -> Result<u64, HostError> {
        Ok(self.0.script.lock().unwrap().disk)
    }
}

/// Long enough for anything that is to happen, short enough to fail a test.
pub(super) const SOON: Duration = Duration::from_secs(20);
