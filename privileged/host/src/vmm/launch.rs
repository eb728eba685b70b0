//! A machine's start: everything is opened and checked, then made in the jail, then the jailer runs,
//! and what it leaves running is proven, remembered and waited for. What fails is undone.
//!
//! The helper is a subreaper (PR_SET_CHILD_SUBREAPER(2const)): the jailer's child becomes the
//! helper's own, which nobody else can be. Firecracker outlives the helper; init reaps it then.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{FileExt, fchown};
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::time::{Duration, Instant};

use banger_gates::request::Launch;
use banger_gates::{JailId, JailRoot, ManagedPath, Refusal, State};
use banger_helper_api::ErrorCode;
use rustix::fs::{FileType, Mode, OFlags};
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, waitid};

use super::executable::Executable;
use super::jail::{self, Jail};
use super::process::{Executed, Process, is_readable};
use super::record::{Identity, Launched};
use super::{API_SOCKET, cgroup, config, mounts, sockets, staging};
use crate::disk::{check_loops, identity};
use crate::{During, Host, HostError, Result, chain, descriptor_path, tool};

/// How long the jailer may take: it copies 3 MB and makes a few nodes.
const JAILER_LIMIT: Duration = Duration::from_secs(30);
/// What is done with it, for errors.
const RUN: &str = "run the jailer for";
/// What speaks against a jail that its owner has got into.
const MOVED: &str = "what it executes was moved";
/// How long Firecracker may take until it answers; it reads the kernel and the initrd first.
const ANSWER_LIMIT: Duration = Duration::from_secs(60);
/// Between two looks at a process that is to become a machine.
const STEP: Duration = Duration::from_micros(500);
/// After this it is asked even if its threads have other names.
const GRACE: Duration = Duration::from_secs(5);
/// How long a killed process may take to end.
const END_LIMIT: Duration = Duration::from_secs(10);
/// How much of a log's end an error shows.
const LOG_TAIL: u64 = 2048;
/// A log that is longer is cut to nothing, so that a guest cannot fill the disk by its console.
const LONGEST_LOG: u64 = 64 << 20;
/// How often that is looked at.
const LOG_CHECK: Duration = Duration::from_secs(10);

impl Host {
    /// Starts a machine in a jail of its own and returns Firecracker's pid once its API answers. The
    /// log has Firecracker's words and the serial console, appended; it is the owner's, who may
    /// shorten it at any time, and the helper cuts it beyond 64 MiB while it runs itself.
    ///
    /// # Errors
    /// Refused: executables or files that are not what they must be, a jail of that id, a taken
    /// place for a link, a file of another machine's where one of the two writes to it. Failed: the
    /// act, which is undone; the log stays.
    pub fn launch_firecracker(&self, launch: &Launch) -> Result<u32> {
        let firecracker = Executable::open("binary_path", &launch.firecracker)?;
        let jailer = Executable::open("jailer.binary", &launch.jailer)?;
        let sources = self.open_sources(launch, &firecracker)?;
        self.check_links(launch)?;
        let open_old = |parameter, path| {
            let open = |_| self.state.open_file(parameter, path, true);
            self.state.look(parameter, path)?.map(open).transpose()
        };
        let old_log = open_old("log_path", &launch.log)?;
        launch.metrics.iter().try_for_each(|path| open_old("metrics_path", path).map(drop))?;
        let is_broken = self.launched(&launch.id).is_some_and(|it| it.running().is_some());
        Refusal::when(is_broken, "vm_id", "a machine of this id runs")?;
        let mut uses = sources.uses()?;
        if let Some(log) = &old_log {
            uses.push(("log_path", (identity(log)?, false)));
        }
        let disks: Vec<_> = uses.iter().map(|it| it.1).collect();
        // Until this launch is written down, no other looks what is.
        let unwritten = self.machines();
        uses.iter().rev().try_for_each(|it| self.check_unused(it.0, it.1, &disks))?;
        check_loops(&uses, None)?;
        cgroup::claim(&self.policy.jails, &launch.id)?;
        let jail = Jail::create(&self.policy, &launch.id);
        let jail = jail.inspect_err(|_| drop(cgroup::remove(&self.policy.jails, &launch.id)))?;
        let mut launched = Launched { links: self.links_of(launch), disks, process: None };
        let mut group = None;
        let start = || {
            let log = Log::open(self, &launch.log, old_log)?;
            launched.disks.push((identity(&log.file)?, false));
            self.remember(&launch.id, &launched)?;
            drop(unwritten);
            let root = jail.root()?;
            self.stage(&root, launch, &sources)?;
            self.make_links(launch)?;
            let console = staging::make_console(&root, self.policy.owner);
            let console = console.during("make the console of", launch.id.as_str())?;
            let streams = (console, &log);
            self.run_jailer(launch, &firecracker, &jailer, streams, &mut group)?;
            let process = self.take_over(launch, &root, &log, &mut launched)?;
            jail.take_root(&root)?;
            let executed = launched.process.map(|it| it.file);
            if executed != Jail::executable(&self.policy, &launch.id) {
                return Err(log.failed("start", &launch.id, MOVED.to_owned()));
            }
            jail.set_open(true)?;
            self.remember(&launch.id, &launched)?;
            wait_for_answer(&process, &root)
                .map_err(|error| log.failed("start", &launch.id, error))?;
            let pid = u32::try_from(process.pid).during("start", launch.id.as_str())?;
            self.machines().insert(launch.api_socket.relative().to_owned(), process);
            Ok(pid)
        };
        start().map_err(|error| {
            if let Some(group) = group {
                end_group(group);
            }
            let undone = self.tear_down(&launch.id, Some(jail), Some(&launched));
            match undone.and(Jail::remove_strays(&self.policy, &launch.id)) {
                Ok(()) => error,
                Err(left) => {
                    let both = format!("{}; undoing it failed: {}", chain(&error), chain(&left));
                    HostError::of("launch", launch.id.as_str())(both)
                }
            }
        })
    }

    /// Takes a jail away with its mounts, its cgroup, the links to its sockets and its record, also
    /// those of an earlier helper. A jail that is not there is as good.
    ///
    /// # Errors
    /// Its Firecracker runs, another request works on it, a link in its path (all refused with
    /// `invalid_path`); something cannot be removed, and calling again goes on with it.
    pub fn cleanup_jailer_chroot(&self, root: &JailRoot) -> Result<()> {
        let id = root.id();
        let jail = Jail::open(&self.policy, id)?;
        let launched = self.launched(id);
        let recorded = launched.as_ref().and_then(Launched::running);
        if recorded.or_else(|| self.in_jail(id)).is_some() {
            let refusal = Refusal::new("chroot_root", "its Firecracker runs");
            return Err(refusal.with_code(ErrorCode::InvalidPath).into());
        }
        self.tear_down(id, jail, launched.as_ref())
    }

    fn tear_down(&self, id: &JailId, jail: Option<Jail>, record: Option<&Launched>) -> Result<()> {
        let recorded = record.and_then(Launched::running);
        if let Some(process) = recorded.or_else(|| self.in_jail(id)) {
            process.signal(Signal::KILL)?;
            if !process.ends_within(END_LIMIT) {
                return Err(HostError::of("end process", process.pid)("it does not end"));
            }
            // The child of a jailer that died has nobody else yet.
            let has_ended = WaitIdOptions::EXITED | WaitIdOptions::NOHANG;
            let _ = waitid(WaitId::PidFd(process.descriptor.as_fd()), has_ended);
        }
        self.machines().retain(|_, machine| machine.is_running());
        if let Some(record) = record {
            self.remove_links(record)?;
        }
        if let Some(jail) = jail {
            jail.remove(self.policy.owner.uid())?;
        }
        let removed = cgroup::remove(&self.policy.jails, id);
        removed.during("remove the cgroup of", id.as_str())?;
        self.forget_launch(id)
    }

    fn run_jailer(
        &self,
        launch: &Launch,
        firecracker: &Executable,
        jailer: &Executable,
        (console, log): (OwnedFd, &Log),
        group: &mut Option<Pid>,
    ) -> Result<()> {
        let (owner, id) = (self.policy.owner, launch.id.as_str());
        let mut command = Command::new(descriptor_path(&jailer.descriptor));
        command
            .arg0("jailer")
            .args(["--id", id, "--new-pid-ns", "--exec-file"])
            .arg(&firecracker.path)
            .args(["--uid", &owner.uid().to_string(), "--gid", &owner.gid().to_string()])
            .arg("--chroot-base-dir")
            .arg(&self.policy.jails)
            .args(cgroup::arguments(&launch.limits));
        let limits = [("fsize", launch.limits.file_size), ("no-file", launch.limits.open_files)];
        for (name, limit) in limits {
            if let Some(limit) = limit {
                command.args(["--resource-limit", &format!("{name}={limit}")]);
            }
        }
        command
            .args(["--", "--api-sock", API_SOCKET, "--config-file"])
            .arg(format!("/{}", config::CONFIG))
            .env_clear()
            .current_dir("/")
            .process_group(0)
            .stdin(console)
            .stdout(log.file.try_clone().during(RUN, id)?)
            .stderr(log.file.try_clone().during(RUN, id)?);
        let subreaper = rustix::process::set_child_subreaper(Some(rustix::process::getpid()));
        subreaper.during(RUN, id)?;
        // A thread of its own, because what it promises it promises for ever, and its child too.
        let spawn = || {
            mounts::hide_misc()?;
            rustix::thread::set_no_new_privs(true)?;
            command.spawn()
        };
        let spawned = std::thread::scope(|scope| scope.spawn(spawn).join());
        let spawned = spawned.unwrap_or_else(|_| Err(io::Error::other("its thread panicked")));
        let mut child = spawned.during(RUN, id)?;
        *group = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
        match tool::wait(&mut child, JAILER_LIMIT) {
            Ok(status) if status.success() => Ok(()),
            Ok(status) => Err(log.failed("jail", &launch.id, status.to_string())),
            Err(error) => Err(log.failed("jail", &launch.id, error.to_string())),
        }
    }

    /// Holds the process that the jailer left, if it is what it must be. The jailer writes its pid
    /// into the jail, where Firecracker could have written another one: of the helper's own children
    /// only, of the owner's uid, with what lies in this very jail.
    fn take_over(
        &self,
        launch: &Launch,
        root: &OwnedFd,
        log: &Log,
        launched: &mut Launched,
    ) -> Result<Process> {
        let failed = |reason: &str| log.failed("start", &launch.id, reason.to_owned());
        let mut text = String::new();
        let mut read = || -> io::Result<usize> {
            let file = jail::look(root, "firecracker.pid".as_ref())?;
            // To open a pipe would wait for who writes to it.
            let mode = rustix::fs::fstat(&file)?.st_mode;
            if FileType::from_raw_mode(mode) != FileType::RegularFile {
                return Err(io::Error::other("not a regular file"));
            }
            File::open(descriptor_path(&file))?.take(16).read_to_string(&mut text)
        };
        read().map_err(|error| failed(&format!("no pid of it: {error}")))?;
        let process = text.trim().parse().ok().and_then(Process::hold);
        let process = process.ok_or_else(|| failed("no process has the pid that it wrote"))?;
        if u32::try_from(process.parent) != Ok(self.policy.own_pid) {
            return Err(failed("the pid that it wrote is not of a child of the helper"));
        }
        let owner = self.policy.owner;
        let copy = Jail::executable(&self.policy, &launch.id);
        let copy = copy.ok_or_else(|| failed(MOVED))?;
        let end = Instant::now() + JAILER_LIMIT;
        loop {
            // Until it has executed Firecracker, it is the jailer's child still, and root's.
            let executed = process.executed(owner.uid(), owner.gid());
            match executed.filter(|executed| executed.file == copy) {
                Some(Executed { file, .. }) if process.is_of(owner.uid()) => {
                    let (pid, start_time) = (process.pid, process.start_time);
                    launched.process = Some(Identity { pid, start_time, file });
                    // Not before: a tool's child whose pid was told here is the tool's to reap.
                    watch(&process, log).map_err(|error| failed(&error.to_string()))?;
                    return Ok(process);
                }
                _ if !process.is_running() => return Err(failed("it ended at once")),
                _ if Instant::now() > end => {
                    return Err(failed("the process is not the jail's Firecracker"));
                }
                _ => process.ends_within(STEP),
            };
        }
    }
}

/// Ends what a jailer that failed left, also what has not executed Firecracker yet: its process
/// group. As long as one of it is the helper's child that is not reaped, nobody else's has its id.
fn end_group(group: Pid) {
    let end = Instant::now() + END_LIMIT;
    let has_ended = WaitIdOptions::EXITED | WaitIdOptions::NOHANG;
    while Instant::now() < end
        && let Ok(ended) = waitid(WaitId::Pgid(Some(group)), has_ended)
    {
        if ended.is_none() {
            let _ = rustix::process::kill_process_group(group, Signal::KILL);
            std::thread::sleep(STEP);
        }
    }
}

/// Reaps a child when it ends, and keeps its log within bounds until then.
fn watch(process: &Process, log: &Log) -> io::Result<()> {
    let (descriptor, log) = (process.descriptor.try_clone()?, log.file.try_clone()?);
    let watcher = std::thread::Builder::new().name("vmm".to_owned()).stack_size(64 << 10);
    watcher.spawn(move || {
        while !is_readable(&descriptor, LOG_CHECK) {
            if log.metadata().is_ok_and(|metadata| metadata.len() > LONGEST_LOG) {
                let _ = log.set_len(0);
            }
        }
        let _ = waitid(WaitId::PidFd(descriptor.as_fd()), WaitIdOptions::EXITED);
    })?;
    Ok(())
}

/// Waits until the API answers; only that it does is of interest, not what. It is not asked before
/// there are virtual CPUs: a Firecracker that gives up on its configuration with a question pending
/// dies of that and not of what it has to say.
fn wait_for_answer(process: &Process, root: &OwnedFd) -> Result<(), String> {
    let start = Instant::now();
    while start.elapsed() < ANSWER_LIMIT {
        if !process.is_running() {
            return Err("it ended".to_owned());
        }
        let may_ask = process.has_thread("fc_vcpu") || start.elapsed() > GRACE;
        if may_ask && sockets::in_root(root, API_SOCKET).is_some_and(|socket| answers(&socket)) {
            return Ok(());
        }
        process.ends_within(STEP);
    }
    Err(format!("it does not answer within {} s", ANSWER_LIMIT.as_secs()))
}

fn answers(socket: &OwnedFd) -> bool {
    let Ok(client) = sockets::connect(socket) else { return false };
    let mut client = File::from(client);
    let asked = client.write_all(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n");
    let mut byte = [0];
    asked.is_ok()
        && is_readable(&client, Duration::from_secs(1))
        && client.read(&mut byte).is_ok_and(|read| read == 1)
}

/// A machine's log, opened for appending.
struct Log {
    file: File,
    /// How long it was before.
    start: u64,
}

impl Log {
    /// Opens the file that was checked, or makes one of the owner's.
    fn open(host: &Host, path: &ManagedPath<State>, old: Option<File>) -> Result<Self> {
        let name = path.relative().display();
        let file = match old {
            Some(old) => {
                let options = File::options().read(true).append(true).clone();
                options.open(descriptor_path(&old)).during("open the log", &name)?
            }
            None => {
                let (parent, leaf) = host.state.open_parent("log_path", path)?;
                let flags = OFlags::RDWR | OFlags::APPEND | OFlags::CREATE | OFlags::EXCL;
                let mode = Mode::RUSR | Mode::WUSR;
                let made = rustix::fs::openat(&parent, leaf, flags | OFlags::CLOEXEC, mode);
                let made = made.during("open the log", &name)?;
                let (uid, gid) = (host.policy.owner.uid(), host.policy.owner.gid());
                fchown(&made, Some(uid), Some(gid)).during("open the log", &name)?;
                File::from(made)
            }
        };
        let start = file.metadata().during("open the log", &name)?.len();
        Ok(Self { file, start })
    }

    /// An error with what the log says since the launch.
    fn failed(&self, operation: &'static str, id: &JailId, reason: String) -> HostError {
        let end = self.file.metadata().map_or(0, |metadata| metadata.len());
        let from = self.start.max(end.saturating_sub(LOG_TAIL));
        let mut bytes = vec![0; usize::try_from(end.saturating_sub(from)).unwrap_or_default()];
        let read = self.file.read_at(&mut bytes, from).unwrap_or_default();
        let text = String::from_utf8_lossy(&bytes[..read]);
        let shown = |character: &char| *character == '\n' || !character.is_control();
        let text: String = text.trim().chars().filter(shown).collect();
        HostError::of(operation, id.as_str())(format!("{reason}; the log ends with: {text}"))
    }
}
