//! The removal by hand, as docs/privileges.md has it.

use std::fs;
use std::path::Path;

use banger_privileged_tests::vmm::tiny_kernel;

use crate::Inside;
use crate::disk;
use crate::firecracker::Stranger;
use crate::installation::{Installed, MAC, Machine, PROGRAMS, SNAPSHOT, TAP, give, make_parts};
use crate::tool::{Undo, run};

const PAGE: &str = include_str!("../../../../docs/privileges.md");

/// The commands of a section of the page, all of them shell.
fn commands(heading: &str) -> &'static str {
    let (_, section) = PAGE.split_once(&format!("\n{heading}\n")).expect("the section");
    let (_, block) = section.split_once("```sh\n").expect("its commands");
    block.split_once("\n```").expect("an end of the commands").0
}

/// What banger could leave on a machine, one thing a line. Names do not count: every file with its
/// owner and mode, except where this machine's own services write, and loop devices with nothing on
/// them: no program of Debian 12's can end one.
fn paint() -> Vec<String> {
    const LOOK: &str = r#"
        find /etc /home /opt /srv /usr/local /var/cache /var/lib \
            \( -path /var/lib/systemd -o -path /var/lib/dpkg \) -prune \
            -o -printf '%p %y %m %U:%G %l\n'
        find / -xdev -mindepth 1 -maxdepth 3 -path '*banger*' -printf '%p %y %m %U:%G %l\n'
        find /run /dev -xdev \
            \( -path /run/systemd -o -path /run/udev -o -path /run/log -o -name by-diskseq \
            -o -name 'loop2????' -o -lname '*/loop2????' \) -prune \
            -o -printf '%p %y %m %U:%G %l\n'
        # Not udev's notes of links: it forgets those of devices that are gone when it likes.
        find /run/systemd /run/udev /run/log -path /run/udev/links -prune -o -name '*banger*' -print
        find /sys/fs/cgroup -type d -path '*banger*'
        ls /sys/class/net | sed 's/^/interface /'
        dmsetup ls
        losetup -a
        cat /proc/[0-9]*/mountinfo 2>/dev/null | cut -d ' ' -f 5 | grep banger | sort -u
        cat /proc/[0-9]*/comm 2>/dev/null | grep -E 'banger|firecracker|jailer'
        nft list ruleset
        systemctl list-units --all --plain --no-legend '*banger*'
        systemctl list-unit-files --no-legend '*banger*'
        cat /proc/sys/net/ipv4/ip_forward
    "#;
    let mut lines: Vec<String> = run("sh", ["-c", LOOK]).lines().map(str::to_owned).collect();
    lines.sort();
    lines
}

#[test]
fn what_the_page_says_removes_all_of_it() {
    let Some(inside) = Inside::get() else { return };
    let was_forwarding = fs::read_to_string("/proc/sys/net/ipv4/ip_forward").expect("a setting");
    fs::write("/proc/sys/net/ipv4/ip_forward", "0").expect("a setting");
    // The administrator's own firewall, into which the helper puts rules of its own.
    let table = "table inet administrators { chain forward { \
        type filter hook forward priority 0; policy drop; ct state established accept; }; }";
    run("nft", [table]);
    let firewall = Undo::with(&["nft", "delete", "table", "inet", "administrators"]);
    let programs = Undo::with(&["rm", "-rf", PROGRAMS]);
    let before = paint();
    let installed = Installed::with_firecracker(&inside);
    let image = give("image", |path| drop(disk::sparse(path, 16 << 20)));
    let kernel = give("vmlinux", |path| {
        fs::write(path, tiny_kernel(b"hello from the jail\n")).expect("a kernel");
    });
    let handles = make_parts(&image);
    let machine = Machine {
        name: "one",
        kernel: &kernel,
        initrd: None,
        arguments: "console=ttyS0".to_owned(),
        disk: handles["dm_dev"].as_str(),
        tap: Some((TAP, MAC)),
    };
    let process = Stranger::hold(machine.launch());
    let during = paint().join("\n");
    for part in [TAP, SNAPSHOT, "banger br-fc out", "banger-vms.service/one"] {
        assert!(during.contains(part), "{part}");
    }

    run("sh", ["-euxc", commands("### By hand")]);
    assert!(process.ends(), "the machine ends");
    // Its own test made these.
    drop(programs);
    let mut after = paint();
    let left: Vec<_> = after.extract_if(.., |line| !before.contains(line)).collect();
    assert_eq!(left, Vec::<String>::new(), "it left something behind");
    let gone: Vec<_> = before.iter().filter(|line| !after.contains(line)).collect();
    assert_eq!(gone, Vec::<&String>::new(), "it took something away");
    assert!(!Path::new("/var/lib/banger").exists());
    drop((installed, firewall));
    fs::write("/proc/sys/net/ipv4/ip_forward", was_forwarding).expect("a setting");
}
