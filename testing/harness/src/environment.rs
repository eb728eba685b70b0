//! A place of its own for one test.

use std::ffi::OsStr;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::process::Signal;
use serde_json::Value;

use crate::assets::DEFAULT_KERNEL;
use crate::invocation::{Finished, Invocation};
use crate::leak::Leaks;
use crate::network::{self, OwnNetwork};
use crate::processes::{Process, processes_mentioning};
use crate::user::User;

/// The name of the image that [`Contents::Busybox`] holds.
pub const BUSYBOX_IMAGE: &str = "busybox";

/// What the state directory holds at the start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Contents {
    /// Nothing; it does not even exist.
    Empty,
    /// The default kernel.
    Kernel,
    /// The default kernel and an image of nothing but a busybox.
    Busybox,
    /// The default kernel and the default image.
    Debian,
}

/// State, cache and runtime directories of one test, and all that runs there.
#[derive(Debug)]
pub struct Environment {
    base: PathBuf,
    programs: PathBuf,
    prefix: Vec<String>,
    network: Option<OwnNetwork>,
    home: PathBuf,
    torn_down: bool,
}

/// Short, because a unix socket's path has at most 107 bytes.
fn make_base() -> std::io::Result<PathBuf> {
    let folder = tempfile::Builder::new().prefix("bgr").tempdir_in("/var/tmp")?;
    let base = folder.path();
    // The daemon of a root user runs as another uid and must get through.
    std::fs::set_permissions(base, PermissionsExt::from_mode(0o711))?;
    for (name, mode) in [("h", 0o755), ("t", 0o1777)] {
        std::fs::create_dir(base.join(name))?;
        std::fs::set_permissions(base.join(name), PermissionsExt::from_mode(mode))?;
    }
    Ok(folder.keep())
}

impl Environment {
    /// Makes a place for the user who runs the tests. Root's has a network of its own, cut off from
    /// the host's, unless something may have to be pulled.
    #[must_use]
    pub fn new(contents: Contents) -> Self {
        Self::try_new(contents).unwrap_or_else(|error| panic!("{error:#}"))
    }

    /// The same for who is no test and does not panic.
    pub(crate) fn try_new(contents: Contents) -> Result<Self> {
        let assets = (contents != Contents::Empty).then(crate::assets::find).transpose()?;
        let base = make_base().context("make a folder in /var/tmp")?;
        let mut environment = Self {
            programs: crate::program_folder(),
            prefix: Vec::new(),
            network: None,
            home: base.join("h"),
            torn_down: false,
            base,
        };
        if crate::is_root() && matches!(contents, Contents::Busybox | Contents::Debian) {
            let network = OwnNetwork::new(&environment.base);
            environment.prefix = network.prefix();
            environment.network = Some(network);
        }
        if let Some(assets) = assets {
            assets.give(contents, &environment.state()).context("shared images")?;
        }
        Ok(environment)
    }

    /// Ends everything by force and removes the folder, without a look at what was left.
    pub(crate) fn discard(mut self) {
        self.torn_down = true;
        self.remove();
    }

    /// Runs everything in the network of the thread that runs it, which is a test's own.
    #[must_use]
    pub fn in_callers_network(mut self) -> Self {
        self.network = None;
        self.prefix.clear();
        self
    }

    /// Takes `banger` and `bangerd` from this folder.
    #[must_use]
    pub fn with_programs(mut self, folder: PathBuf) -> Self {
        self.programs = folder;
        self
    }

    /// Makes a place for another user, with copies of the programs that the
    /// user can reach; needs root.
    #[must_use]
    pub fn for_user(user: &User, contents: Contents) -> Self {
        let mut environment = Self::new(contents);
        let programs = environment.base.join("b");
        std::fs::create_dir(&programs).expect("make a folder");
        for name in ["banger", "bangerd"] {
            std::fs::copy(environment.programs.join(name), programs.join(name))
                .expect("copy a program");
        }
        let owner = format!("{}:{}", user.ids().0, user.ids().1);
        if contents != Contents::Empty {
            // A hard link would change the owner of the shared file.
            let (linked, own) = (environment.state(), environment.base.join("copy"));
            let status = Command::new("/bin/cp")
                .args(["-a", "--sparse=always", "-T"])
                .arg(&linked)
                .arg(&own)
                .status();
            assert!(status.is_ok_and(|status| status.success()), "copy the images");
            std::fs::remove_dir_all(&linked).expect("remove the links");
            std::fs::rename(&own, &linked).expect("put the copy in place");
            let status = Command::new("/bin/chown").args(["-R", &owner]).arg(&linked).status();
            assert!(status.is_ok_and(|status| status.success()), "give the images away");
        }
        let status =
            Command::new("/bin/chown").args([&owner, "--"]).arg(&environment.base).status();
        assert!(status.is_ok_and(|status| status.success()), "give the folder away");
        environment.prefix = user.prefix();
        environment.network = None;
        user.home().clone_into(&mut environment.home);
        environment.programs = programs;
        environment
    }

    /// Runs a line of words on the host, in the network that the VMs of this environment share with
    /// it; fails unless it succeeds.
    #[track_caller]
    pub fn in_network(&self, line: &str) -> String {
        self.network.as_ref().expect("the environment has a network of its own").run(line)
    }

    /// Returns a command of the host's, to be run in that network.
    #[must_use]
    pub fn command_in_network(&self, words: &[&str]) -> std::process::Command {
        let network = self.network.as_ref().expect("the environment has a network of its own");
        let prefix = network.prefix();
        let mut command = std::process::Command::new(&prefix[0]);
        command.args(&prefix[1..]).args(words);
        command
    }

    /// The folder that everything lies below.
    #[must_use]
    pub fn base(&self) -> &Path {
        &self.base
    }

    /// `BANGER_STATE_DIR`.
    #[must_use]
    pub fn state(&self) -> PathBuf {
        self.base.join("s")
    }

    /// `BANGER_CACHE_DIR`.
    #[must_use]
    pub fn cache(&self) -> PathBuf {
        self.base.join("c")
    }

    /// `BANGER_RUNTIME_DIR`.
    #[must_use]
    pub fn runtime(&self) -> PathBuf {
        runtime_of(&self.base)
    }

    /// A folder for the test's own files, which every user can read.
    #[must_use]
    pub fn home(&self) -> &Path {
        &self.home
    }

    /// The bare command, for a [`crate::Terminal`].
    #[must_use]
    pub fn command<S: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = S>) -> Command {
        let program = self.programs.join("banger");
        let mut command = match self.prefix.split_first() {
            Some((first, rest)) => {
                let mut command = Command::new(first);
                command.args(rest).arg(program);
                command
            }
            None => Command::new(program),
        };
        command.args(arguments).env_clear().current_dir(&self.home);
        command.env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
        command.env("HOME", &self.home).env("LANG", "C.UTF-8").env("TMPDIR", self.base.join("t"));
        command.env("BANGER_STATE_DIR", self.state());
        command.env("BANGER_CACHE_DIR", self.cache());
        command.env("BANGER_RUNTIME_DIR", self.runtime());
        // What apt needs to reach the mirror of this machine.
        for name in ["http_proxy", "https_proxy", "no_proxy"] {
            if let Some(value) = std::env::var_os(name) {
                command.env(name, value);
            }
        }
        command
    }

    /// A run of `banger` with these arguments.
    #[must_use]
    pub fn banger<S: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = S>) -> Invocation {
        Invocation::new(self.command(arguments))
    }

    /// Imports a tar stream as an image.
    #[must_use]
    pub fn import(&self, name: &str, archive: &[u8]) -> Invocation {
        let path = self.home.join(format!("{name}.tar"));
        std::fs::write(&path, archive).expect("write the archive");
        self.banger(["image", "import", "--name", name]).arg(path)
    }

    /// Starts a VM of the busybox image in the background.
    pub fn start_busybox(&self, name: &str) {
        self.banger(["vm", "run", "-d", "--image", BUSYBOX_IMAGE, "--name", name]).ok();
    }

    /// Runs a command in a VM.
    #[must_use]
    pub fn exec<S: AsRef<OsStr>>(
        &self,
        vm: &str,
        command: impl IntoIterator<Item = S>,
    ) -> Invocation {
        let mut invocation = self.banger(["vm", "exec", vm, "--"]);
        invocation.command().args(command);
        invocation
    }

    /// What `vm show --json` says.
    #[track_caller]
    #[must_use]
    pub fn show(&self, vm: &str) -> Value {
        self.banger(["vm", "show", vm, "--json"]).ok().json()
    }

    /// The folder of the kernel that VMs boot by default.
    #[must_use]
    pub fn kernel(&self) -> PathBuf {
        self.state().join("kernels").join(DEFAULT_KERNEL)
    }

    /// What its manifest says.
    #[must_use]
    pub fn kernel_manifest(&self) -> Value {
        let bytes = std::fs::read(self.kernel().join("manifest.json")).expect("a manifest");
        serde_json::from_slice(&bytes).expect("a manifest is JSON")
    }

    /// Has all guests held by a `bangerd` with fault hooks, and gives Firecracker, which cannot hold
    /// one, a kernel that does nothing.
    pub fn hold_guests(&self, kernel: &[u8]) {
        let hold = self.state().join("held-guests");
        std::fs::write(&hold, "").expect("write a file");
        std::fs::set_permissions(&hold, PermissionsExt::from_mode(0o644)).expect("a mode");
        // The shared file has other names.
        let path = self.kernel().join("vmlinux");
        let old = std::fs::metadata(&path).expect("the kernel");
        std::fs::remove_file(&path).expect("remove a name");
        std::fs::write(&path, kernel).expect("write a kernel");
        std::fs::set_permissions(&path, old.permissions()).expect("a mode");
        std::os::unix::fs::chown(&path, Some(old.uid()), Some(old.gid())).expect("an owner");
    }

    /// The names of the VMs.
    #[must_use]
    pub fn vms(&self) -> Vec<String> {
        let list = self.banger(["vm", "list", "--json"]).ok().json();
        let list = list
            .as_array()
            .or_else(|| list.get("vms").and_then(Value::as_array))
            .cloned()
            .unwrap_or_default();
        list.iter().filter_map(|vm| vm["name"].as_str().map(str::to_owned)).collect()
    }

    /// The host process of a running VM.
    #[track_caller]
    #[must_use]
    pub fn vmm(&self, vm: &str) -> Process {
        let pid = self.show(vm)["runtime"]["pid"].as_u64().and_then(|pid| u32::try_from(pid).ok());
        let pid = pid.unwrap_or_else(|| panic!("{vm} has no process"));
        self.processes()
            .into_iter()
            .find(|process| process.pid == pid)
            .expect("the VM's process is there")
    }

    /// Living processes of this environment.
    #[must_use]
    pub fn processes(&self) -> Vec<Process> {
        processes_mentioning(&self.base)
    }

    /// The daemon, if it runs.
    #[must_use]
    pub fn daemon(&self) -> Option<Process> {
        let state = self.state().display().to_string();
        self.processes().into_iter().find(|process| {
            process.command.contains("--state-dir") && process.command.contains(&state)
        })
    }

    /// Asks the daemon to end and waits until it has.
    pub fn stop_daemon(&self) {
        if self.daemon().is_none() {
            return;
        }
        self.banger(["daemon", "stop"]).deadline(Duration::from_secs(60)).ok();
        crate::wait_for("the daemon's end", Duration::from_secs(30), || {
            self.daemon().is_none().then_some(())
        });
    }

    /// Deletes the VMs, stops the daemon and fails if anything is left.
    ///
    /// Dropping the environment does the same; this shows the failing line.
    #[track_caller]
    pub fn finish(mut self) {
        self.tear_down();
    }

    #[track_caller]
    fn tear_down(&mut self) {
        let mut faults = Vec::new();
        if self.state().exists() {
            let vms = self.vms();
            if !vms.is_empty() {
                let gone =
                    self.banger(["vm", "delete"].iter().map(ToString::to_string).chain(vms)).run();
                if gone.exit_code() != Some(0) {
                    faults.push(gone.to_string());
                }
            }
        }
        self.stop_daemon();
        if let Some(network) = self.network.take() {
            faults.extend(network.taps().into_iter().map(|tap| format!("left behind: {tap}")));
        }
        // A killed client's last child may need a moment to die.
        let mut leaks = Leaks::of(&self.base);
        for _ in 0..100 {
            if leaks.is_empty() {
                break;
            }
            std::thread::sleep(Duration::from_millis(50));
            leaks = Leaks::of(&self.base);
        }
        if !leaks.is_empty() {
            faults.push(format!("left behind:\n{leaks}"));
        }
        if !faults.is_empty() {
            self.show_logs();
        }
        self.remove();
        self.torn_down = true;
        assert!(faults.is_empty(), "{}", faults.join("\n"));
    }

    #[expect(clippy::print_stderr, reason = "the test runner shows it with the failure")]
    fn show_logs(&self) {
        let mut files = vec![self.state().join("bangerd.log"), self.runtime().join("bangerd.log")];
        for entry in std::fs::read_dir(self.state().join("vms")).into_iter().flatten().flatten() {
            files.push(entry.path().join("console.log"));
        }
        for file in files {
            let Ok(bytes) = std::fs::read(&file) else { continue };
            let tail = &bytes[bytes.len().saturating_sub(6000)..];
            eprintln!("--- {}\n{}", file.display(), String::from_utf8_lossy(tail).trim_end());
        }
    }

    /// Ends everything by force and removes the folder.
    fn remove(&mut self) {
        self.network = None;
        end(&self.base);
    }

    /// Runs a command on the host and fails unless it succeeds.
    #[track_caller]
    pub fn host(&self, program: &str, arguments: &[&str]) -> Finished {
        let program =
            crate::find_program(program).unwrap_or_else(|| panic!("{program} is missing"));
        let mut command = Command::new(program);
        command.args(arguments).current_dir(&self.home).env("HOME", &self.home);
        Invocation::new(command).deadline(Duration::from_secs(120)).ok()
    }
}

impl Drop for Environment {
    fn drop(&mut self) {
        if self.torn_down {
            return;
        }
        if std::thread::panicking() {
            self.show_logs();
            self.remove();
        } else if let Err(panic) = catch_unwind(AssertUnwindSafe(|| self.tear_down())) {
            self.remove();
            resume_unwind(panic);
        }
    }
}

fn runtime_of(base: &Path) -> PathBuf {
    base.join("r")
}

/// Ends by force everything of the environment in the folder `base`, and removes the folder: for who
/// is told to end and cannot wait for the [`Environment`]'s own end.
pub fn end(base: &Path) {
    for _ in 0..50 {
        let left = processes_mentioning(base);
        if left.is_empty() {
            break;
        }
        for process in left {
            process.signal(Signal::KILL);
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    network::forget_helper(&runtime_of(base));
    // Never walks into what is mounted below it: a killed program may have left the host's own /dev
    // or /proc there.
    let mount_points = || {
        let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let points = table.lines().filter_map(|line| line.split(' ').nth(4).map(PathBuf::from));
        points.filter(|point| point.starts_with(base)).collect::<Vec<_>>()
    };
    // The last mounted lies deepest.
    for point in mount_points().iter().rev() {
        let _ = Command::new("/bin/umount").args(["--lazy", "--"]).arg(point).status();
    }
    if mount_points().is_empty() {
        let _ = Command::new("/bin/rm").args(["-rf", "--one-file-system", "--"]).arg(base).status();
    }
}
