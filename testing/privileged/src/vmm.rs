//! A host with the real firecracker and jailer, in mounts of its own, seen with the helper's eleven
//! capabilities and no more. Nextest gives each test its own process, so every child is the test's.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::Duration;

use banger_gates::request::{self, Launch};
use banger_gates::{JailRoot, ManagedPath, Pid, Policy, Runtime, VmmKind, VmmPath};
use banger_host::{Host, HostError};
use rustix::mount::{MountFlags, mount};
use rustix::process::{PidfdFlags, Signal};
use rustix::thread::{CapabilitySet, CapabilitySets};
use serde_json::{Value, json};

use crate::{Directories, Fixture, OWNER, enter_own_mounts, hide_cgroups, unmount_below};

/// Where the programs lie in the test's own mounts.
pub const PROGRAMS: &str = "/usr/local/lib/banger";

/// A host with Firecracker; what still runs or is mounted at its end is ended.
#[derive(Debug)]
pub struct Scene {
    /// Its directories.
    pub fixture: Fixture,
}

/// Makes a scene, or says why it cannot.
pub fn scene() -> Option<Scene> {
    let scene = programs().map(|programs| Scene::with(&programs))?;
    hide_cgroups();
    Some(scene)
}

/// The folder of the real firecracker and jailer, or none with a word where they cannot be run.
pub fn programs() -> Option<PathBuf> {
    if !banger_harness::is_root() {
        banger_harness::skip("root", "jails are root's");
        return None;
    }
    let Some(programs) = banger_harness::vmm_binaries() else {
        banger_harness::skip("vmm-binaries", "cargo xtask vmm-binaries has not been run");
        return None;
    };
    if fs::File::options().read(true).write(true).open("/dev/kvm").is_err() {
        banger_harness::skip("kvm", "Firecracker needs /dev/kvm");
        return None;
    }
    Some(programs)
}

/// Leaves what the unit of the helper has.
fn narrow_capabilities() {
    use rustix::thread::remove_capability_from_bounding_set;
    let kept = CapabilitySet::CHOWN
        | CapabilitySet::DAC_OVERRIDE
        | CapabilitySet::FOWNER
        | CapabilitySet::KILL
        | CapabilitySet::MKNOD
        | CapabilitySet::NET_ADMIN
        | CapabilitySet::NET_RAW
        | CapabilitySet::SETGID
        | CapabilitySet::SETUID
        | CapabilitySet::SYS_ADMIN
        | CapabilitySet::SYS_CHROOT;
    for one in (CapabilitySet::all() - kept).iter() {
        let _ = remove_capability_from_bounding_set(one);
    }
    let sets =
        CapabilitySets { effective: kept, permitted: kept, inheritable: CapabilitySet::empty() };
    rustix::thread::set_capabilities(None, sets).unwrap();
}

/// Sets the mode of a file.
pub fn set_mode(path: impl AsRef<Path>, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

/// An ELF64 file with one segment at 1 MiB that is entered at its first byte.
pub fn elf(code: &[u8]) -> Vec<u8> {
    let mut file = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    let at = 0x10_0000_u64;
    let length = u64::try_from(code.len()).unwrap();
    let half = |file: &mut Vec<u8>, number: u16| file.extend(number.to_le_bytes());
    half(&mut file, 2);
    half(&mut file, 62);
    file.extend(1_u32.to_le_bytes());
    for word in [at + 120, 64, 0] {
        file.extend(u64::to_le_bytes(word));
    }
    file.extend(0_u32.to_le_bytes());
    for number in [64, 56, 1, 0, 0, 0] {
        half(&mut file, number);
    }
    for number in [1_u32, 5] {
        file.extend(number.to_le_bytes());
    }
    for word in [0, at, at, 120 + length, 120 + length, 0x1000] {
        file.extend(u64::to_le_bytes(word));
    }
    file.extend(code);
    file
}

/// A kernel that says some words on the serial port, and then waits for ever. It says them some
/// times: Firecracker's own words get between the bytes of them in the log.
pub fn tiny_kernel(words: &[u8]) -> Vec<u8> {
    // mov edx, 0x3f8; then per byte: mov al, BYTE; out dx, al; then hlt; jmp to the hlt
    let mut code = vec![0xba, 0xf8, 0x03, 0, 0];
    code.extend(words.repeat(8).iter().flat_map(|byte| [0xb0, *byte, 0xee]));
    code.extend([0xf4, 0xeb, 0xfd]);
    elf(&code)
}

/// A kernel that says some words on the serial port over and over.
pub fn endless_kernel(words: &[u8]) -> Vec<u8> {
    // mov edx, 0x3f8; again: (mov al, BYTE; out dx, al) of each byte; jmp again
    let mut code = vec![0xba, 0xf8, 0x03, 0, 0];
    code.extend(words.iter().flat_map(|byte| [0xb0, *byte, 0xee]));
    let back = i8::try_from(3 * words.len() + 2).unwrap();
    code.extend([0xeb, (-back).cast_unsigned()]);
    elf(&code)
}

/// A program that takes any words and does nothing: pause(2) in a loop.
pub fn idle_program() -> Vec<u8> {
    elf(&[0xb8, 34, 0, 0, 0, 0x0f, 0x05, 0xeb, 0xf7])
}

/// Puts firecracker and jailer into this thread's own mounts, at [`PROGRAMS`].
pub fn put_programs(programs: &Path) {
    mount("tmpfs", "/usr/local/lib", "tmpfs", MountFlags::empty(), c"mode=755").unwrap();
    fs::create_dir(PROGRAMS).unwrap();
    set_mode(PROGRAMS, 0o755);
    for name in ["firecracker", "jailer"] {
        let place = Path::new(PROGRAMS).join(name);
        fs::copy(programs.join(name), &place).unwrap();
        set_mode(&place, 0o755);
    }
}

/// The parameters of a launch of the kernel `kernel` in the state directory, without disks.
pub fn launch_params(directories: &Directories, id: &str) -> Value {
    let state = |name: &str| directories.state.join(name);
    json!({
        "binary_path": format!("{PROGRAMS}/firecracker"),
        "vm_id": id,
        "socket_path": directories.runtime.join(format!("fc-{id}.sock")),
        "log_path": state(&format!("{id}.log")),
        "kernel_image_path": state("kernel"),
        "kernel_args": "console=ttyS0",
        "drives": [],
        "vcpu_count": 1,
        "memory_mib": 128,
        "jailer": {
            "binary": format!("{PROGRAMS}/jailer"),
            "chroot_base_dir": directories.jails,
            "uid": OWNER,
            "gid": OWNER,
        },
    })
}

impl Scene {
    /// Makes one with the firecracker and jailer of a folder.
    #[must_use]
    pub fn with(programs: &Path) -> Self {
        rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o077));
        enter_own_mounts();
        put_programs(programs);
        let fixture = Fixture::new();
        narrow_capabilities();
        let scene = Self { fixture };
        scene.write_kernel("kernel", b"hello from the jail\n");
        scene
    }

    /// The helper.
    pub fn host(&self) -> &Host {
        &self.fixture.host
    }

    /// What the gates compare with.
    pub fn policy(&self) -> &Policy {
        self.fixture.policy()
    }

    /// A helper that was started anew.
    pub fn next_helper(&self) -> Host {
        Host::open(self.policy().clone(), &self.fixture.own).unwrap()
    }

    /// Writes a file of the owner's below the state directory.
    pub fn write(&self, name: &str, bytes: &[u8]) -> PathBuf {
        self.fixture.write(name, bytes)
    }

    /// Writes a kernel that says some words.
    pub fn write_kernel(&self, name: &str, words: &[u8]) -> PathBuf {
        self.write(name, &tiny_kernel(words))
    }

    /// What `bangerd` asks for; tests change single fields.
    pub fn params(&self, id: &str) -> Value {
        launch_params(&self.fixture.directories, id)
    }

    /// What the gate makes of what `bangerd` asks for.
    pub fn grant(&self, params: Value) -> Launch {
        let params = serde_json::from_value(params).unwrap();
        request::launch_firecracker(params, self.policy()).unwrap()
    }

    /// Launches a machine and returns its pid.
    pub fn launch(&self, params: Value) -> Result<i32, HostError> {
        let pid = self.host().launch_firecracker(&self.grant(params))?;
        Ok(i32::try_from(pid).unwrap())
    }

    /// A jail's directory.
    pub fn jail(&self, id: &str) -> PathBuf {
        self.fixture.jails.join("firecracker").join(id)
    }

    /// A jail as the gate of the clean-up gives it.
    pub fn jail_root(&self, id: &str) -> JailRoot {
        let path = self.jail(id).join("root");
        JailRoot::parse("chroot_root", path.to_str().unwrap(), self.policy()).unwrap()
    }

    /// Cleans a jail up.
    pub fn clean_up(&self, id: &str) -> Result<(), HostError> {
        self.host().cleanup_jailer_chroot(&self.jail_root(id))
    }

    /// A pid as the gate gives it.
    pub fn pid(&self, number: i32) -> Pid {
        Pid::parse("pid", number.into(), self.policy()).unwrap()
    }

    /// A path below the runtime directory.
    pub fn runtime_path(&self, name: &str) -> ManagedPath<Runtime> {
        let path = self.fixture.runtime.join(name);
        ManagedPath::parse("path", path.to_str().unwrap(), self.policy()).unwrap()
    }

    /// What the log of a machine says.
    pub fn log(&self, id: &str) -> String {
        let path = self.fixture.state.join(format!("{id}.log"));
        String::from_utf8_lossy(&fs::read(path).unwrap_or_default()).into_owned()
    }

    /// Waits until a machine's console has said some words.
    pub fn wait_for_words(&self, id: &str, words: &str) {
        let deadline = banger_harness::GUEST_DEADLINE;
        banger_harness::wait_for(words, deadline, || self.log(id).contains(words).then_some(()));
    }

    /// Ends a machine and takes its jail away.
    pub fn end(&self, id: &str, pid: i32) {
        self.host().kill_process(&self.pid(pid)).unwrap();
        wait_until_gone(pid);
        self.clean_up(id).unwrap();
    }

    /// Everything that a refusal must leave as it was.
    pub fn everything(&self) -> String {
        let mut lines = tree(self.fixture.state.parent().unwrap());
        lines.extend(tree(Path::new(PROGRAMS)));
        lines.push(fs::read_to_string("/proc/thread-self/mountinfo").unwrap());
        lines.extend(children().iter().map(ToString::to_string));
        lines.join("\n")
    }

    /// That nothing of any machine is left.
    pub fn assert_clean(&self) {
        let none = || children().is_empty().then_some(());
        banger_harness::wait_for("the end of all children", Duration::from_secs(10), none);
        let mounts = fs::read_to_string("/proc/thread-self/mountinfo").unwrap();
        let root = self.fixture.jails.to_str().unwrap();
        assert!(!mounts.contains(root), "{mounts}");
        let jails = tree(&self.fixture.jails);
        assert!(jails.len() <= 2, "{jails:#?}");
        let records: Vec<_> = fs::read_dir(self.fixture.own.join("records")).unwrap().collect();
        assert!(records.is_empty(), "{records:?}");
        let links: Vec<_> = fs::read_dir(&self.fixture.runtime).unwrap().flatten().collect();
        assert!(!links.iter().any(|entry| entry.path().is_symlink()), "{links:?}");
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        for pid in children() {
            let pid = rustix::process::Pid::from_raw(pid).unwrap();
            if let Ok(held) = rustix::process::pidfd_open(pid, PidfdFlags::empty()) {
                let _ = rustix::process::pidfd_send_signal(&held, Signal::KILL);
            }
        }
        unmount_below(self.fixture.root());
    }
}

/// A place for the programs as a gate sees it.
pub fn place(path: &str, kind: VmmKind, policy: &Policy) -> VmmPath {
    VmmPath::parse("requested", path, kind, policy).unwrap()
}

/// The children of this process that have not ended.
pub fn children() -> Vec<i32> {
    let own = std::process::id().to_string();
    let pids = fs::read_dir("/proc").unwrap().flatten();
    let pids = pids.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    pids.filter(|pid| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let rest = stat.rsplit_once(')').unwrap_or_default().1;
        rest.split_ascii_whitespace().nth(1) == Some(own.as_str())
    })
    .collect()
}

/// Waits until a child has been reaped.
pub fn wait_until_gone(pid: i32) {
    // Not by its name in /proc, which can be another's by then.
    let gone = || (!children().contains(&pid)).then_some(());
    banger_harness::wait_for("the end of a process", Duration::from_secs(10), gone);
}

/// All files below a directory, with what may not change; times of access are not among it.
pub fn tree(root: &Path) -> Vec<String> {
    use std::os::unix::fs::MetadataExt;
    let Ok(metadata) = root.symlink_metadata() else { return Vec::new() };
    let mut lines = vec![format!(
        "{root:?} {:o} {}:{} {} {} {} {:?}",
        metadata.mode(),
        metadata.uid(),
        metadata.gid(),
        metadata.nlink(),
        metadata.ino(),
        // A machine that runs goes on speaking.
        if root.extension().is_some_and(|kind| kind == "log") { 0 } else { metadata.ctime_nsec() },
        fs::read_link(root).ok()
    )];
    if metadata.is_dir() {
        let mut entries: Vec<_> =
            fs::read_dir(root).unwrap().flatten().map(|entry| entry.path()).collect();
        entries.sort();
        lines.extend(entries.iter().flat_map(|path| tree(path)));
    }
    lines
}

/// A program of a user's that does nothing; ended when dropped.
#[derive(Debug)]
pub struct Idle(pub Child);

impl Idle {
    /// Starts a program as a user.
    pub fn start(program: &Path, words: &[&str], uid: u32) -> Self {
        use std::os::unix::process::CommandExt;
        Self(Command::new(program).args(words).uid(uid).gid(uid).spawn().unwrap())
    }

    /// Its pid.
    pub fn pid(&self) -> i32 {
        i32::try_from(self.0.id()).unwrap()
    }

    /// Whether it still runs.
    pub fn is_running(&mut self) -> bool {
        self.0.try_wait().unwrap().is_none()
    }
}

impl Drop for Idle {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
