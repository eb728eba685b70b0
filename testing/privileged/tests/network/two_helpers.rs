//! The helpers of the system and of direct mode share banger's two tables: each keeps what is the
//! other's, also when it puts its own rules in place of another version's.

use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::fs::chown;

use banger_gates::{Owner, Policy};
use banger_helper_api::{CreateTapParams, EnsureNatParams};
use banger_host::Host;
use banger_privileged_tests::{Directories, Fixture, OWNER};

use crate::guest::Guest;
use crate::is_root;
use crate::world::{
    World, bridge_params, bridge_params_of, create_tap, delete_tap, ensure_bridge, ensure_nat,
    feed, guest, guest_params, ip, nat_params, picture, run, same, tap_params,
};

const GATEWAY: Ipv4Addr = Ipv4Addr::new(172, 17, 0, 1);

/// The helper of another owner, with directories of its own.
fn another() -> Fixture {
    let directories = Directories::new();
    let uid = OWNER + 1;
    for path in [&directories.state, &directories.runtime] {
        chown(path, Some(uid), Some(uid)).unwrap();
    }
    let policy = Policy { owner: Owner::new(uid, uid).unwrap(), ..directories.policy() };
    let host = Host::open(policy, &directories.own).unwrap();
    Fixture { host, directories }
}

/// A tap of the other helper's bridge, whose guest is 172.17.0.N.
fn their_params(number: u8) -> CreateTapParams {
    CreateTapParams {
        bridge_name: "br-fc-1000".to_owned(),
        bridge_ip: GATEWAY.to_string(),
        guest_mac: Some(format!("06:00:ac:11:00:{number:02x}")),
        guest_ip: Some(format!("172.17.0.{number}")),
        ..tap_params(&format!("tap-fc-{number}"))
    }
}

fn their_nat(number: u8) -> EnsureNatParams {
    EnsureNatParams { guest_ip: format!("172.17.0.{number}"), ..nat_params(number) }
}

/// Plays that guest.
fn their_guest(host: &Fixture, number: u8, params: CreateTapParams) -> Guest {
    let mut guest = guest(host, number, params);
    guest.mac = [6, 0, 172, 17, 0, number];
    guest.ip = Ipv4Addr::new(172, 17, 0, number);
    guest.gateway_mac = [2, 0xfc, 172, 17, 0, 1];
    guest
}

/// Turns the rules in the kernel into those of another version; the elements of the sets stay.
fn make_another_version() {
    let tables = ["inet banger", "bridge banger"];
    let lists = tables.map(|table| run(&format!("nft -s list table {table}"))).concat();
    let (_, version) = lists.split_once("comment \"").unwrap();
    let version = version.split('"').next().unwrap();
    let deletions = tables.map(|table| format!("delete table {table}\n")).concat();
    feed("nft -f -", &(deletions + &lists.replace(version, "another version")));
}

#[test]
fn rules_that_one_helper_renews_keep_what_is_the_others() {
    if !is_root() {
        return;
    }
    let _world = World::new();
    let (own, others) = (Fixture::new(), another());
    ensure_bridge(&own, bridge_params()).unwrap();
    let bridge = bridge_params_of("br-fc-1000", "172.17.0.1", "24", Some(42_071));
    ensure_bridge(&others, bridge).unwrap();
    let _names = TcpListener::bind((GATEWAY, 42_071)).unwrap();

    let mut two = guest(&own, 2, guest_params(2));
    ensure_nat(&own, &nat_params(2)).unwrap();
    let grouped = |number| CreateTapParams { group: Some("g".to_owned()), ..their_params(number) };
    let mut free = their_guest(&others, 9, their_params(9));
    let mut walled = their_guest(&others, 10, their_params(10));
    let mut pair = [11, 12].map(|number| their_guest(&others, number, grouped(number)));
    ensure_nat(&others, &their_nat(9)).unwrap();
    ensure_nat(&others, &EnsureNatParams { allow_lan: true, ..their_nat(11) }).unwrap();

    let whole = picture();
    for (renewer, neighbour) in [(&own, &others), (&others, &own), (&own, &others)] {
        make_another_version();
        assert!(picture().contains("another version"));
        assert!(renewer.host.refresh_network().unwrap(), "rules of another version are replaced");
        same(&whole, &picture());
        assert!(!renewer.host.refresh_network().unwrap());
        assert!(!neighbour.host.refresh_network().unwrap(), "nothing was missing");

        assert!(two.reaches("9.9.9.9") && two.is_kept_from("10.50.0.1"));
        assert!(free.reaches("172.17.0.1") && free.reaches("9.9.9.9"));
        assert!(free.connects(GATEWAY, 53, true), "the name server");
        assert!(free.is_kept_from("10.50.0.1") && !free.connects(GATEWAY, 22, false));
        let short = std::time::Duration::from_millis(250);
        assert!(!free.pings_as(free.mac, ip("172.17.0.10"), GATEWAY, short), "another's address");
        assert!(walled.reaches("172.17.0.1") && walled.is_kept_from("9.9.9.9"));
        assert!(!free.is_heard_by(&mut walled, false));
        let [one, other] = &mut pair;
        assert!(one.is_heard_by(other, true) && one.reaches("10.50.0.1"));
        assert!(other.is_kept_from("9.9.9.9"));
    }

    // Renewed by an act of one of them, and by the going of its last tap.
    make_another_version();
    let closed = EnsureNatParams { enable: false, ..nat_params(2) };
    assert!(ensure_nat(&own, &closed).unwrap());
    assert!(two.is_kept_from("9.9.9.9") && free.reaches("9.9.9.9"));
    make_another_version();
    drop(two);
    assert!(delete_tap(&own, "tap-fc-2").unwrap());
    assert!(free.reaches("9.9.9.9") && walled.is_kept_from("9.9.9.9"));
    assert!(!others.host.refresh_network().unwrap(), "nothing was missing");
    drop(create_tap(&own, guest_params(2)).unwrap());
}
