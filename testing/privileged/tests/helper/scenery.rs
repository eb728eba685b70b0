//! A host on which every request of the tables works as it stands: what they name is there, and
//! beside it what they must not reach.

use std::fs;
use std::os::unix::fs::{chown, symlink};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use banger_gate_tables::{Places, base};
use banger_helper_api::{ErrorCode, Method};
use banger_privileged_sys::loop_device::LoopDevice;
use banger_privileged_tests::OWNER;
use banger_privileged_tests::running::{Peer, RunningHelper};
use banger_privileged_tests::vmm::{self, Idle, PROGRAMS};
use rustix::fs::{CWD, FileType, Mode};
use serde_json::{Value, json};

type Outcome = Result<Value, (ErrorCode, String)>;

/// The host.
pub(crate) struct World {
    pub(crate) helper: RunningHelper,
    pub(crate) places: Places,
    peer: Peer,
    forms: Vec<Idle>,
    _strangers: Vec<Idle>,
    _listeners: Vec<UnixListener>,
    _foreign: LoopDevice,
}

fn owned(path: &Path) {
    std::os::unix::fs::lchown(path, Some(OWNER), Some(OWNER)).unwrap();
}

/// A file that is a kernel by its first bytes and an ext4 file system by all others.
fn image(path: &Path) {
    fs::File::create(path).unwrap().set_len(4 << 20).unwrap();
    let tree = tempfile::tempdir().unwrap();
    fs::create_dir(tree.path().join("etc")).unwrap();
    fs::write(tree.path().join("etc/hostname"), "name").unwrap();
    let mut make = Command::new("/usr/sbin/mke2fs");
    make.args(["-q", "-F", "-t", "ext4", "-d"]).args([tree.path(), path]);
    assert!(make.status().unwrap().success());
    let kernel = vmm::tiny_kernel(b"x\n");
    assert!(kernel.len() < 1024, "the superblock is there");
    let file = fs::File::options().write(true).open(path).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, &kernel, 0).unwrap();
    owned(path);
}

/// Makes what the tables' paths name.
fn furnish(helper: &RunningHelper) -> Vec<UnixListener> {
    let directories = &helper.directories;
    let outside = &directories.outside;
    fs::write(outside.join("secret"), "secret").unwrap();
    fs::create_dir(outside.join("folder")).unwrap();
    fs::write(outside.join("folder/good"), "secret").unwrap();
    for root in [&directories.state, &directories.runtime] {
        fs::create_dir(root.join("folder")).unwrap();
        owned(&root.join("folder"));
        symlink(root.join("folder"), root.join("folder-link")).unwrap();
        symlink(outside.join("folder"), root.join("folder-link-outside")).unwrap();
        let mode = Mode::RUSR | Mode::WUSR;
        rustix::fs::mknodat(CWD, root.join("fifo"), FileType::Fifo, mode, 0).unwrap();
        owned(&root.join("fifo"));
    }
    let state = &directories.state;
    image(&state.join("image"));
    for name in ["good", "folder/good", "cow", "kernel", "initrd", "log", "metrics", "named"] {
        fs::copy(state.join("image"), state.join(name)).unwrap();
        owned(&state.join(name));
    }
    symlink(state.join("good"), state.join("link")).unwrap();
    symlink(outside.join("secret"), state.join("link-outside")).unwrap();
    symlink(state.join("link-to-itself"), state.join("link-to-itself")).unwrap();
    fs::hard_link(outside.join("secret"), state.join("hard-link-outside")).unwrap();
    fs::hard_link(state.join("named"), state.join("hard-link")).unwrap();
    fs::write(state.join("roots"), "root's").unwrap();

    let runtime = &directories.runtime;
    fs::write(runtime.join("file"), "content").unwrap();
    owned(&runtime.join("file"));
    fs::create_dir(runtime.join("roots-folder")).unwrap();
    let listeners = ["api.sock", "named.sock", "others.sock", "folder/api.sock"]
        .map(|name| UnixListener::bind(runtime.join(name)).unwrap())
        .into();
    fs::hard_link(runtime.join("named.sock"), runtime.join("hard-link")).unwrap();
    chown(runtime.join("others.sock"), Some(OWNER + 1), Some(OWNER)).unwrap();
    listeners
}

/// A process that executes a program of this name, with some words.
fn start(program: &Path, words: &[&str], uid: u32) -> Idle {
    let idle = Idle::start(program, words, uid);
    let link = format!("/proc/{}/exe", idle.pid());
    let executes = || fs::read_link(&link).ok().filter(|path| path == program).map(drop);
    banger_harness::wait_for("exec", Duration::from_secs(10), executes);
    idle
}

impl World {
    /// Makes it, in the namespaces of this thread; the programs are there.
    pub(crate) fn new() -> Self {
        let helper = RunningHelper::start();
        let listeners = furnish(&helper);
        let mut places = helper.places();
        places.vmm = PROGRAMS.to_owned();
        let directories = &helper.directories;
        let folder = directories.root().join("programs");
        fs::create_dir(&folder).unwrap();
        vmm::set_mode(&folder, 0o755);
        let programs = ["firecracker", "another"].map(|name| folder.join(name));
        for program in &programs {
            fs::write(program, vmm::idle_program()).unwrap();
            vmm::set_mode(program, 0o755);
        }
        let inside = format!("{}/x.sock", places.runtime);
        let beside = format!("{}-other/x.sock", places.runtime);
        let [firecracker, another] = programs.each_ref();
        let strangers = vec![
            start(another, &["-a", &inside], OWNER),
            start(firecracker, &["-a", &inside], OWNER + 1),
            start(firecracker, &["-a", "/tmp/x.sock"], OWNER),
            start(firecracker, &["-a", &beside], OWNER),
        ];
        for (place, idle) in places.living.strangers.iter_mut().zip(&strangers) {
            *place = u32::try_from(idle.pid()).unwrap();
        }
        // The first one's pid was a machine's before.
        let record = json!({
            "links": [], "disks": [], "process": {"pid": strangers[0].pid(), "start_time": 1},
        });
        fs::write(directories.own.join("records/launch.before.json"), record.to_string()).unwrap();
        let foreign = directories.outside.join("disk");
        fs::copy(directories.state.join("image"), &foreign).unwrap();
        let foreign = LoopDevice::attach(&fs::File::open(&foreign).unwrap(), true).unwrap();
        places.living.foreign_loop = foreign.path().display().to_string();
        let peer = helper.connect();
        let mut world = Self {
            helper,
            places,
            peer,
            forms: Vec::new(),
            _strangers: strangers,
            _listeners: listeners,
            _foreign: foreign,
        };
        world.make_ready();
        world.make_jails();
        world
    }

    /// What must not lie where jails do.
    fn make_jails(&self) {
        let jails = self.helper.directories.jails.join("firecracker");
        let outside = self.helper.directories.outside.join("folder");
        fs::create_dir(outside.join("root")).unwrap();
        symlink(&outside, jails.join("link")).unwrap();
        symlink(jails.join("link-to-itself"), jails.join("link-to-itself")).unwrap();
        fs::hard_link(outside.join("good"), jails.join("hard-link")).unwrap();
        fs::create_dir(jails.join("root-link")).unwrap();
        vmm::set_mode(jails.join("root-link"), 0o711);
        symlink(outside.join("root"), jails.join("root-link/root")).unwrap();
    }

    /// Has a method done.
    pub(crate) fn call(&mut self, method: Method, params: &Value) -> Outcome {
        self.peer.call(method, params)
    }

    fn done(&mut self, method: Method, params: &Value) -> Value {
        let outcome = self.call(method, params);
        outcome.unwrap_or_else(|error| panic!("{method} {params}: {error:?}"))
    }

    /// A request of a method that works as things are.
    pub(crate) fn base(&self, method: Method) -> Value {
        base(method, &self.places)
    }

    /// Puts everything where it was, for the next one that works.
    pub(crate) fn make_ready(&mut self) {
        for method in [Method::EnsureBridge, Method::CreateTap] {
            self.done(method, &self.base(method));
        }
        let runtime = self.helper.directories.runtime.clone();
        let outside = self.helper.directories.outside.join("secret");
        let links = [("link", runtime.join("api.sock")), ("link-outside", outside)];
        for (name, target) in
            links.into_iter().chain([("link-to-itself", runtime.join("link-to-itself"))])
        {
            let _ = fs::remove_file(runtime.join(name));
            symlink(target, runtime.join(name)).unwrap();
        }
        let _ = fs::remove_file(self.helper.directories.state.join("nothing"));
        let running = self.base(Method::ProcessRunning);
        if self.done(Method::ProcessRunning, &running)["running"] == false {
            self.launch_machine();
        }
        let inside = runtime.join("x.sock").display().to_string();
        let joined = format!("--api-sock={inside}");
        let forms: [&[&str]; 3] = [&["--api-sock", &inside], &[&joined], &["-a", &inside]];
        let program = self.helper.directories.root().join("programs/firecracker");
        if self.forms.iter_mut().any(|idle| !idle.is_running()) || self.forms.is_empty() {
            self.forms = forms.map(|words| start(&program, words, OWNER)).into();
            for (place, idle) in self.places.living.forms.iter_mut().zip(&self.forms) {
                *place = u32::try_from(idle.pid()).unwrap();
            }
        }
    }

    fn launch_machine(&mut self) {
        let id = self.places.living.machine_id.clone();
        let root = self.helper.directories.jails.join(format!("firecracker/{id}/root"));
        self.done(Method::CleanupJailerChroot, &json!({"chroot_root": root}));
        let mut params = vmm::launch_params(&self.helper.directories, &id);
        params["socket_path"] = json!(self.helper.directories.runtime.join("machine.sock"));
        let pid = self.done(Method::LaunchFirecracker, &params)["pid"].as_u64().unwrap();
        self.places.living.machine = u32::try_from(pid).unwrap();
    }

    /// Has a request done that must work, and undoes it. Without the device-mapper some cannot: what
    /// they fail of then.
    pub(crate) fn works(&mut self, method: Method, params: &Value) -> Option<String> {
        if method == Method::CleanupJailerChroot {
            let id = params["chroot_root"].as_str().unwrap().rsplit('/').nth(1).unwrap();
            let mut launch = self.base(Method::LaunchFirecracker);
            launch["vm_id"] = id.into();
            let launched = self.done(Method::LaunchFirecracker, &launch);
            self.end(&launched["pid"]);
        }
        let outcome = self.call(method, params);
        let needs_mapper = [Method::CreateDmSnapshot, Method::FsckSnapshot].contains(&method);
        if let (true, Err((_, message))) = (needs_mapper, &outcome) {
            let is_missing = method == Method::FsckSnapshot;
            assert!(is_missing || !Path::new("/dev/mapper/control").exists(), "{message}");
            return Some(message.clone());
        }
        let result = outcome
            .unwrap_or_else(|error| panic!("{method} {params}: {error:?}\n{}", self.helper.log()));
        match method {
            Method::LaunchFirecracker => {
                self.end(&result["pid"]);
                let id = params["vm_id"].as_str().unwrap();
                let root = self.helper.directories.jails.join(format!("firecracker/{id}/root"));
                self.done(Method::CleanupJailerChroot, &json!({"chroot_root": root}));
            }
            Method::CreateDmSnapshot => drop(self.done(Method::CleanupDmSnapshot, &result)),
            Method::ProcessRunning => assert_eq!(result["running"], true),
            Method::FindFirecrackerPid => assert_eq!(result["pid"], self.places.living.machine),
            Method::CleanupJailerChroot => {
                let root = PathBuf::from(params["chroot_root"].as_str().unwrap());
                assert!(!root.parent().unwrap().exists());
            }
            Method::KillProcess => self.wait_for_end(&params["pid"]),
            _ => {}
        }
        None
    }

    fn end(&mut self, pid: &Value) {
        self.done(Method::KillProcess, &json!({"pid": pid}));
        self.wait_for_end(pid);
    }

    fn wait_for_end(&mut self, pid: &Value) {
        let pid: i32 = pid.as_i64().unwrap().try_into().unwrap();
        // This process's own children are reaped when they are asked.
        let mut has_ended = || {
            self.forms.iter_mut().filter(|idle| idle.pid() == pid).for_each(|idle| {
                idle.is_running();
            });
            (!Path::new(&format!("/proc/{pid}")).exists()).then_some(())
        };
        banger_harness::wait_for("a process's end", Duration::from_secs(10), &mut has_ended);
    }
}

/// Puts another thing where a program lies, as its class says, while something is done.
pub(crate) fn with_other_program(class: &str, path: &Path, act: impl FnOnce()) {
    let parent = path.parent().unwrap();
    let kept = parent.with_file_name("kept");
    let is_replaced = ["symbolic link", "other type", "nothing there"].contains(&class);
    if is_replaced {
        fs::rename(path, &kept).unwrap();
    }
    match class {
        "symbolic link" => symlink(&kept, path).unwrap(),
        "other type" => fs::create_dir(path).unwrap(),
        "foreign owner" => chown(path, Some(OWNER), Some(OWNER)).unwrap(),
        "group-writable" => vmm::set_mode(path, 0o775),
        "writable parent" => vmm::set_mode(parent, 0o775),
        "not executable" => vmm::set_mode(path, 0o644),
        _ => {}
    }
    act();
    if is_replaced {
        let _ = fs::remove_file(path);
        let _ = fs::remove_dir(path);
        fs::rename(&kept, path).unwrap();
    }
    chown(path, Some(0), Some(0)).unwrap();
    vmm::set_mode(path, 0o755);
    vmm::set_mode(parent, 0o755);
}
