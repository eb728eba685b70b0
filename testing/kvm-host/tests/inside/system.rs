//! The installed banger: two services of this machine.

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;

use crate::Inside;
use crate::installation::{Installed, OWNER, UNITS, banger_as, both_answer, main_pid, said};
use crate::tool::run;

/// Who is not the owner.
const OTHER: &str = "bob";

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
    assert!(Path::new("/etc/udev/rules.d/05-banger.rules").exists());
    assert_units_are_as_hard_as_they_are_said_to_be();
    // Once more brings it up to date.
    let again = run("/usr/local/bin/banger", ["system", "install", "--owner", OWNER]);
    assert!(!again.contains("error") && both_answer());
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
        "/etc/udev/rules.d/05-banger.rules",
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
