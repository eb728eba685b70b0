//! What an owner does with its taps behind the helper's back, and how many it may have.

use std::fmt::Write as _;
use std::io::Write as _;
use std::process::{Command, Stdio};

use banger_host::{Host, HostError};
use banger_privileged_sys::tun;
use banger_privileged_tests::{Fixture, enter_own_mounts, enter_own_network};

use crate::is_root;
use crate::world::{
    bridge_params, bridge_params_of, create_tap, delete_tap, ensure_bridge, ensure_nat,
    guest_params, nat_params, picture, run, same, tap_params,
};

/// The most of an owner, as docs/privileges.md has it.
const BRIDGES: usize = 16;
const TAPS: usize = 512;
const STRANGER: u32 = 60_999;

/// Whether the helper still knows anything of a tap.
fn is_known(host: &Fixture, name: &str) -> bool {
    let rules = run("nft list ruleset");
    host.own.join(format!("records/tap.{name}.json")).exists() || rules.contains(name)
}

/// Gives a tap to another user, as whoever has it open can.
fn give_away(name: &str) {
    tun::Tap::open(name).unwrap().give_to(STRANGER, STRANGER).unwrap();
}

#[test]
fn a_tap_that_was_given_away_or_ended_is_cleaned_up() {
    if !is_root() {
        return;
    }
    enter_own_network();
    let host = Fixture::new();
    ensure_bridge(&host, bridge_params()).unwrap();
    let before = picture();
    for asks in [true, false] {
        for ends in [true, false] {
            drop(create_tap(&host, guest_params(2)).unwrap());
            ensure_nat(&host, &nat_params(2)).unwrap();
            assert!(is_known(&host, "tap-fc-2"));
            if ends {
                run("ip tuntap del dev tap-fc-2 mode tap");
            } else {
                give_away("tap-fc-2");
            }
            if asks {
                assert!(delete_tap(&host, "tap-fc-2").unwrap());
            } else {
                assert!(host.host.refresh_network().unwrap());
                assert!(!host.host.refresh_network().unwrap());
            }
            assert!(!is_known(&host, "tap-fc-2"), "asks {asks}, ends {ends}");
            same(&before, &picture());
        }
    }
    // One that is as it was stays, and somebody else's of that name is not touched.
    drop(create_tap(&host, guest_params(2)).unwrap());
    assert!(!host.host.refresh_network().unwrap());
    run("ip link set tap-fc-2 nomaster");
    give_away("tap-fc-2");
    let before = run("ip -o link show tap-fc-2");
    delete_tap(&host, "tap-fc-2").unwrap_err();
    host.host.refresh_network().unwrap_err();
    assert_eq!(run("ip -o link show tap-fc-2"), before);
}

fn batch(lines: &str) {
    let mut ip = Command::new("ip").args(["-batch", "-"]).stdin(Stdio::piped()).spawn().unwrap();
    ip.stdin.take().unwrap().write_all(lines.as_bytes()).unwrap();
    assert!(ip.wait().unwrap().success());
}

#[track_caller]
fn too_many<T: std::fmt::Debug>(made: Result<T, HostError>, parameter: &str, reason: &str) {
    match made {
        Err(HostError::Refused(refusal)) => {
            assert_eq!(refusal.parameter, parameter);
            assert!(refusal.reason.contains(reason), "{refusal}");
        }
        other => panic!("not refused: {other:?}"),
    }
}

#[test]
fn an_owner_has_so_many_taps_and_bridges_and_no_more() {
    if !is_root() {
        return;
    }
    enter_own_network();
    let mut host = Fixture::new();
    for number in 1..BRIDGES {
        let ip = format!("172.20.{number}.1");
        let name = format!("br-fc-{number}");
        ensure_bridge(&host, bridge_params_of(&name, &ip, "24", None)).unwrap();
    }
    // Ports, whatever became of their owner: of one bridge only.
    let mut lines = String::new();
    for number in 0..TAPS - 2 {
        writeln!(lines, "tuntap add dev t{number} mode tap user {STRANGER}").unwrap();
        writeln!(lines, "link set t{number} master br-fc-1").unwrap();
    }
    batch(&lines);
    ensure_bridge(&host, bridge_params()).unwrap();
    let one_more = || bridge_params_of("br-fc-more", "172.21.0.1", "24", None);
    too_many(ensure_bridge(&host, one_more()), "bridge_name", "16 bridges of 16");
    drop(create_tap(&host, tap_params("tap-pool-1")).unwrap());
    drop(create_tap(&host, tap_params("tap-pool-2")).unwrap());
    give_away("tap-pool-1");
    // Also by a helper that has just been started.
    host.host = Host::open(host.policy().clone(), &host.own).unwrap();
    let before = picture();
    too_many(create_tap(&host, tap_params("tap-pool-3")), "tap_name", "512 taps of 512");
    too_many(ensure_bridge(&host, one_more()), "bridge_name", "16 bridges of 16");
    same(&before, &picture());
    // What is there can be had again.
    assert!(!create_tap(&host, tap_params("tap-pool-2")).unwrap().0);
    assert!(!ensure_bridge(&host, bridge_params()).unwrap());
    assert!(delete_tap(&host, "tap-pool-1").unwrap());
    assert!(create_tap(&host, tap_params("tap-pool-3")).unwrap().0);
    for number in 1..BRIDGES {
        run(&format!("ip link delete br-fc-{number}"));
    }
    assert!(ensure_bridge(&host, one_more()).unwrap());
}

/// As on a machine whose own name server lies where the tests have their guests.
#[test]
fn this_machines_name_servers_are_nothing_to_tests() {
    if !is_root() {
        return;
    }
    enter_own_mounts();
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "nameserver 172.16.0.53\n").unwrap();
    rustix::mount::mount_bind(file.path(), "/etc/resolv.conf").unwrap();
    enter_own_network();
    let host = Fixture::new();
    assert!(ensure_bridge(&host, bridge_params()).unwrap());
}
