//! The installed banger: two services of this machine.

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use crate::Inside;
use crate::tool::run;

pub(crate) const OWNER: &str = "alice";
const OTHER: &str = "bob";
const UNITS: [&str; 3] = ["banger-vms.service", "bangerd-root.service", "bangerd.service"];
/// How long systemd may take for something.
const PATIENCE: Duration = Duration::from_secs(40);

/// The installation, undone when it is dropped.
pub(crate) struct Installed;

impl Installed {
    pub(crate) fn new(inside: &Inside) -> Self {
        let undo = Self;
        let banger = inside.data.join("banger");
        run(banger.to_str().expect("a path"), ["system", "install", "--owner", OWNER]);
        undo
    }
}

impl Drop for Installed {
    fn drop(&mut self) {
        let _ =
            Command::new("/usr/local/bin/banger").args(["system", "uninstall", "--force"]).status();
        for folder in ["/var/lib/banger", "/var/cache/banger", "/run/banger", "/run/banger-root"] {
            let _ = std::fs::remove_dir_all(folder);
        }
        let _ = std::fs::remove_dir_all("/var/lib/banger-root");
    }
}

/// Runs the installed banger as a user of this machine.
pub(crate) fn banger_as(user: &str, words: &[&str]) -> Output {
    let mut command = Command::new("/usr/sbin/runuser");
    command.args(["-u", user, "--", "/usr/local/bin/banger"]).args(words);
    command.output().expect("runuser")
}

pub(crate) fn said(output: &Output) -> String {
    let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
    text(&output.stdout) + &text(&output.stderr)
}

pub(crate) fn main_pid(unit: &str) -> String {
    run("systemctl", ["show", "--value", "--property", "MainPID", unit]).trim().to_owned()
}

pub(crate) fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < end, "{what}");
        std::thread::sleep(Duration::from_millis(100));
    }
}

pub(crate) fn helper_answers() -> bool {
    said(&banger_as(OWNER, &["doctor"])).contains("PASS  root helper: answers")
}

#[test]
fn an_installation_serves_its_owner_and_nobody_else() {
    let Some(inside) = Inside::get() else { return };
    let installed = Installed::new(&inside);
    for unit in UNITS {
        assert_eq!(run("systemctl", ["is-active", unit]).trim(), "active", "{unit}");
        assert_eq!(run("systemctl", ["is-enabled", unit]).trim(), "enabled", "{unit}");
    }
    let doctor = banger_as(OWNER, &["doctor"]);
    let text = said(&doctor);
    assert!(text.contains("PASS  daemon: installed service"), "{text}");
    assert!(text.contains("PASS  root helper: answers"), "{text}");
    // Nobody else gets to either socket; another user has a bangerd of their own.
    let socket = Path::new("/run/banger/bangerd.sock").metadata().expect("a socket");
    let helper = Path::new("/run/banger-root/bangerd-root.sock").metadata().expect("a socket");
    let owner: u32 = run("id", ["-u", OWNER]).trim().parse().expect("a uid");
    for (metadata, mode) in [(&socket, 0o600), (&helper, 0o600)] {
        assert_eq!((metadata.uid(), metadata.mode() & 0o7777), (owner, mode));
    }
    let refused = Command::new("/usr/sbin/runuser")
        .args([
            "-u",
            OTHER,
            "--",
            "env",
            "BANGER_MODE=system",
            "/usr/local/bin/banger",
            "vm",
            "list",
        ])
        .output()
        .expect("runuser");
    assert_eq!(refused.status.code(), Some(2));
    assert!(said(&refused).contains("installed here for alice"), "{}", said(&refused));
    let list = banger_as(OWNER, &["vm", "list"]);
    assert!(list.status.success(), "{}", said(&list));
    // Who runs, as whom, with what.
    let status = |unit: &str, field: &str| {
        let text =
            std::fs::read_to_string(format!("/proc/{}/status", main_pid(unit))).expect("it runs");
        let line = text.lines().find(|line| line.starts_with(field)).expect("a field");
        line.split_whitespace().nth(1).expect("a value").to_owned()
    };
    assert_eq!(status("bangerd.service", "Uid:"), owner.to_string());
    for (unit, most) in [("bangerd.service", 0), ("bangerd-root.service", 11)] {
        let capabilities = u64::from_str_radix(&status(unit, "CapBnd:"), 16).expect("a mask");
        assert_eq!(capabilities.count_ones(), most, "{unit}");
        assert_eq!(status(unit, "NoNewPrivs:"), "1", "{unit}");
    }
    assert_units_are_as_hard_as_they_are_said_to_be();
    // Once more brings it up to date.
    let again = run("/usr/local/bin/banger", ["system", "install", "--owner", OWNER]);
    assert!(!again.contains("error") && helper_answers());
    let for_bob = Command::new("/usr/local/bin/banger")
        .args(["system", "install", "--owner", OTHER])
        .output()
        .expect("banger");
    assert!(said(&for_bob).contains("is installed for alice"), "{}", said(&for_bob));

    run("/usr/local/bin/banger", ["system", "uninstall"]);
    for path in [
        "/etc/banger",
        "/etc/sysctl.d/60-banger.conf",
        "/etc/tmpfiles.d/banger.conf",
        "/etc/systemd/system/bangerd.service",
        "/etc/systemd/system/bangerd-root.service",
        "/etc/systemd/system/banger-vms.service",
        "/usr/local/bin/banger",
        "/usr/local/bin/bangerd",
        "/usr/local/lib/banger",
    ] {
        assert!(!Path::new(path).exists(), "{path}");
    }
    assert!(Path::new("/var/lib/banger").is_dir(), "what is the owner's stays");
    drop(installed);
}

#[test]
fn services_that_are_killed_come_back() {
    let Some(inside) = Inside::get() else { return };
    let _installed = Installed::new(&inside);
    let daemon = main_pid("bangerd.service");
    let helper = main_pid("bangerd-root.service");
    run("systemctl", ["kill", "--signal=KILL", "--kill-whom=main", "bangerd-root.service"]);
    wait_until("the helper comes back", || {
        main_pid("bangerd-root.service") != helper && helper_answers()
    });
    run("systemctl", ["kill", "--signal=KILL", "--kill-whom=main", "bangerd.service"]);
    wait_until("the daemon comes back", || {
        let pid = main_pid("bangerd.service");
        pid != daemon && pid != "0" && helper_answers()
    });
    run("systemctl", ["restart", "bangerd-root.service"]);
    wait_until("both answer after a restart", helper_answers);
}

/// An installation takes most of a minute here: this is a part of the test that has one anyway.
fn assert_units_are_as_hard_as_they_are_said_to_be() {
    for (unit, most) in [("bangerd.service", 2.0), ("bangerd-root.service", 4.2)] {
        let path = format!("/etc/systemd/system/{unit}");
        let text = run("systemd-analyze", ["security", "--offline=true", "--no-pager", &path]);
        let line = text.lines().find(|line| line.contains("Overall exposure level"));
        let line = line.unwrap_or_else(|| panic!("{text}"));
        let (_, rest) = line.split_once(": ").expect("a number");
        let exposure: f64 = rest.split_whitespace().next().expect("a number").parse().expect("one");
        assert!(exposure <= most, "{unit}: {exposure} of {most}\n{text}");
    }
    // The text in the repository is what systemd reads without a complaint.
    for unit in UNITS {
        let path = format!("/etc/systemd/system/{unit}");
        let verify = Command::new("systemd-analyze").args(["verify", &path]).output();
        let words = said(&verify.expect("systemd-analyze"));
        assert!(!words.contains("banger"), "{words}");
    }
}
