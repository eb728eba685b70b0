//! `banger doctor --fix` on the installed banger: each kind of thing that a machine leaves, beside
//! a foreign one that looks like it.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};

use banger_helper_api::Method;
use banger_privileged_tests::vmm::tiny_kernel;
use serde_json::{Value, json};

use crate::Inside;
use crate::disk::{self, Snapshot, sparse};
use crate::firecracker::Stranger;
use crate::installation::{
    BRIDGE, GATEWAY, Installed, JAILS, MACHINES, Machine, OWNER, STATE, banger_as, call, give,
    said, wait_until,
};
use crate::tool::{Undo, run};

const LOST: &str = "aaaaaaaa00112233445566778899aabb";
const FOREIGN: &str = "bbbbbbbb00112233445566778899aabb";
const TAP: &str = "tap-fc-aaaaaaaa";
const FOREIGN_TAP: &str = "tap-fc-bbbbbbbb";
const FLUSHED_TAP: &str = "tap-fc-cccccccc";

fn doctor(user: &str, words: &[&str]) -> Value {
    let output = banger_as(user, &[&["doctor", "--json"][..], words].concat());
    serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|error| panic!("{error}: {}", said(&output)))
}

fn kinds(found: &Value) -> Vec<String> {
    let found = found.as_array().expect("a list").iter();
    let mut kinds: Vec<String> =
        found.map(|it| it["kind"].as_str().expect("a kind").to_owned()).collect();
    kinds.sort();
    kinds.dedup();
    kinds
}

fn leftovers(report: &Value) -> Vec<String> {
    let checks = report["checks"].as_array().expect("checks").iter();
    let found = checks.filter(|check| check["name"] == "leftovers" && check["status"] == "WARN");
    found.map(|check| check["detail"].to_string()).collect()
}

fn loop_of(file: &Path) -> String {
    run("losetup", ["--find", "--show", file.to_str().expect("text")]).trim().to_owned()
}

fn is_attached(device: &str) -> bool {
    Path::new("/sys/block").join(device.trim_start_matches("/dev/")).join("loop").exists()
}

/// Things of others that look like ours; all of them are there until this is dropped.
struct Foreign {
    snapshot: Option<Snapshot>,
    folder: tempfile::TempDir,
    device: String,
    process: Child,
    _undo: Vec<Undo>,
}

impl Foreign {
    fn make() -> Self {
        let folder = tempfile::tempdir_in("/var/tmp").expect("a folder");
        let vm = folder.path().join("vms").join(FOREIGN);
        fs::create_dir_all(&vm).expect("a folder");
        let [base, cow, work] = ["base.ext4", "root.cow", "work.ext4"].map(|name| {
            let path = vm.join(name);
            drop(sparse(&path, 1 << 20));
            path
        });
        let snapshot = Snapshot::make(&format!("fc-rootfs-{FOREIGN}"), &base, &cow);
        let device = loop_of(&work);
        run("ip", ["tuntap", "add", "dev", FOREIGN_TAP, "mode", "tap", "user", "bob"]);
        for path in Self::folders() {
            fs::create_dir_all(&path).expect("a folder");
        }
        let id = format!("--id={FOREIGN}");
        let program = "exec -a firecracker bash -c 'sleep 1000; :' firecracker \"$0\"";
        let words = ["-u", OWNER, "--", "bash", "-c", program, &id];
        let process = Command::new("/usr/sbin/runuser")
            .args(words)
            .process_group(0)
            .spawn()
            .expect("a process");
        let undo =
            [["ip", "link", "delete", FOREIGN_TAP].as_slice(), &["losetup", "--detach", &device]];
        let undo = undo.into_iter().map(Undo::with).collect();
        Self { snapshot: Some(snapshot), folder, device, process, _undo: undo }
    }

    fn folders() -> [PathBuf; 3] {
        [
            Path::new(STATE).join("vms/notes"),
            Path::new(JAILS).join("notes"),
            Path::new(MACHINES).join("foreign"),
        ]
    }

    fn assert_there(&mut self) {
        let name = format!("fc-rootfs-{FOREIGN}");
        assert!(disk::names().contains(&name), "another's device");
        assert!(is_attached(&self.device), "another's loop device");
        assert!(Path::new("/sys/class/net").join(FOREIGN_TAP).exists(), "another's tap");
        assert!(self.process.try_wait().expect("its state").is_none(), "another's process");
        assert!(self.folder.path().join("vms").join(FOREIGN).is_dir());
        for path in Self::folders() {
            assert!(path.is_dir(), "{}", path.display());
        }
    }
}

impl Drop for Foreign {
    fn drop(&mut self) {
        drop(self.snapshot.take());
        // With all that it has started.
        let group = format!("-{}", self.process.id());
        let _ = Command::new("/bin/kill").args(["-KILL", "--", &group]).status();
        let _ = self.process.wait();
        for path in Self::folders() {
            let _ = fs::remove_dir(path);
        }
    }
}

/// A tap of the installed banger, with elements in the firewall.
fn make_tap(name: &str, last: u8) {
    let dotted = |bytes: [u8; 4]| std::net::Ipv4Addr::from(bytes).to_string();
    let mut network = json!({ "bridge_name": BRIDGE, "bridge_ip": dotted(GATEWAY), "cidr": "24" });
    call(Method::EnsureBridge, &network);
    network["tap_name"] = json!(name);
    network["guest_mac"] = json!(format!("06:00:ac:1e:09:{last:02x}"));
    network["guest_ip"] = json!(dotted([172, 30, 9, last]));
    call(Method::CreateTap, &network);
}

/// Makes all that a machine has, for one that nobody knows; returns its process and a loop device.
fn make_lost() -> (Stranger, String) {
    run("runuser", ["-u", OWNER, "--", "mkdir", "-p", &format!("{STATE}/vms/{LOST}")]);
    let file = |name: &str| give(&format!("vms/{LOST}/{name}"), |path| drop(sparse(path, 4 << 20)));
    let (base, cow, work) = (file("base.ext4"), file("root.cow"), file("work.ext4"));
    make_tap(TAP, 2);
    let snapshot =
        json!({ "rootfs_path": base, "cow_path": cow, "dm_name": format!("fc-rootfs-{LOST}") });
    call(Method::CreateDmSnapshot, &snapshot);
    let kernel = give("tiny", |path| {
        fs::write(path, tiny_kernel(b"hello from the jail\n")).expect("a kernel");
    });
    let machine = Machine {
        name: LOST,
        kernel: &kernel,
        initrd: None,
        arguments: "console=ttyS0".to_owned(),
        disk: None,
        tap: None,
    };
    let process = Stranger::hold(machine.launch());
    fs::remove_file(&kernel).expect("the kernel");
    (process, loop_of(&work))
}

/// Nothing of the lost machine is in a folder that was its own.
fn assert_gone() {
    for path in [Path::new(JAILS), Path::new(MACHINES), &Path::new(STATE).join("vms")] {
        assert!(!path.join(LOST).exists(), "{}", path.display());
    }
}

#[test]
fn each_kind_is_removed_and_its_foreign_look_alike_stays() {
    let Some(inside) = Inside::get() else { return };
    let installed = Installed::with_firecracker(&inside);
    wait_until("the daemon answers", || banger_as(OWNER, &["vm", "list"]).status.success());
    let (process, device) = make_lost();
    let mut foreign = Foreign::make();

    let before = doctor(OWNER, &[]);
    assert!(!leftovers(&before).is_empty(), "{before}");
    assert!(!process.has_ended() && is_attached(&device), "looking changes nothing");
    let fixed = doctor(OWNER, &["--fix"]);
    assert_eq!(fixed["fix"]["kept"], json!([]), "{fixed}");
    assert_eq!(
        kinds(&fixed["fix"]["removed"]),
        ["device", "folder", "jail", "loop", "tap", "vmm"],
        "{fixed}"
    );
    assert_eq!(leftovers(&fixed), [""; 0]);
    assert!(process.ends() && !is_attached(&device));
    assert!(!Path::new("/sys/class/net").join(TAP).exists());
    assert!(!disk::names().contains(&format!("fc-rootfs-{LOST}")));
    // Its cgroup goes with its jail: the folder of all of them is root's alone.
    assert_gone();
    foreign.assert_there();

    // A jail and a cgroup that a host's crash has left, without a process.
    for path in [format!("{JAILS}/{LOST}/root"), format!("{MACHINES}/{LOST}")] {
        fs::create_dir_all(&path).expect("a folder");
    }
    fs::set_permissions(Path::new(JAILS).join(LOST), fs::Permissions::from_mode(0o711))
        .expect("a mode");
    let fixed = doctor(OWNER, &["--fix"]);
    assert_eq!(kinds(&fixed["fix"]["removed"]), ["jail"], "{fixed}");
    assert_gone();
    foreign.assert_there();

    // A tap that somebody has removed: only root sees what the firewall has of it.
    make_tap(FLUSHED_TAP, 3);
    run("ip", ["link", "delete", FLUSHED_TAP]);
    let listed = || run("nft", ["list", "table", "bridge", "banger"]);
    assert!(listed().contains(FLUSHED_TAP));
    run("nft", ["add", "table", "inet", "mine"]);
    let table = Undo::with(&["nft", "delete", "table", "inet", "mine"]);
    run("nft", ["add", "set", "inet", "mine", "macs", "{ type ifname; }"]);
    run("nft", ["add", "element", "inet", "mine", "macs", &format!("{{ \"{FLUSHED_TAP}\" }}")]);
    let fixed = doctor("root", &["--fix"]);
    assert_eq!(kinds(&fixed["fix"]["removed"]), ["firewall"], "{fixed}");
    assert!(!listed().contains(FLUSHED_TAP));
    assert!(run("nft", ["list", "table", "inet", "mine"]).contains(FLUSHED_TAP));
    drop(table);
    foreign.assert_there();
    drop(foreign);
    drop(installed);
}
