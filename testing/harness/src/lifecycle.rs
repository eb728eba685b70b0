//! The life of one machine, from its creation to its deletion, the same under every VMM: written
//! once, driven where each VMM runs guests.

use std::path::Path;
use std::process::{Command, Output};
use std::time::Duration;

use rustix::process::{Pid, Signal};
use serde_json::Value;

use crate::wait_for;

/// How long anything may take; the guests of the KVM host are nested.
const PATIENCE: Duration = Duration::from_secs(120);
const BOX: &str = "box";

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
        assert!(output.status.success(), "banger {words:?}: {}: {said}", output.status);
        String::from_utf8_lossy(&output.stdout).into_owned()
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
    let create = [&create[..], &["--memory", "256M", "--disk-size", "128M"]].concat();
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

    // Stop, start, restart: clean file systems, the same data, another boot.
    life.guest("echo kept > /root/f; echo too > /etc/g");
    let first = life.boot_id();
    for _ in 0..2 {
        life.ok(&["vm", "stop", BOX]);
        life.is("stopped");
    }
    assert!(life.show()["last_error"].is_null(), "{}", life.show());
    life.assert_clean_disks();
    for _ in 0..2 {
        life.ok(&["vm", "start", BOX]);
        life.is("running");
    }
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

    // A user's signal is no failure, the VMM's own death is.
    life.guest("sync");
    life.ok(&["vm", "kill", BOX]);
    assert!(life.becomes("stopped")["last_error"].is_null(), "{}", life.show());
    life.ok(&["vm", "start", BOX]);
    life.signal_vmm(Signal::KILL);
    let failed = life.becomes("failed");
    assert!(failed["last_error"]["message"].is_string(), "{failed}");
    life.ok(&["vm", "start", BOX]);
    assert_eq!(life.guest("cat /root/f"), "kept\n");

    // A guest that ends by itself.
    let _ = life.run(&["vm", "exec", BOX, "--", "kill", "-TERM", "1"]);
    assert!(life.becomes("stopped")["last_error"].is_null(), "{}", life.show());

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
