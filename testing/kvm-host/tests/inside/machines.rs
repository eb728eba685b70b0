//! Firecracker machines of the installed banger: its own command line, its two services, real
//! guests.

use std::path::Path;
use std::process::{Command, Stdio};

use banger_harness::lifecycle::Banger;

use crate::Inside;
use crate::installation::{Installed, OWNER, banger_as, main_pid, said, wait_until};
use crate::story::Day;
use crate::tool::run;

/// An installation with Firecracker, a kernel and an image; undone when dropped.
pub(crate) struct Ready {
    _installed: Installed,
}

impl Ready {
    pub(crate) fn new(inside: &Inside) -> Self {
        Self::of(inside, Installed::with_firecracker(inside))
    }

    /// An installation, with a kernel and an image.
    pub(crate) fn of(inside: &Inside, installed: Installed) -> Self {
        let ready = Self { _installed: installed };
        let kernels = "/var/lib/banger/kernels";
        run("cp", ["-r", "-T", text(&inside.data.join("kernels")), kernels]);
        run("chown", ["-R", &format!("{OWNER}:"), kernels]);
        run("chmod", ["-R", "go=", kernels]);
        let image = Path::new("/var/tmp/busybox.tar");
        std::fs::copy(inside.data.join("busybox.tar"), image).expect("copy the image");
        run("chmod", ["a+r", text(image)]);
        banger(&["image", "import", "--name", "busybox", text(image)]);
        std::fs::remove_file(image).expect("remove the image");
        ready
    }
}

impl Banger for Ready {
    fn vmm(&self) -> &'static str {
        "firecracker"
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new("/usr/sbin/runuser");
        command.args(["-u", OWNER, "--", "/usr/local/bin/banger"]).args(words);
        command
    }
}

/// Under Firecracker here; `testing/e2e` has the same under QEMU.
#[test]
fn a_machine_lives_under_firecracker() {
    let Some(inside) = Inside::get() else { return };
    let ready = Ready::new(&inside);
    banger_harness::lifecycle::live(&ready);
    assert_no_jail();
    drop(ready);
}

impl Drop for Ready {
    fn drop(&mut self) {
        let list = banger_as(OWNER, &["vm", "list", "--json"]).stdout;
        let list: Vec<serde_json::Value> = serde_json::from_slice(&list).unwrap_or_default();
        for name in list.iter().filter_map(|vm| vm["name"].as_str()) {
            let _ = banger_as(OWNER, &["vm", "delete", name]);
        }
    }
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a path in UTF-8")
}

/// Runs the owner's banger, which must succeed.
pub(crate) fn banger(words: &[&str]) -> String {
    let output = banger_as(OWNER, words);
    assert!(
        output.status.success(),
        "banger {words:?}: {}\n{}",
        said(&output),
        run("journalctl", ["--no-pager", "-n", "30", "-u", "bangerd", "-u", "bangerd-root"])
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}

pub(crate) fn show(vm: &str) -> serde_json::Value {
    serde_json::from_str(&banger(&["vm", "show", vm, "--json"])).expect("JSON")
}

fn boot_id(vm: &str) -> String {
    banger(&["vm", "exec", vm, "--", "cat", "/proc/sys/kernel/random/boot_id"])
}

/// What a machine leaves while it runs, and must not leave afterwards.
fn jails() -> Vec<String> {
    let entries = std::fs::read_dir("/var/lib/banger-root/jail/firecracker");
    let entries = entries.map_or_else(|_| Vec::new(), |entries| entries.flatten().collect());
    entries.iter().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

#[test]
fn a_firecracker_machine_lives_and_outlives_both_services() {
    let Some(inside) = Inside::get() else { return };
    let ready = Ready::new(&inside);
    let start = ["vm", "run", "-d", "--vmm", "firecracker", "--image", "busybox", "--name", "box"];
    banger(&start);
    let shown = show("box");
    assert_eq!(shown["runtime"]["vmm"], "firecracker", "{shown}");
    assert_eq!(shown["runtime"]["acceleration"], "kvm", "{shown}");
    let pid = shown["runtime"]["pid"].as_u64().expect("a pid");
    let first = boot_id("box");
    assert_eq!(jails().len(), 1);
    assert_walled_off(pid);

    // Both services end in every way, and the machine does not notice.
    let restart = || run("systemctl", ["restart", "bangerd.service", "bangerd-root.service"]);
    let kill = |units: &[&str]| {
        let pids = || units.iter().map(|unit| main_pid(unit)).collect::<Vec<_>>();
        let before = pids();
        run("systemctl", [&["kill", "--signal=KILL", "--kill-whom=main"][..], units].concat());
        let is_back = |(now, before): (&String, &String)| now != "0" && now != before;
        wait_until("the units come back", || pids().iter().zip(&before).all(is_back));
    };
    let acts: [&dyn Fn(); 4] = [
        &|| kill(&["bangerd.service"]),
        &|| kill(&["bangerd-root.service"]),
        &|| kill(&["bangerd.service", "bangerd-root.service"]),
        &|| drop(restart()),
    ];
    for (number, act) in acts.iter().enumerate() {
        act();
        wait_until("the daemon answers", || banger_as(OWNER, &["vm", "list"]).status.success());
        assert_eq!(boot_id("box"), first, "after act {number}");
        assert_eq!(show("box")["runtime"]["pid"].as_u64(), Some(pid), "after act {number}");
    }

    // Stopped cleanly and started again, with what was written.
    banger(&["vm", "exec", "box", "--", "sh", "-c", "echo kept > /root/f; echo too > /etc/g"]);
    banger(&["vm", "stop", "box"]);
    assert_no_jail();
    assert_eq!(show("box")["state"], "stopped");
    assert!(show("box")["last_error"].is_null(), "{}", show("box"));
    banger(&["vm", "start", "box"]);
    assert_ne!(boot_id("box"), first);
    assert_eq!(banger(&["vm", "exec", "box", "--", "cat", "/root/f", "/etc/g"]), "kept\ntoo\n");

    // Killed: it is said, and started again it has what was flushed.
    banger(&["vm", "exec", "box", "--", "sync"]);
    let pid = show("box")["runtime"]["pid"].to_string();
    run("kill", ["-KILL", &pid]);
    wait_until("its end is seen", || show("box")["state"] != "running");
    assert!(show("box")["last_error"]["message"].to_string().contains("signal 9"));
    banger(&["vm", "start", "box"]);
    assert_eq!(banger(&["vm", "exec", "box", "--", "cat", "/root/f"]), "kept\n");
    banger(&["vm", "delete", "box"]);
    assert_no_jail();
    drop(ready);
}

/// The VMM is the owner's, without any right, behind its filter, in the cgroup of the machines.
fn assert_walled_off(pid: u64) {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("it runs");
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)).expect("a field");
        line.split_whitespace().next().unwrap_or_default().to_owned()
    };
    assert_eq!(field("Uid:"), run("id", ["-u", OWNER]).trim());
    assert_eq!(field("NoNewPrivs:"), "1");
    assert_eq!(field("CapEff:"), "0000000000000000");
    assert_eq!(field("Seccomp:"), "2");
    let cgroup = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).expect("it runs");
    assert!(cgroup.contains("banger-vms.service/"), "{cgroup}");
}

fn assert_no_jail() {
    let jails = jails();
    if jails.is_empty() {
        return;
    }
    let list = banger_as(OWNER, &["vm", "list", "--json"]);
    let units = ["-u", "bangerd", "-u", "bangerd-root"];
    let journal = run("journalctl", [&["--no-pager", "-n", "60"][..], &units].concat());
    let log = std::fs::read_to_string("/var/lib/banger/bangerd.log").unwrap_or_default();
    panic!("{jails:?} are left\n{}\n{journal}\n{log}", said(&list));
}

/// Runs a command in a machine of its own, which is gone afterwards, and one as a machine's main
/// process.
#[test]
fn one_command_has_a_firecracker_of_its_own() {
    let Some(inside) = Inside::get() else { return };
    let ready = Ready::new(&inside);
    let words = ["vm", "run", "--rm", "--vmm", "firecracker", "--image", "busybox", "--"];
    let output = banger_as(OWNER, &[&words[..], &["sh", "-c", "echo out; exit 7"]].concat());
    assert_eq!(output.status.code(), Some(7), "{}", said(&output));
    assert_eq!(String::from_utf8_lossy(&output.stdout), "out\n");
    // A guest that ends by itself is a good end.
    let start = ["vm", "run", "-d", "--vmm", "firecracker", "--image", "busybox", "--name", "off"];
    banger(&start);
    let _ = banger_as(OWNER, &["vm", "exec", "off", "--", "kill", "-TERM", "1"]);
    wait_until("it ends", || show("off")["state"] == "stopped");
    assert!(show("off")["last_error"].is_null(), "{}", show("off"));
    banger(&["vm", "delete", "off"]);
    // The main process of an application: its output, its exit code, and its end is the machine's.
    let words = ["vm", "run", "--vmm", "firecracker", "--image", "busybox", "--name", "app"];
    let main = ["--entrypoint", "sh", "--", "-c", "echo $((40+2)) by the main process; exit 9"];
    let output = banger_as(OWNER, &[&words[..], &main].concat());
    assert_eq!(output.status.code(), Some(9), "{}", said(&output));
    let text = "42 by the main process";
    assert!(String::from_utf8_lossy(&output.stdout).contains(text), "{}", said(&output));
    wait_until("it ends", || show("app")["state"] == "stopped");
    let shown = show("app");
    assert_eq!(shown["main_exit"]["code"], 9, "{shown}");
    assert!(shown["last_error"].is_null(), "{shown}");
    let log = banger(&["vm", "logs", "app"]);
    assert!(log.contains(text), "{log}");
    banger(&["vm", "delete", "app"]);
    assert_no_jail();
    let left = Command::new("/usr/bin/pgrep").args(["-x", "firecracker"]).output();
    assert!(left.is_ok_and(|left| left.stdout.is_empty()), "a Firecracker is left");
    drop(ready);
}

/// Whether a name of a machine leads to an address, by the host's own resolver.
fn resolves(name: &str, address: &str) -> bool {
    let words = ["query", "--legend=no", "--cache=no", name];
    let output = Command::new("resolvectl").args(words).output().expect("run resolvectl");
    String::from_utf8_lossy(&output.stdout).contains(address)
}

#[test]
fn a_firecracker_machine_has_a_network_and_a_name_and_keeps_both() {
    let Some(inside) = Inside::get() else { return };
    let ready = Ready::new(&inside);
    let day = Day::new(&inside);
    // Nobody says which VMM: it is the best that can run here.
    let run_it = ["vm", "run", "-d", "--image", Day::IMAGE, "--name", "box", "--nat", "repo"];
    day.banger(&run_it);
    let shown = show("box");
    assert_eq!(shown["runtime"]["vmm"], "firecracker", "{shown}");
    assert_eq!(shown["network"], "tap", "{shown}");
    let address = shown["address"].as_str().expect("an address").to_owned();
    let gateway = format!("{}.1", address.rsplit_once('.').expect("an address").0);
    let ping = |from: &str| {
        banger(&["vm", "exec", from, "--", "ping", "-c", "1", "-W", "10", &gateway]);
    };
    ping("box");
    wait_until("the host knows the name", || resolves("box.vm", &address));
    // The guest asks the same server, on the port that every guest asks.
    let asked = banger(&["vm", "exec", "box", "--", "busybox", "nslookup", "-type=a", "box.vm"]);
    assert!(asked.contains(&address), "{asked}");

    day.live("box");

    run("systemctl", ["restart", "bangerd.service", "bangerd-root.service"]);
    wait_until("the daemon answers", || banger_as(OWNER, &["vm", "list"]).status.success());
    assert_eq!(show("box")["address"].as_str(), Some(address.as_str()));
    ping("box");
    wait_until("the host knows the name again", || resolves("box.vm", &address));
    let rules = run("nft", ["list", "ruleset"]);
    assert!(rules.contains(&format!("\"br-fc\" . {address}")), "{rules}");

    banger(&["vm", "delete", "box"]);
    assert!(!resolves("box.vm", &address));
    let rules = run("nft", ["list", "ruleset"]);
    assert!(!rules.contains(&address), "{rules}");
    assert!(!run("ip", ["-o", "link"]).contains(": tap-fc-"));
    drop((day, ready));
}

/// Attached to the console, and typed at, over a pipe in the jail.
#[test]
fn a_firecracker_machine_has_a_console() {
    use std::io::{BufRead, BufReader, Read, Write};
    let Some(inside) = Inside::get() else { return };
    let ready = Ready::new(&inside);
    banger(&["vm", "run", "-d", "--vmm", "firecracker", "--image", "busybox", "--name", "box"]);
    let attach = || {
        let mut command = ready.command(&["vm", "console", "box"]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut console = command.spawn().expect("banger starts");
        // What is printed before it is attached does not come.
        let mut said = String::new();
        let mut errors = BufReader::new(console.stderr.take().expect("a pipe"));
        errors.read_line(&mut said).expect("a pipe is read");
        assert!(said.starts_with("console of VM box"), "{said}");
        std::thread::spawn(move || std::io::copy(&mut errors, &mut std::io::stderr()));
        let (keys, output) = (console.stdin.take().expect("a pipe"), console.stdout.take());
        (console, keys, output.expect("a pipe"))
    };
    let until = |output: &mut dyn Read, text: &str| {
        let (mut shown, mut byte) = (Vec::new(), [0]);
        while !shown.ends_with(text.as_bytes()) {
            let count = output.read(&mut byte).expect("a pipe is read");
            assert!(count == 1, "it ended with {}", String::from_utf8_lossy(&shown));
            shown.push(byte[0]);
        }
    };
    let (mut one, mut keys, mut output) = attach();
    until(&mut output, "# ");
    let (mut two, mut other_keys, mut other_output) = attach();
    keys.write_all(b"echo is-$((1+1))\r").expect("a pipe is written");
    until(&mut output, "is-2");
    until(&mut other_output, "is-2");
    // More than the port's 64 bytes at once, and the pipe is never waited for by Firecracker.
    let long = format!("echo {} | wc -c\r", "x".repeat(600));
    other_keys.write_all(long.as_bytes()).expect("a pipe is written");
    until(&mut output, "\n601\r\n");
    assert_eq!(banger(&["vm", "exec", "box", "--", "echo", "answers"]), "answers\n");
    // The next daemon finds it again.
    run("systemctl", ["restart", "bangerd.service"]);
    for console in [&mut one, &mut two] {
        assert!(!console.wait().expect("it ends").success(), "its daemon ended");
    }
    wait_until("the daemon answers", || banger_as(OWNER, &["vm", "list"]).status.success());
    let (mut one, mut keys, mut output) = attach();
    keys.write_all(b"echo is-$((2+1))\r").expect("a pipe is written");
    until(&mut output, "is-3");
    assert!(banger(&["vm", "logs", "box"]).contains("is-2"), "the log has it too");
    banger(&["vm", "stop", "box"]);
    assert!(one.wait().expect("it ends").success(), "the machine has ended");
    banger(&["vm", "delete", "box"]);
    assert_no_jail();
    drop(ready);
}
