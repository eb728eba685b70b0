//! The machine has what the product needs.

use std::os::unix::fs::FileTypeExt;

use crate::Inside;
use crate::tool::{Undo, run};

#[test]
fn systemd_runs_without_a_failed_unit() {
    let Some(_) = Inside::get() else { return };
    assert_eq!(run("systemctl", ["is-system-running"]).trim(), "running");
    run("systemd-run", ["--quiet", "--wait", "--property=MemoryMax=50M", "true"]);
    assert!(run("busctl", ["list", "--no-legend"]).contains("org.freedesktop.resolve1"));
}

#[test]
fn the_devices_are_there() {
    let Some(_) = Inside::get() else { return };
    for path in
        ["/dev/kvm", "/dev/vhost-vsock", "/dev/net/tun", "/dev/loop-control", "/dev/mapper/control"]
    {
        let found = std::fs::metadata(path).unwrap_or_else(|error| panic!("{path}: {error}"));
        assert!(found.file_type().is_char_device(), "{path}");
        std::fs::File::options().read(true).write(true).open(path).expect(path);
    }
    for module in ["kvm_amd", "dm_snapshot", "br_netfilter", "nf_tables"] {
        assert!(std::path::Path::new("/sys/module").join(module).exists(), "{module}");
    }
}

#[test]
fn there_is_one_cgroup_tree_of_version_2() {
    let Some(_) = Inside::get() else { return };
    let controllers = std::fs::read_to_string("/sys/fs/cgroup/cgroup.controllers").expect("cgroup");
    for wanted in ["cpu", "memory", "pids", "io"] {
        assert!(controllers.split_whitespace().any(|one| one == wanted), "{wanted}: {controllers}");
    }
}

#[test]
fn there_are_two_ordinary_users() {
    let Some(_) = Inside::get() else { return };
    for user in ["alice", "bob"] {
        let words = ["-u", user, "--", "sh", "-c", "id -un; test -w ~"];
        assert_eq!(run("runuser", words).trim(), user);
    }
}

#[test]
fn both_firewall_tools_work() {
    let Some(_) = Inside::get() else { return };
    run("nft", ["add", "table", "inet", "banger_test"]);
    let undo = Undo::with(&["nft", "delete", "table", "inet", "banger_test"]);
    let chain = "{ type filter hook forward priority 0; policy accept; }";
    run("nft", ["add", "chain", "inet", "banger_test", "forward", chain]);
    let rule = "iifname tap9 ct state new limit rate 5/second counter drop";
    run("nft", ["add", "rule", "inet", "banger_test", "forward", rule]);
    drop(undo);
    // What iptables made stays an empty chain, so it is given a name of its own.
    run(
        "unshare",
        [
            "--net",
            "sh",
            "-ec",
            "iptables -t nat -A POSTROUTING -s 172.30.9.0/24 -j MASQUERADE; \
        iptables -A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -m comment --comment x -j ACCEPT; \
        iptables-save | grep -c MASQUERADE",
        ],
    );
}

#[test]
fn the_tests_servers_are_there() {
    let Some(_) = Inside::get() else { return };
    assert!(run("busybox", ["--list"]).lines().any(|applet| applet == "httpd"));
    assert!(run("dnsmasq", ["--version"]).starts_with("Dnsmasq version"));
    run("sshd", ["-t"]);
}
