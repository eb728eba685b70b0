//! The life of one machine, from its creation to its deletion, the same under every VMM: written
//! once, driven where each VMM runs guests.

use std::path::Path;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal};
use serde_json::Value;

use crate::wait_for;

/// How long anything may take; the guests of the KVM host are nested.
const PATIENCE: Duration = Duration::from_secs(120);
/// How long a guest that has no memory left may take to have some again.
const RECOVERY: Duration = Duration::from_secs(30);
const BOX: &str = "box";
/// What the guest writes to see how fast its disk is, in MiB; and how much of it may be written a
/// second where that is limited.
const WRITTEN: u64 = 8;
const BANDWIDTH: &str = "1M";

/// A banger with an image `busybox`, and no machine.
pub trait Banger {
    /// The VMM of the machines.
    fn vmm(&self) -> &'static str;

    /// A run of its command line.
    fn command(&self, words: &[&str]) -> Command;
}

/// A machine's life.
struct Life<'a>(&'a dyn Banger);

impl Life<'_> {
    fn run(&self, words: &[&str]) -> Output {
        self.0.command(words).output().expect("banger starts")
    }

    #[track_caller]
    fn ok(&self, words: &[&str]) -> String {
        let output = self.run(words);
        let said = String::from_utf8_lossy(&output.stderr);
        let status = output.status;
        assert!(status.success(), "banger {words:?}: {status}: {said}{}", self.about());
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// What is known about the machine, for a failure.
    fn about(&self) -> String {
        let text = |words: &[&str]| {
            let output = self.run(words);
            let said = [output.stdout, output.stderr].concat();
            let said = String::from_utf8_lossy(&said).into_owned();
            let skipped = said.lines().count().saturating_sub(60);
            said.lines().skip(skipped).collect::<Vec<_>>().join("\n")
        };
        let (shown, logs) =
            (text(&["vm", "show", BOX, "--json"]), text(&["vm", "logs", BOX, "-n", "60"]));
        format!("\n{shown}\nits console ended so:\n{logs}")
    }

    #[track_caller]
    fn guest(&self, script: &str) -> String {
        self.ok(&["vm", "exec", BOX, "--", "sh", "-c", script])
    }

    fn show(&self) -> Value {
        serde_json::from_str(&self.ok(&["vm", "show", BOX, "--json"])).expect("JSON")
    }

    #[track_caller]
    fn is(&self, state: &str) {
        let shown = self.show();
        assert_eq!(shown["state"], state, "{shown}");
    }

    fn boot_id(&self) -> String {
        self.guest("cat /proc/sys/kernel/random/boot_id")
    }

    fn signal_vmm(&self, signal: Signal) {
        let pid = self.show()["runtime"]["pid"].as_i64().expect("it runs");
        let pid = Pid::from_raw(i32::try_from(pid).expect("a pid")).expect("a pid");
        rustix::process::kill_process(pid, signal).expect("a right to");
    }

    fn becomes(&self, state: &str) -> Value {
        wait_for(state, PATIENCE, || Some(self.show()).filter(|shown| shown["state"] == state))
    }

    /// How long the guest takes to write some MiB to its work disk, down to the disk, in hundredths of
    /// a second by its own clock: what it takes to have it begin is much, in nested guests.
    fn write(&self) -> u64 {
        let said = self.guest(&format!(
            "sync; read a _ < /proc/uptime; \
             dd if=/dev/zero of=/root/written bs=1M count={WRITTEN} conv=fsync 2> /dev/null; \
             read b _ < /proc/uptime; echo $a $b"
        ));
        let times = said.split_whitespace().map(|time| time.replace('.', "").parse::<u64>());
        let times: Vec<u64> = times.collect::<Result<_, _>>().expect("two times");
        times[1] - times[0]
    }

    /// The size of the file system of the work disk, in MiB.
    fn work_size(&self) -> u64 {
        let said = self.guest("df -m /root");
        let size = said.lines().last().and_then(|line| line.split_whitespace().nth(1));
        size.and_then(|size| size.parse().ok()).unwrap_or_else(|| panic!("{said}"))
    }

    /// Takes all memory of the guest by files, which no process's end gives back. It may live on or
    /// end, which is said; returns it as one that runs.
    fn exhaust_memory(&self) {
        let fill = "mkdir /tmp/ram; mount -t tmpfs -o size=100% ram /tmp/ram; \
                    dd if=/dev/zero of=/tmp/ram/big bs=1M; rm -f /tmp/ram/big";
        let _ = self.run(&["vm", "exec", BOX, "--", "sh", "-c", fill]);
        // A daemon that has not noticed a guest's end yet fails the command, and notices it.
        let shown = wait_for("the guest, or word of its end", PATIENCE, || {
            let lives = self.run(&["vm", "exec", BOX, "--", "true"]).status.success();
            Some(self.show()).filter(|shown| lives || shown["state"] != "running")
        });
        if shown["state"] != "running" {
            // A guest whose kernel gave up, and then rebooted, has ended in order for all that is seen
            // of it.
            let is_said = shown["last_error"]["message"].is_string();
            assert!(is_said || shown["state"] == "stopped", "{shown}");
            self.ok(&["vm", "start", BOX]);
        }
        // What asks for it back may be ended for want of it, too, and every time where the guest's
        // kernel has no page left: then the machine's owner has its next boot.
        let end = Instant::now() + RECOVERY;
        let is_back = || {
            let _ = self.run(&["vm", "exec", BOX, "--", "busybox", "umount", "/tmp/ram"]);
            let look = ["vm", "exec", BOX, "--", "grep", "-q", "/tmp/ram", "/proc/mounts"];
            self.run(&look).status.code() == Some(1)
        };
        while !is_back() {
            if Instant::now() > end {
                self.ok(&["vm", "restart", BOX]);
                assert!(is_back(), "a boot gives the memory back");
                return;
            }
        }
    }

    /// Has the guest's agent answer nobody any more; the guest runs on.
    fn wedge(&self) {
        let find = "for p in /proc/[0-9]*; do case $(tr '\\0' ' ' < $p/cmdline) in \
                    @banger-agent*) echo ${p#/proc/};; esac; done 2> /dev/null";
        let agents = self.guest(find).split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(!agents.is_empty());
        // When this command has ended: it is the agent's.
        let stop = format!("(sleep 1; kill -STOP {agents}) > /dev/null 2>&1 < /dev/null &");
        self.guest(&stop);
        wait_for("the agent's silence", PATIENCE, || {
            let stats: Value =
                serde_json::from_str(&self.ok(&["vm", "stats", BOX, "--json"])).ok()?;
            stats[0]["guest_problem"].is_string().then_some(())
        });
        self.is("running");
    }

    /// That the kernel's own check finds nothing to mend in the disks that it can look at.
    fn assert_clean_disks(&self) {
        let shown = self.show();
        let disks = shown["disks"].as_array().expect("disks").iter();
        for disk in
            disks.filter(|disk| ["raw", "copy", "reflink"].iter().any(|kind| disk["kind"] == *kind))
        {
            let path = Path::new(disk["path"].as_str().expect("a path"));
            let checker = crate::find_program("e2fsck").expect("e2fsprogs");
            let checked = Command::new(checker).args(["-f", "-n"]).arg(path).output();
            let checked = checked.expect("e2fsck starts");
            let said = String::from_utf8_lossy(&checked.stdout);
            assert!(checked.status.success(), "{}: {said}", path.display());
            assert!(!said.contains("recovering journal"), "{}: {said}", path.display());
        }
    }
}

/// Lives through it.
pub fn live(banger: &dyn Banger) {
    let life = Life(banger);
    // Create.
    let create = ["vm", "run", "-d", "--vmm", banger.vmm(), "--image", "busybox", "--name", BOX];
    let shape = ["--memory", "256M", "--disk-size", "128M", "--disk-bandwidth", BANDWIDTH];
    let create = [&create[..], &shape].concat();
    life.ok(&create);
    let shown = life.show();
    assert_eq!(
        (&shown["state"], &shown["runtime"]["vmm"]),
        (&"running".into(), &banger.vmm().into())
    );
    assert_eq!(life.run(&create).status.code(), Some(125), "its name is taken");

    // Exec.
    let output = life.run(&["vm", "exec", BOX, "--", "sh", "-c", "echo out; echo err >&2; exit 7"]);
    assert_eq!(output.status.code(), Some(7));
    assert_eq!((&output.stdout[..], &output.stderr[..]), (&b"out\n"[..], &b"err\n"[..]));

    // Stop, start, restart: clean file systems, the same data, another boot. Stopped, it may have a
    // larger disk, which is faster without a limit.
    let limited = life.write();
    life.guest("echo kept > /root/f; echo too > /etc/g");
    let first = life.boot_id();
    for _ in 0..2 {
        life.ok(&["vm", "stop", BOX]);
        life.is("stopped");
    }
    assert!(life.show()["last_error"].is_null(), "{}", life.show());
    life.assert_clean_disks();
    let change = ["vm", "set", BOX, "--disk-size", "160M", "--disk-bandwidth", "none"];
    life.ok(&change);
    assert_ne!(life.run(&["vm", "set", BOX, "--disk-size", "128M"]).status.code(), Some(0));
    for _ in 0..2 {
        life.ok(&["vm", "start", BOX]);
        life.is("running");
    }
    assert_ne!(life.run(&change).status.code(), Some(0), "it runs");
    let size = life.work_size();
    assert!((129..=160).contains(&size), "{size} MiB");
    let unlimited = life.write();
    assert!(limited > unlimited * 2, "limited {limited}, unlimited {unlimited}, in 10 ms");
    let second = life.boot_id();
    life.ok(&["vm", "restart", BOX]);
    let third = life.boot_id();
    assert!(first != second && second != third && first != third);
    assert_eq!(life.guest("cat /root/f /etc/g"), "kept\ntoo\n");

    // Its disk is full, and its memory: a command fails, the machine lives.
    let full =
        life.guest("dd if=/dev/zero of=/root/big bs=1M 2>&1 | grep -c 'No space'; rm /root/big");
    assert_eq!(full, "1\n");
    let eater = life.run(&["vm", "exec", BOX, "--", "tail", "-c", "4000000000", "/dev/zero"]);
    assert_ne!(eater.status.code(), Some(0));
    assert_eq!(life.boot_id(), third);
    life.exhaust_memory();

    // A user's signal is no failure, the VMM's own death is.
    life.guest("rm /root/written; sync");
    life.wedge();
    life.ok(&["vm", "kill", BOX]);
    assert!(life.becomes("stopped")["last_error"].is_null(), "{}", life.show());
    life.ok(&["vm", "start", BOX]);
    life.signal_vmm(Signal::KILL);
    let failed = life.becomes("failed");
    assert!(failed["last_error"]["message"].is_string(), "{failed}");
    life.ok(&["vm", "start", BOX]);
    assert_eq!(life.guest("cat /root/f"), "kept\n");

    // A guest that ends by itself; nothing of what it went through is left on its disks.
    let _ = life.run(&["vm", "exec", BOX, "--", "kill", "-TERM", "1"]);
    assert!(life.becomes("stopped")["last_error"].is_null(), "{}", life.show());
    life.assert_clean_disks();

    // A wedged one is ended, and that is said; then it is deleted with all that it had.
    life.ok(&["vm", "start", BOX]);
    life.signal_vmm(Signal::STOP);
    let stopped = life.run(&["vm", "stop", "--grace", "2", BOX]);
    let (words, shown) = (String::from_utf8_lossy(&stopped.stderr).into_owned(), life.show());
    assert_eq!(shown["state"], "stopped", "{shown}");
    let said = words + &shown["last_error"].to_string();
    assert!(said.contains("killed"), "{}: {said}", stopped.status);
    life.ok(&["vm", "delete", BOX]);
    assert!(!life.run(&["vm", "show", BOX]).status.success());
}
