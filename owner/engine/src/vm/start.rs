//! Starting a VM: steps, each with its undo.
//!
//! Everything that a step made is undone in reverse when a later one fails or the action is
//! cancelled. Disks of a VM that existed before are no step's making, so they stay.

mod choose;

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use banger_agent_api::{BootConfig, InitChoice, MachineEnd, SessionToken, StaticNetwork};
use banger_daemon_api::vm::{DiskLimits, HOSTNAME_NOTE, PORTS_NOTE, SUBNET_NOTE, VmState};
use banger_guest_client::GuestChannel;
use banger_types::DiskSize;
use uuid::Uuid;

use self::choose::{Chosen, Link, configuration};
use super::space::{Asker, note_space};
use super::{
    Body, Control, collected, console, io, main_exit, ports, remove_file, remove_tree, space,
};
use crate::error::{EngineError, Failure};
use crate::guest;
use crate::main_process::Programs;
use crate::record::{Disks, Handles, Running, acceleration_name};
use crate::seams::{
    DiskImage, LaunchPlan, Network, Nic, PlannedDisk, RootDisk, Vmm, VmmProcess, VmmState,
    hardware_address,
};
use crate::step::Step;

/// How long a VMM that closed the agent's channel may take to be seen as ended.
const END_AFTER_CLOSE: Duration = Duration::from_secs(3);

/// What a step made, and so what to undo.
enum Undo {
    Promise,
    DiskPromise,
    Directory(PathBuf),
    RootDisk(Arc<dyn RootDisk>, DiskImage),
    File(PathBuf),
    Attached(Arc<dyn RootDisk>),
    Network(Arc<dyn Network>),
    Ports,
    Vmm(Arc<dyn Vmm>, Arc<dyn VmmProcess>),
}

struct Run<'a> {
    body: &'a mut Body,
    control: &'a Control,
    undo: Vec<Undo>,
    /// Where this boot's output begins in the console log.
    boot_start: Option<console::BootStart>,
}

/// Starts the VM, which does not run. On failure everything this call made is undone; the caller
/// records what becomes of the VM.
pub(super) async fn start(body: &mut Body, control: &Control) -> Result<(), Failure> {
    body.record.last_error = None;
    body.record.main_exit = None;
    body.set_state(VmState::Starting);
    let mut run = Run { body, control, undo: Vec::new(), boot_start: None };
    match run.all().await {
        Ok(()) => Ok(()),
        Err(cause) => {
            let not_undone = run.undo_all().await;
            Err(Failure { cause, not_undone })
        }
    }
}

impl Run<'_> {
    async fn all(&mut self) -> Result<(), EngineError> {
        self.body.save(false).await?;
        // A run of another kind would not find what is left of the last one.
        super::stop::clean_again(self.body, self.control).await.map_err(|failure| failure.cause)?;
        let chosen = self.check_host().await?;
        self.undo.push(Undo::Ports);
        // Before anything is made: a port that is taken is seen at once.
        ports::open(self.body, None)?;
        let disks = match self.body.record.disks.clone() {
            Some(disks) => self.grow_disks(disks).await?,
            None => self.create_disks(&chosen).await?,
        };
        // What was to be written has been.
        self.body.shared.release_disk(&self.body.record.id);
        let initrd = self.build_initrd().await?;
        self.create_runtime_directory(&chosen).await?;
        self.boot_start = console::boot_start(&self.body.files.console_log()).await;
        let root = self.attach_root_disk(&chosen, &disks).await?;
        let guest_ip = self.address(chosen.link)?;
        let nic = self.attach_network(&chosen, guest_ip).await?;
        let network = configuration(chosen.link, guest_ip);
        let process = self.launch(&chosen, &disks, &root, initrd, nic, network).await?;
        let on_bridge = matches!(chosen.link, Link::Bridge(_));
        self.write_handles(&process, disks, guest_ip, on_bridge).await?;
        self.enter(Step::ResumeVmm).await?;
        process.resume().await?;
        self.done(Step::ResumeVmm).await?;
        self.wait_for_agent(&process).await?;
        self.body.shared.ports.serve(self.body.id(), process.channel());
        self.record_running(process).await
    }

    async fn enter(&self, step: Step) -> Result<(), EngineError> {
        self.interruptible()?;
        self.control.enter(self.body, step).await
    }

    fn interruptible(&self) -> Result<(), EngineError> {
        if self.control.interrupted() { Err(self.cancelled()) } else { Ok(()) }
    }

    async fn done(&self, step: Step) -> Result<(), EngineError> {
        self.control.done(self.body, step).await
    }

    fn cancelled(&self) -> EngineError {
        EngineError::Cancelled { what: format!("starting VM {}", self.body.record.name) }
    }

    async fn check_host(&mut self) -> Result<Chosen, EngineError> {
        self.enter(Step::CheckHost).await?;
        let shared = Arc::clone(&self.body.shared);
        let record = &self.body.record;
        let kernel = shared.artifacts.kernel(&record.kernel).await?;
        let base = match record.disks {
            Some(_) => None,
            None => Some(shared.artifacts.image(&record.image).await?),
        };
        if let Some(base) = &base {
            let options = &record.main_options;
            let programs = Programs::decide(base.config.as_ref(), options)?;
            self.body.record.programs = programs;
        }
        let record = &self.body.record;
        // Before anything is tried on the disk.
        shared.promise_disk(&record.id, 0)?;
        self.undo.push(Undo::DiskPromise);
        let (chosen, why, no_bridge) = self.choose(base, kernel).await?;
        let record = &self.body.record;
        if let Some(base) = &chosen.base {
            shared.promise_disk(&record.id, chosen.root_disk.cost(&base.rootfs).await?)?;
        }
        let overhead = chosen.vmm.overhead(chosen.acceleration);
        shared.promise_memory(&record.id, record.spec.memory_mib, overhead)?;
        self.undo.push(Undo::Promise);
        let notes = &mut self.body.record.notes;
        notes.insert("VMM choice".to_owned(), why);
        notes.remove("network");
        notes.remove(PORTS_NOTE);
        notes.remove(SUBNET_NOTE);
        notes.remove(HOSTNAME_NOTE);
        if let Some(why) = no_bridge {
            notes.insert("network".to_owned(), why);
        }
        if let (Link::Bridge(_), Some(network)) = (chosen.link, &shared.network)
            && let Some(warning) = network.warning()
        {
            tracing::warn!(vm = %self.body.record.id, warning);
            self.body.record.notes.insert(SUBNET_NOTE.to_owned(), warning);
        }
        self.judge_space(&chosen).await?;
        self.done(Step::CheckHost).await?;
        Ok(chosen)
    }

    /// Refuses disks that the host could not hold, and notes those that it may not.
    async fn judge_space(&mut self, chosen: &Chosen) -> Result<(), EngineError> {
        let record = &self.body.record;
        let (growth, asker) = match (&record.disks, &chosen.base) {
            (None, Some(base)) => {
                (space::of_new(chosen.root_disk.as_ref(), &record.spec, base.size), Asker::Creating)
            }
            (Some(disks), _) => {
                match space::of_made(&self.body.shared, disks, &record.spec).await {
                    Ok(growth) => (growth, Asker::Starting),
                    // A disk that cannot be measured is for its own step to refuse.
                    Err(_) => return Ok(()),
                }
            }
            (None, None) => return Ok(()),
        };
        let warning = space::judge(self.body, &record.spec, growth, asker).await?;
        note_space(&mut self.body.record, warning);
        Ok(())
    }

    /// Makes the VM's tap, where it gets one, and lets its name be known.
    async fn attach_network(
        &mut self,
        chosen: &Chosen,
        guest_ip: Option<Ipv4Addr>,
    ) -> Result<Option<Nic>, EngineError> {
        let nic = matches!(chosen.link, Link::User)
            .then_some(Nic::User { outbound: self.body.record.spec.nat });
        let Some(network) = self.body.shared.network.clone() else { return Ok(nic) };
        self.enter(Step::AttachNetwork).await?;
        // Before the act: one that is cut off may have made something.
        self.undo.push(Undo::Network(Arc::clone(&network)));
        let address = guest_ip.filter(|_| matches!(chosen.link, Link::Bridge(_)));
        let guest = self.body.record.guest(address);
        let nic = match address {
            None => nic,
            Some(address) => {
                let op_id = self.control.reporter.id();
                let wants_descriptor = chosen.vmm.takes_open_tap();
                let made = network.attach(&guest, wants_descriptor, &op_id).await?;
                let mac = hardware_address(address);
                let limits = self.body.record.spec.net_limits;
                Some(Nic::Tap { name: made.tap, descriptor: made.descriptor, mac, limits })
            }
        };
        network.announce(guest);
        self.done(Step::AttachNetwork).await?;
        Ok(nic)
    }

    async fn create_disks(&mut self, chosen: &Chosen) -> Result<Disks, EngineError> {
        let base = chosen
            .base
            .as_ref()
            .ok_or(EngineError::Defect("a VM without disks has no base image"))?;
        self.enter(Step::CreateVmDirectory).await?;
        let dir = self.body.files.dir().to_owned();
        make_dir(&dir).await?;
        self.undo.push(Undo::Directory(dir.clone()));
        self.done(Step::CreateVmDirectory).await?;

        self.enter(Step::LinkBaseImage).await?;
        let link = self.body.files.base();
        let rootfs = match tokio::fs::hard_link(&base.rootfs, &link).await {
            Ok(()) => link,
            // Another file system, or one without links: the image itself is then the base.
            Err(error)
                if matches!(
                    error.kind(),
                    std::io::ErrorKind::CrossesDevices
                        | std::io::ErrorKind::TooManyLinks
                        | std::io::ErrorKind::Unsupported
                        | std::io::ErrorKind::PermissionDenied
                ) =>
            {
                base.rootfs.clone()
            }
            Err(source) => return Err(io("linking", &base.rootfs)(source)),
        };
        self.done(Step::LinkBaseImage).await?;

        self.enter(Step::CreateRootDisk).await?;
        let spec = &self.body.record.spec;
        let least = DiskSize::try_from(base.size.next_multiple_of(4096)).unwrap_or(spec.root_size);
        let size = spec.root_size.max(least);
        let root = chosen.root_disk.create(&rootfs, &dir, "root", size).await?;
        self.undo.push(Undo::RootDisk(Arc::clone(&chosen.root_disk), root.clone()));
        self.done(Step::CreateRootDisk).await?;

        self.enter(Step::CreateWorkDisk).await?;
        let path = self.body.files.work_disk();
        let work_uuid = Uuid::new_v4();
        let record = &self.body.record;
        self.body
            .shared
            .artifacts
            .make_work_disk(&record.image, &path, record.spec.work_size, work_uuid)
            .await?;
        self.undo.push(Undo::File(path.clone()));
        self.done(Step::CreateWorkDisk).await?;
        let work = DiskImage::raw(path);
        Ok(Disks { root, root_uuid: base.uuid, work, work_uuid })
    }

    async fn grow_disks(&mut self, disks: Disks) -> Result<Disks, EngineError> {
        for (what, disk) in [("the root disk", &disks.root), ("the work disk", &disks.work)] {
            if tokio::fs::symlink_metadata(&disk.path).await.is_err() {
                return Err(EngineError::Damaged {
                    what,
                    vm: self.body.record.name.clone(),
                    problem: format!("is gone: {}", disk.path.display()),
                });
            }
        }
        self.interruptible()?;
        super::set::grow(self.body, self.control, &disks, &self.body.record.spec).await?;
        Ok(disks)
    }

    async fn build_initrd(&mut self) -> Result<PathBuf, EngineError> {
        self.enter(Step::BuildInitrd).await?;
        let initrd = self.body.shared.artifacts.initrd(&self.body.record.kernel).await?;
        self.done(Step::BuildInitrd).await?;
        Ok(initrd)
    }

    async fn create_runtime_directory(&mut self, chosen: &Chosen) -> Result<(), EngineError> {
        self.enter(Step::CreateRuntimeDirectory).await?;
        let dir = self.body.files.runtime_dir().to_owned();
        match make_dir(&dir).await {
            // Left by an end that could not clean up; no VMM uses it, or the VM would be running.
            Err(EngineError::Io { source, .. })
                if source.kind() == std::io::ErrorKind::AlreadyExists =>
            {
                chosen.vmm.clean(&dir).await?;
                remove_tree(&dir).await?;
                make_dir(&dir).await?;
            }
            other => other?,
        }
        self.undo.push(Undo::Directory(dir));
        self.done(Step::CreateRuntimeDirectory).await
    }

    async fn attach_root_disk(
        &mut self,
        chosen: &Chosen,
        disks: &Disks,
    ) -> Result<DiskImage, EngineError> {
        self.enter(Step::AttachRootDisk).await?;
        // Before the act: one that is cut off may have made something.
        self.undo.push(Undo::Attached(Arc::clone(&chosen.root_disk)));
        let attached = chosen.root_disk.attach(&disks.root, self.body.id()).await?;
        self.done(Step::AttachRootDisk).await?;
        Ok(attached)
    }

    async fn launch(
        &mut self,
        chosen: &Chosen,
        disks: &Disks,
        root: &DiskImage,
        initrd: PathBuf,
        nic: Option<Nic>,
        network: Option<StaticNetwork>,
    ) -> Result<Arc<dyn VmmProcess>, EngineError> {
        self.enter(Step::LaunchVmm).await?;
        let record = &self.body.record;
        let mut boot = BootConfig::new(disks.root_uuid);
        boot.work = Some(disks.work_uuid);
        boot.hostname = Some(record.name.clone());
        boot.session = Some(SessionToken(*Uuid::new_v4().as_bytes()));
        if record.programs.main.is_some() {
            // An init would be somebody else to end the machine.
            boot.init = InitChoice::None;
        }
        if !chosen.vmm.has_power_switch() {
            boot.end = MachineEnd::Restart;
        }
        boot.network = network;
        let disk = |role: &str, image: &DiskImage, read_only| PlannedDisk {
            role: role.to_owned(),
            image: image.clone(),
            read_only,
            // What may only be read is many machines', small and in the host's memory.
            limits: if read_only { DiskLimits::default() } else { record.spec.disk_limits },
        };
        let mut planned = vec![disk("root", root, false), disk("work", &disks.work, false)];
        if let Some((path, uuid)) = &chosen.kernel.modules_disk {
            boot.modules = Some(*uuid);
            planned.push(disk("modules", &DiskImage::raw(path.clone()), true));
        }
        let kernel_args = boot.to_kernel_args().map_err(|source| EngineError::Io {
            act: "writing the kernel command line of",
            object: format!("VM {}", record.name),
            source: std::io::Error::new(std::io::ErrorKind::InvalidInput, source),
        })?;
        let plan = LaunchPlan {
            id: record.id.clone(),
            op_id: self.control.reporter.id(),
            name: record.name.clone(),
            vcpus: record.spec.vcpus,
            memory: record.spec.memory_mib,
            bzimage: chosen.kernel.bzimage.clone(),
            vmlinux: chosen.kernel.vmlinux.clone(),
            initrd,
            kernel_args,
            disks: planned,
            nic,
            runtime_dir: self.body.files.runtime_dir().to_owned(),
            console_log: self.body.files.console_log(),
        };
        let process = chosen.vmm.launch(plan).await?;
        self.undo.push(Undo::Vmm(Arc::clone(&chosen.vmm), Arc::clone(&process)));
        if process.identity().acceleration != chosen.acceleration {
            self.body.record.notes.insert(
                "acceleration".to_owned(),
                format!("{} was expected", acceleration_name(chosen.acceleration)),
            );
        }
        self.done(Step::LaunchVmm).await?;
        Ok(process)
    }

    async fn write_handles(
        &mut self,
        process: &Arc<dyn VmmProcess>,
        disks: Disks,
        guest_ip: Option<Ipv4Addr>,
        on_bridge: bool,
    ) -> Result<(), EngineError> {
        self.enter(Step::WriteHandles).await?;
        let identity = process.identity().clone();
        let path = self.body.files.handles();
        let vm = self.body.record.id.clone();
        let handles = Handles { vm, identity: identity.clone(), disks, guest_ip, on_bridge };
        handles.write(&path).map_err(io("writing", &path))?;
        self.undo.push(Undo::File(path));
        self.body.record.running = Some(Running { guest_ip, on_bridge, ..Running::new(identity) });
        // The record takes over only now: until here the undo list is what knows of new disks.
        self.body.record.disks = Some(handles.disks);
        self.body.shared.promise_belongs_to(&self.body.record.id, process.identity().pid);
        self.body.process = Some(Arc::clone(process));
        self.body.publish();
        self.body.save(false).await?;
        self.done(Step::WriteHandles).await
    }

    async fn wait_for_agent(&mut self, process: &Arc<dyn VmmProcess>) -> Result<(), EngineError> {
        self.enter(Step::WaitForAgent).await?;
        let deadline = self.body.shared.timing.agent_deadline;
        let channel = process.channel();
        let ready = async {
            channel.wait_ready().await.map_err(EngineError::from)?;
            // The first word is the success; who it is comes with it.
            guest::health(&channel).await
        };
        let health = tokio::select! {
            biased;
            () = self.control.cancel.cancelled() => return Err(self.cancelled()),
            () = self.control.force.cancelled() => return Err(self.cancelled()),
            end = process.wait() => return Err(self.guest_ended(end).await),
            ready = tokio::time::timeout(deadline, ready) => ready,
        };
        let health = match health {
            Ok(Ok(health)) => health,
            Ok(Err(error)) => {
                // A VMM that dies closes the channel first; its death is the better reason.
                return match tokio::time::timeout(END_AFTER_CLOSE, process.wait()).await {
                    Ok(end) => Err(self.guest_ended(end).await),
                    Err(_) => Err(error),
                };
            }
            Err(_) => {
                return Err(EngineError::GuestSilent {
                    vm: self.body.record.name.clone(),
                    seconds: deadline.as_secs(),
                    console: self.console_tail().await,
                });
            }
        };
        if let Some(running) = &mut self.body.record.running {
            running.boot_id = Some(health.boot_id);
            running.kernel_release = Some(health.kernel);
            running.agent_version = Some(health.agent_version);
        }
        self.done(Step::WaitForAgent).await?;
        self.enter(Step::SetIdentity).await?;
        if let Err(error) = guest::greet(&channel).await {
            // The guest has its own clock; it runs without this.
            tracing::warn!(vm = %self.body.record.id, %error, "the guest's clock was not set");
        }
        self.run_programs(&channel).await?;
        self.done(Step::SetIdentity).await
    }

    /// Tells the guest what to run. A client that made the VM may want to be there from the first
    /// word on.
    async fn run_programs(&self, channel: &Arc<dyn GuestChannel>) -> Result<(), EngineError> {
        let record = &self.body.record;
        if record.programs.are_plain() {
            return Ok(());
        }
        let call = record.programs.call(record.main_options.held && !record.complete)?;
        guest::configure(channel, call)
            .await
            .map_err(|source| EngineError::MainRefused { vm: record.name.clone(), source })
    }

    async fn console_tail(&self) -> Vec<String> {
        console::tail(self.body.files.console_log(), self.boot_start).await
    }

    async fn guest_ended(&self, end: VmmState) -> EngineError {
        EngineError::GuestEnded {
            vm: self.body.record.name.clone(),
            last_words: match end {
                VmmState::Dead { reason } => reason,
                VmmState::Alive => None,
            },
            console: self.console_tail().await,
        }
    }

    async fn record_running(&mut self, process: Arc<dyn VmmProcess>) -> Result<(), EngineError> {
        self.enter(Step::RecordRunning).await?;
        self.body.process = Some(process);
        let complete = self.body.record.complete;
        self.body.record.complete = true;
        self.body.record.state = VmState::Running;
        self.body.record.updated_at = jiff::Timestamp::now();
        let recorded = match self.body.save(true).await {
            Ok(()) => self.done(Step::RecordRunning).await,
            Err(error) => Err(error),
        };
        if let Err(error) = recorded {
            self.body.record.complete = complete;
            return Err(error);
        }
        self.body.publish();
        main_exit::watch(self.body);
        Ok(())
    }

    async fn undo_all(&mut self) -> Vec<EngineError> {
        let mut errors = Vec::new();
        let created = !self.body.record.complete;
        while let Some(undo) = self.undo.pop() {
            let undone = match undo {
                Undo::Promise => {
                    self.body.shared.release_memory(&self.body.record.id);
                    Ok(false)
                }
                Undo::DiskPromise => {
                    self.body.shared.release_disk(&self.body.record.id);
                    Ok(false)
                }
                Undo::Ports => {
                    self.body.shared.ports.withdraw(&self.body.record.id);
                    Ok(false)
                }
                Undo::Directory(path) => remove_tree(&path).await,
                Undo::File(path) => remove_file(&path).await,
                Undo::RootDisk(driver, disk) => {
                    driver.remove(&disk).await.map_err(EngineError::from)
                }
                Undo::Attached(driver) => {
                    let detached = driver.detach(&self.body.record.id).await;
                    detached.map(|()| false).map_err(EngineError::from)
                }
                Undo::Network(network) => {
                    network.withdraw(&self.body.record.id);
                    let detached =
                        network.detach(&self.body.record.id, &self.control.reporter.id()).await;
                    detached.map(|()| false).map_err(EngineError::from)
                }
                Undo::Vmm(vmm, process) => match process.kill().await {
                    Ok(()) => {
                        self.body.process = None;
                        vmm.clean(self.body.files.runtime_dir()).await.map_err(EngineError::from)
                    }
                    Err(error) => {
                        // What a live VMM uses must stay: nothing earlier can be undone either.
                        self.body.process = Some(process);
                        errors.push(error.into());
                        break;
                    }
                },
            };
            errors.extend(undone.err());
        }
        if self.body.process.is_none() {
            self.body.record.running = None;
            let left = collected(&errors);
            self.body.record.leftovers = left.or(self.body.record.leftovers.take());
            if created {
                self.body.record.disks = None;
            }
        }
        errors
    }
}

async fn make_dir(path: &Path) -> Result<(), EngineError> {
    let mut builder = tokio::fs::DirBuilder::new();
    builder.mode(0o700).create(path).await.map_err(io("making directory", path))
}
