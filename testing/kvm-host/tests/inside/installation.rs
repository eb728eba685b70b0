//! The installed banger, and its owner at the root helper's socket.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use banger_helper_api::{ErrorCode, Method};
use banger_privileged_tests::running::Peer;
use rustix::process::{Gid, Uid};
use rustix::thread::{set_thread_groups, set_thread_res_gid, set_thread_res_uid};
use serde_json::{Value, json};

use crate::Inside;
use crate::disk::sparse;
use crate::patience::look_until;
use crate::tool::run;

pub(crate) const OWNER: &str = "alice";
pub(crate) const UNITS: [&str; 3] =
    ["banger-vms.service", "bangerd-root.service", "bangerd.service"];
/// Where the owner's machines are kept, and where the helper keeps their jails.
pub(crate) const STATE: &str = "/var/lib/banger";
pub(crate) const JAILS: &str = "/var/lib/banger-root/jail/firecracker";
/// Where the helper remembers what it made.
pub(crate) const RECORDS: &str = "/run/banger-root/records";
/// The cgroup of the machines' unit.
pub(crate) const MACHINES: &str = "/sys/fs/cgroup/system.slice/banger-vms.service";
/// A place that the helper takes Firecracker from, and that banger does not make.
pub(crate) const PROGRAMS: &str = "/opt/firecracker";
pub(crate) const SOCKET: &str = "/run/banger-root/bangerd-root.sock";
/// How long systemd, or a process, may take for something.
const PATIENCE: Duration = Duration::from_secs(60);

/// The installation, undone when it is dropped.
pub(crate) struct Installed;

impl Installed {
    pub(crate) fn new(inside: &Inside) -> Self {
        Self::from(&inside.data)
    }

    /// Installs the programs of a folder.
    fn from(programs: &Path) -> Self {
        let undo = Self;
        let banger = programs.join("banger");
        run(banger.to_str().expect("a path"), ["system", "install", "--owner", OWNER]);
        undo
    }

    /// The same, with Firecracker beside it.
    pub(crate) fn with_firecracker(inside: &Inside) -> Self {
        Self::put_firecracker(inside);
        Self::new(inside)
    }

    /// The same with a `bangerd` that fails where a test says.
    pub(crate) fn with_faults(inside: &Inside) -> Self {
        Self::put_firecracker(inside);
        let folder = tempfile::tempdir_in(&inside.data).expect("a folder");
        for (from, to) in
            [("banger", "banger"), ("bangerd-faulty", "bangerd"), ("bangerd-root", "bangerd-root")]
        {
            fs::hard_link(inside.data.join(from), folder.path().join(to)).expect("a program");
        }
        Self::from(folder.path())
    }

    fn put_firecracker(inside: &Inside) {
        fs::create_dir(PROGRAMS).expect("a folder");
        for name in ["firecracker", "jailer"] {
            let place = Path::new(PROGRAMS).join(name);
            fs::copy(inside.data.join(name), &place).expect("a program");
            fs::set_permissions(&place, fs::Permissions::from_mode(0o755)).expect("a mode");
        }
    }
}

impl Drop for Installed {
    /// Without the product where it can be: a test that failed leaves anything.
    fn drop(&mut self) {
        let _ =
            Command::new("/usr/local/bin/banger").args(["system", "uninstall", "--force"]).status();
        let _ = fs::write(Path::new(MACHINES).join("cgroup.kill"), "1");
        for words in [
            ["dmsetup", "remove", "--retry", SNAPSHOT].as_slice(),
            &["ip", "link", "delete", TAP],
            &["ip", "link", "delete", BRIDGE],
            &["nft", "delete", "table", "inet", "banger"],
            &["nft", "delete", "table", "bridge", "banger"],
        ] {
            let _ = Command::new(words[0]).args(&words[1..]).stderr(Stdio::null()).status();
        }
        for folder in ["/run/banger", "/run/banger-root", "/var/cache/banger", STATE, PROGRAMS] {
            let _ = fs::remove_dir_all(folder);
        }
        let _ = fs::remove_dir_all("/var/lib/banger-root");
    }
}

/// Runs the installed banger as a user of this machine.
pub(crate) fn banger_as(user: &str, words: &[&str]) -> Output {
    let mut command = Command::new("/usr/sbin/runuser");
    command.args(["-u", user, "--", "/usr/local/bin/banger"]).args(words);
    command.output().expect("runuser")
}

/// What a program wrote.
pub(crate) fn said(output: &Output) -> String {
    let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
    text(&output.stdout) + &text(&output.stderr)
}

pub(crate) fn main_pid(unit: &str) -> String {
    run("systemctl", ["show", "--value", "--property", "MainPID", unit]).trim().to_owned()
}

pub(crate) fn wait_until(what: &str, holds: impl FnMut() -> bool) {
    look_until(what, PATIENCE, holds);
}

/// Whether `bangerd` answers its owner, and its helper answers it.
pub(crate) fn both_answer() -> bool {
    said(&banger_as(OWNER, &["doctor"])).contains("PASS  root helper: answers")
}

/// The owner's uid and gid.
pub(crate) fn owner() -> (u32, u32) {
    let home = fs::metadata(Path::new("/home").join(OWNER)).expect("the owner's home");
    (home.uid(), home.gid())
}

/// Works in a thread that is the owner's and nobody else's.
pub(crate) fn as_owner<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    let (uid, gid) = owner();
    let become_owner = move || {
        let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
        set_thread_groups(&[])?;
        set_thread_res_gid(gid, gid, gid)?;
        set_thread_res_uid(uid, uid, uid)
    };
    let work = move || {
        become_owner().expect("become the owner");
        work()
    };
    let done = std::thread::scope(|scope| scope.spawn(work).join());
    done.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// Asks the installed helper, as the owner.
pub(crate) fn ask(method: Method, params: &Value) -> Result<Value, (ErrorCode, String)> {
    as_owner(|| Peer::connect(Path::new(SOCKET)).call(method, params))
}

/// Has the installed helper do something for its owner.
pub(crate) fn call(method: Method, params: &Value) -> Value {
    ask(method, params).unwrap_or_else(|error| panic!("{method}: {error:?}"))
}

/// Makes a file of the owner's below the state directory.
pub(crate) fn give(name: &str, make: impl FnOnce(&Path)) -> PathBuf {
    let path = Path::new(STATE).join(name);
    make(&path);
    let (uid, gid) = owner();
    chown(&path, Some(uid), Some(gid)).expect("give it to the owner");
    path
}

/// What a machine is made of; its jail, sockets and log are named like it.
pub(crate) struct Machine<'a> {
    pub(crate) name: &'a str,
    pub(crate) kernel: &'a Path,
    pub(crate) initrd: Option<&'a Path>,
    pub(crate) arguments: String,
    /// The path of its only disk.
    pub(crate) disk: Option<&'a str>,
    /// A port of the bridge, and the guest's MAC.
    pub(crate) tap: Option<(&'a str, &'a str)>,
}

impl Machine<'_> {
    /// Launches it, and returns its pid.
    pub(crate) fn launch(&self) -> i32 {
        let (uid, gid) = owner();
        let drives: Vec<Value> = self
            .disk
            .iter()
            .map(|path| json!({ "id": "root", "path": path, "is_root": true }))
            .collect();
        let mut params = json!({
            "binary_path": format!("{PROGRAMS}/firecracker"),
            "vm_id": self.name,
            "socket_path": format!("/run/banger/{}.sock", self.name),
            "vsock_path": self.vsock(),
            "vsock_cid": 3,
            "log_path": format!("{STATE}/{}.log", self.name),
            "kernel_image_path": self.kernel,
            "kernel_args": self.arguments,
            "drives": drives,
            "vcpu_count": 1,
            "memory_mib": 256,
            "limits": { "memory_max_mib": 512 },
            "jailer": {
                "binary": format!("{PROGRAMS}/jailer"),
                "chroot_base_dir": "/var/lib/banger-root/jail",
                "uid": uid,
                "gid": gid,
            },
        });
        if let Some(initrd) = self.initrd {
            params["initrd_path"] = json!(initrd);
        }
        if let Some((tap, mac)) = self.tap {
            params["tap_device"] = json!(tap);
            params["guest_mac"] = json!(mac);
        }
        let started = call(Method::LaunchFirecracker, &params);
        i32::try_from(started["pid"].as_i64().expect("a pid")).expect("a pid")
    }

    /// The socket of its vsock.
    pub(crate) fn vsock(&self) -> PathBuf {
        PathBuf::from(format!("/run/banger/{}.vsock", self.name))
    }

    /// The socket of its API, as the helper is told it.
    pub(crate) fn api_socket(&self) -> String {
        format!("/run/banger/{}.sock", self.name)
    }

    /// Its console and Firecracker's own words.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(format!("{STATE}/{}.log", self.name)).unwrap_or_default()
    }

    /// The directory of its jail.
    pub(crate) fn jail(&self) -> PathBuf {
        Path::new(JAILS).join(self.name)
    }

    /// What `priv.cleanup_jailer_chroot` is told.
    pub(crate) fn jail_root(&self) -> Value {
        json!({ "chroot_root": self.jail().join("root") })
    }

    /// Asserts that nothing of it is left, in whoever's mounts.
    pub(crate) fn assert_gone(&self) {
        assert!(!self.jail().exists(), "{:?}", tree(&self.jail()));
        let mounts = mounts_of_anybody(&self.jail());
        assert!(mounts.is_empty(), "{mounts:#?}");
        assert!(!Path::new(MACHINES).join(self.name).exists(), "its cgroup");
        let record = Path::new(RECORDS).join(format!("launch.{}.json", self.name));
        assert!(!record.exists(), "its record");
        for link in [self.vsock(), self.api_socket().into()] {
            assert!(link.symlink_metadata().is_err(), "{}", link.display());
        }
    }
}

/// Everything below a directory.
fn tree(path: &Path) -> String {
    run("find", [path])
}

/// Every mount below a path that any process sees.
pub(crate) fn mounts_of_anybody(path: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for process in fs::read_dir("/proc").expect("the processes").flatten() {
        let mounts = fs::read_to_string(process.path().join("mountinfo")).unwrap_or_default();
        let path = path.to_str().expect("a path that is text");
        let lines = mounts.lines().filter(|line| line.contains(path));
        found.extend(lines.map(|line| format!("{}: {line}", process.path().display())));
    }
    found
}

pub(crate) const BRIDGE: &str = "br-fc";
pub(crate) const TAP: &str = "tap-fc-one";
pub(crate) const SNAPSHOT: &str = "fc-rootfs-one";
pub(crate) const MAC: &str = "06:00:ac:1e:09:02";
pub(crate) const GUEST: [u8; 4] = [172, 30, 9, 2];
pub(crate) const GATEWAY: [u8; 4] = [172, 30, 9, 1];

/// Has the helper make a bridge, a tap and a snapshot for the machine `one`, and returns what
/// `priv.cleanup_dm_snapshot` takes.
pub(crate) fn make_parts(image: &Path) -> Value {
    let dotted = |bytes| std::net::Ipv4Addr::from(bytes).to_string();
    let cow = give("cow", |path| drop(sparse(path, 16 << 20)));
    let mut network = json!({
        "bridge_name": BRIDGE, "bridge_ip": dotted(GATEWAY), "cidr": "24",
    });
    call(Method::EnsureBridge, &network);
    network["tap_name"] = json!(TAP);
    network["guest_mac"] = json!(MAC);
    network["guest_ip"] = json!(dotted(GUEST));
    call(Method::CreateTap, &network);
    let nat = json!({ "guest_ip": dotted(GUEST), "tap": TAP, "enable": true });
    call(Method::EnsureNat, &nat);
    let snapshot = json!({ "rootfs_path": image, "cow_path": cow, "dm_name": SNAPSHOT });
    call(Method::CreateDmSnapshot, &snapshot)
}
