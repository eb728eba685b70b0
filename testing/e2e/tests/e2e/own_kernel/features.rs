//! What the kernel must do, asked from inside a guest of the default image.

use banger_harness::{Contents, Environment, GUEST_DEADLINE, wait_for};

use super::{is_booted, tools};

/// The checks themselves.
const INSIDE: &str = include_str!("inside.py");

/// Starts a guest with these programs of this machine and runs checks in it.
fn check(programs: &[&str], checks: &[&str]) {
    if !is_booted() {
        return;
    }
    let environment = Environment::new(Contents::Debian);
    environment.banger(["vm", "run", "-d", "--name", "box"]).ok();
    if !programs.is_empty() {
        let unpack = "mkdir -p /opt/tools && tar -x -C /opt/tools && cd /opt/tools && \
                      for name in dev proc sys; do mount --bind /$name $name; done";
        environment.exec("box", ["sh", "-ec", unpack]).input(tools::tools(programs)).ok();
    }
    environment.exec("box", ["sh", "-c", "cat > /root/inside.py"]).input(INSIDE).ok();
    // What systemd still mounts and moves while it boots is not what is asked for.
    let settled = wait_for("systemd", GUEST_DEADLINE, || {
        let state = environment.exec("box", ["systemctl", "is-system-running"]).run().out();
        ["running\n", "degraded\n"].contains(&state.as_str()).then_some(state)
    });
    assert_eq!(settled, "running\n");
    let words = ["python3", "/root/inside.py"].iter().chain(checks);
    let done = environment.exec("box", words).deadline(GUEST_DEADLINE).ok();
    assert_eq!(done.out().lines().count(), checks.len(), "{done}");
    environment.finish();
}

#[test]
fn it_has_no_modules_and_a_serial_console() {
    check(&[], &["no_modules", "serial_console"]);
}

#[test]
fn it_is_built_as_its_package_says() {
    if !is_booted() {
        return;
    }
    let environment = Environment::new(Contents::Busybox);
    environment.start_busybox("box");
    let running = environment.exec("box", ["busybox", "zcat", "/proc/config.gz"]).ok().out();
    let said = std::fs::read_to_string(environment.kernel().join("config")).unwrap();
    assert_eq!(running, said);
    environment.finish();
}

#[test]
fn it_has_the_file_systems_of_disks() {
    check(&["mke2fs", "mkfs.xfs", "mkfs.btrfs"], &["disk_file_systems"]);
}

#[test]
fn it_has_squashfs_in_every_compression_and_overlays() {
    check(&["mksquashfs", "mkfs.xfs"], &["overlay"]);
}

#[test]
fn it_filters_packets_with_nft() {
    check(&["nft"], &["nf_tables"]);
}

#[test]
fn it_filters_packets_with_both_iptables() {
    let programs = [
        "nft",
        "iptables-nft",
        "iptables-nft-save",
        "ip6tables-nft",
        "iptables-legacy",
        "iptables-legacy-save",
        "ip6tables-legacy",
    ];
    check(&programs, &["iptables_nft", "iptables_legacy"]);
}

#[test]
fn it_has_tunnels_bridges_and_vsock() {
    check(&[], &["tun", "veth_and_bridge", "vsock"]);
}

#[test]
fn it_has_namespaces_and_control_groups_that_hold() {
    check(&[], &["namespaces", "control_groups"]);
}

#[test]
fn it_has_seccomp_bpf_and_fuse() {
    check(&[], &["seccomp", "bpf", "fuse"]);
}
