//! What a tap is after `create_tap`, and what is refused.

use banger_helper_api::CreateTapParams;
use banger_privileged_tests::{Fixture, enter_own_network};

use crate::is_root;
use crate::world::{
    World, bridge_params, bridge_params_of, create_tap, delete_tap, ensure_bridge, ensure_nat,
    guest_params, nat_params, picture, refused, run, same, tap_params,
};

#[test]
fn a_tap_is_the_owners_a_port_alone_and_up() {
    if !is_root() {
        return;
    }
    enter_own_network();
    let host = Fixture::new();
    ensure_bridge(&host, bridge_params()).unwrap();
    let before = picture();
    for params in [tap_params("tap-pool-1"), guest_params(2)] {
        let name = params.tap_name.clone();
        let closed = CreateTapParams { return_fd: false, ..params.clone() };
        let (changed, descriptor) = create_tap(&host, closed.clone()).unwrap();
        assert!(changed && descriptor.is_none());
        let (changed, descriptor) = create_tap(&host, closed.clone()).unwrap();
        assert!(!changed && descriptor.is_none());
        let (changed, descriptor) = create_tap(&host, params.clone()).unwrap();
        assert!(!changed && descriptor.is_some());
        let link = run(&format!("ip -d link show {name}"));
        for word in [
            "master br-fc",
            "isolated on",
            "tun type tap pi off vnet_hdr on persist on",
            "user 60907",
            "group 60907",
            "UP",
        ] {
            assert!(link.contains(word), "{word}: {link}");
        }
        assert_eq!(run(&format!("ip -6 address show {name}")), "");

        // Open elsewhere: it cannot be opened twice, and that it is there can still be said.
        let twice = create_tap(&host, params.clone()).unwrap_err();
        assert!(twice.to_string().contains("open tap"), "{twice}");
        assert!(!create_tap(&host, closed.clone()).unwrap().0);

        // Whatever somebody changes by hand is set right again.
        for line in [
            format!("ip link set {name} down"),
            format!("ip link set {name} nomaster"),
            format!("ip link set {name} type bridge_slave isolated off"),
        ] {
            run(&line);
            assert!(create_tap(&host, closed.clone()).unwrap().0, "{line}");
            assert!(!create_tap(&host, closed.clone()).unwrap().0, "{line}");
        }
        drop(descriptor);
        assert!(delete_tap(&host, &name).unwrap());
        assert!(!delete_tap(&host, &name).unwrap(), "no tap is no failure");
        same(&before, &picture());
    }
    assert!(std::fs::read_dir(host.own.join("records")).unwrap().count() == 1, "the bridge's");
}

#[test]
fn what_is_no_tap_of_the_owners_is_refused() {
    if !is_root() {
        return;
    }
    enter_own_network();
    let host = Fixture::new();
    ensure_bridge(&host, bridge_params()).unwrap();
    let tun = "ip tuntap add dev tap-fc-2 mode";
    for make in [
        "ip link add name tap-fc-2 type vxlan id 5 dstport 4789".to_owned(),
        "ip link add name tap-fc-2 type bridge".to_owned(),
        "ip link add name tap-fc-2 type veth peer name other".to_owned(),
        format!("{tun} tun user 60907 group 60907"),
        format!("{tun} tap"),
        format!("{tun} tap user 0 group 0 vnet_hdr"),
        format!("{tun} tap user 60908 group 60907 vnet_hdr"),
        format!("{tun} tap user 60907 group 60908 vnet_hdr"),
        format!("{tun} tap user 60907 vnet_hdr"),
        format!("{tun} tap user 60907 group 60907"),
    ] {
        run(&make);
        refused("tap_name", || create_tap(&host, guest_params(2)));
        refused("tap_name", || create_tap(&host, tap_params("tap-fc-2")));
        refused("tap_name", || delete_tap(&host, "tap-fc-2"));
        refused("tap", || ensure_nat(&host, &nat_params(2)));
        run("ip link delete tap-fc-2");
    }
    // The neighbour: one that is just as banger makes it.
    run(&format!("{tun} tap user 60907 group 60907 vnet_hdr"));
    assert!(create_tap(&host, guest_params(2)).unwrap().0);
    assert!(delete_tap(&host, "tap-fc-2").unwrap());
}

#[test]
fn a_bridge_that_is_not_set_up_gets_no_tap() {
    if !is_root() {
        return;
    }
    enter_own_network();
    let host = Fixture::new();
    refused("bridge_name", || create_tap(&host, guest_params(2)));
    run("ip link add name br-fc type bridge");
    run("ip address add 172.16.0.1/24 dev br-fc");
    run("ip link set br-fc up");
    refused("bridge_name", || create_tap(&host, guest_params(2)));
    ensure_bridge(&host, bridge_params()).unwrap();
    for (make, undo) in [
        ("ip link set br-fc down", "ip link set br-fc up"),
        ("ip address del 172.16.0.1/24 dev br-fc", "ip address add 172.16.0.1/24 dev br-fc"),
        ("ip link set br-fc alias x", "ip link set br-fc alias banger,_uid_60907"),
    ] {
        run(make);
        refused("bridge_name", || create_tap(&host, guest_params(2)));
        if undo.contains("alias") {
            let alias = ["link", "set", "br-fc", "alias", "banger, uid 60907"];
            assert!(std::process::Command::new("ip").args(alias).status().unwrap().success());
        } else {
            run(undo);
        }
    }
    for (ip, cidr) in [("172.16.0.2", "24"), ("172.16.0.1", "25"), ("172.17.0.1", "24")] {
        let (bridge_ip, cidr) = (ip.to_owned(), cidr.to_owned());
        let params = CreateTapParams { bridge_ip, cidr, ..tap_params("tap-fc-2") };
        refused("bridge_name", || create_tap(&host, params));
    }
    let params = CreateTapParams { bridge_name: "br-fc-2".to_owned(), ..tap_params("tap-fc-2") };
    refused("bridge_name", || create_tap(&host, params.clone()));
    assert!(create_tap(&host, tap_params("tap-fc-2")).unwrap().0);

    // A port of one bridge does not move to another.
    ensure_bridge(&host, bridge_params_of("br-fc-2", "172.18.0.1", "24", None)).unwrap();
    let params = CreateTapParams { bridge_ip: "172.18.0.1".to_owned(), ..params };
    refused("tap_name", || create_tap(&host, params.clone()));
    assert!(delete_tap(&host, "tap-fc-2").unwrap());
    assert!(create_tap(&host, params).unwrap().0);
}

#[test]
fn a_way_out_is_only_for_the_guest_behind_the_tap() {
    if !is_root() {
        return;
    }
    let _world = World::new();
    let host = Fixture::new();
    refused("tap", || ensure_nat(&host, &nat_params(2)));
    ensure_bridge(&host, bridge_params()).unwrap();
    refused("tap", || ensure_nat(&host, &nat_params(2)));
    drop(create_tap(&host, guest_params(2)).unwrap());
    drop(create_tap(&host, tap_params("tap-fc-3")).unwrap());
    let with_ip = |tap: u8, ip: &str| {
        let guest_ip = ip.to_owned();
        banger_helper_api::EnsureNatParams { guest_ip, ..nat_params(tap) }
    };
    for ip in ["172.16.0.3", "172.16.0.0", "172.16.0.1", "172.16.0.255", "172.16.1.2", "9.9.9.9"] {
        refused("guest_ip", || ensure_nat(&host, &with_ip(2, ip)));
    }
    // A tap that is for no address yet: none but a guest's on its bridge.
    for ip in ["172.16.0.2", "172.16.0.0", "172.16.0.1", "172.16.0.255", "172.16.1.3", "9.9.9.9"] {
        refused("guest_ip", || ensure_nat(&host, &with_ip(3, ip)));
    }
    run("ip link set tap-fc-3 nomaster");
    refused("tap", || ensure_nat(&host, &nat_params(3)));
    run("ip link add name foreign type bridge");
    run("ip link set tap-fc-3 master foreign");
    refused("tap", || ensure_nat(&host, &nat_params(3)));
    run("ip link set tap-fc-3 master br-fc");
    let before = run("nft -s list ruleset");
    for number in [2, 3] {
        assert!(ensure_nat(&host, &nat_params(number)).unwrap());
        assert!(!ensure_nat(&host, &nat_params(number)).unwrap());
    }
    refused("guest_ip", || ensure_nat(&host, &with_ip(3, "172.16.0.2")));
    let closed = |n| banger_helper_api::EnsureNatParams { enable: false, ..nat_params(n) };
    for number in [2, 3] {
        assert!(ensure_nat(&host, &closed(number)).unwrap());
        assert!(!ensure_nat(&host, &closed(number)).unwrap());
    }
    // What stays is the guard of the uplink, which forwards now.
    let after = run("nft -s list ruleset").replace("\n\t\telements = { \"up0\" }", "");
    assert_eq!(before, after);
    assert!(ensure_nat(&host, &nat_params(2)).unwrap());
    assert!(delete_tap(&host, "tap-fc-2").unwrap());
    assert!(!run("nft list ruleset").contains("tap-fc-2"));
    assert!(!run("nft list ruleset").contains("172.16.0.2"));
    assert!(!ensure_nat(&host, &closed(2)).unwrap(), "none to take away");
}

#[test]
fn no_two_taps_of_a_bridge_are_for_the_same_guest() {
    if !is_root() {
        return;
    }
    enter_own_network();
    let host = Fixture::new();
    ensure_bridge(&host, bridge_params()).unwrap();
    drop(create_tap(&host, guest_params(2)).unwrap());
    drop(create_tap(&host, tap_params("tap-fc-4")).unwrap());
    assert!(ensure_nat(&host, &nat_params(4)).unwrap());
    let third = |mac: u8, ip: u8| CreateTapParams {
        guest_mac: guest_params(mac).guest_mac,
        guest_ip: guest_params(ip).guest_ip,
        ..tap_params("tap-fc-3")
    };
    refused("guest_ip", || create_tap(&host, third(3, 2)));
    refused("guest_mac", || create_tap(&host, third(2, 3)));
    refused("guest_ip", || create_tap(&host, third(3, 4)));
    // Neighbours: another guest, the same one again, and one whose tap is gone.
    assert!(create_tap(&host, third(3, 3)).unwrap().0);
    refused("guest_ip", || create_tap(&host, third(3, 2)));
    assert!(!create_tap(&host, third(3, 3)).unwrap().0);
    run("ip link delete tap-fc-2");
    assert!(create_tap(&host, third(2, 2)).unwrap().0);
    refused("guest_mac", || create_tap(&host, guest_params(2)));
    assert!(delete_tap(&host, "tap-fc-3").unwrap());
    assert!(create_tap(&host, guest_params(2)).unwrap().0);
    // The same MAC on another bridge meets nobody.
    ensure_bridge(&host, bridge_params_of("br-fc-2", "172.18.0.1", "24", None)).unwrap();
    let elsewhere = CreateTapParams {
        bridge_name: "br-fc-2".to_owned(),
        bridge_ip: "172.18.0.1".to_owned(),
        guest_ip: Some("172.18.0.2".to_owned()),
        ..third(2, 2)
    };
    assert!(create_tap(&host, elsewhere).unwrap().0);
}

/// A tap that somebody took away without a word has no guest: its address is free again.
#[test]
fn a_tap_that_is_gone_keeps_no_address_from_the_next() {
    if !is_root() {
        return;
    }
    let _world = World::new();
    let host = Fixture::new();
    ensure_bridge(&host, bridge_params()).unwrap();
    let tap_name = "tap-fc-other".to_owned();
    let other = CreateTapParams { tap_name: tap_name.clone(), ..guest_params(2) };
    let nat = banger_helper_api::EnsureNatParams { tap: tap_name, ..nat_params(2) };
    drop(create_tap(&host, guest_params(2)).unwrap());
    let allowed = banger_helper_api::EnsureNatParams { allow_lan: true, ..nat_params(2) };
    assert!(ensure_nat(&host, &allowed).unwrap());
    refused("guest_mac", || create_tap(&host, other.clone()));
    run("ip link delete tap-fc-2");
    // A refusal leaves what the helper knows of it as it was: here the address is another's.
    drop(create_tap(&host, guest_params(3)).unwrap());
    let record = || std::fs::read_to_string(host.own.join("records/tap.tap-fc-2.json")).unwrap();
    let before = record();
    refused("guest_ip", || {
        create_tap(&host, CreateTapParams { guest_ip: guest_params(3).guest_ip, ..other.clone() })
    });
    assert_eq!(record(), before);
    drop(create_tap(&host, other).unwrap());
    // Nor does it leave the next guest what it was allowed.
    let rules = run("nft list table inet banger");
    assert!(!rules.contains("\"br-fc\" . 172.16.0.2"), "{rules}");
    assert!(ensure_nat(&host, &nat).unwrap());
    let rules = run("nft list table inet banger");
    assert!(rules.contains("\"br-fc\" . 172.16.0.2"), "{rules}");
    refused("guest_mac", || create_tap(&host, guest_params(2)));
}
