//! The guests' walls, frame by frame.

use std::net::{Ipv4Addr, TcpListener, UdpSocket};

use banger_helper_api::{CreateTapParams, EnsureNatParams};
use banger_privileged_tests::Fixture;

use crate::guest::{BROADCAST, GATEWAY, GATEWAY_MAC, arp, ethernet, ipv4, udp};
use crate::is_root;
use crate::world::{
    NOBODYS, PRIVATE, World, bridge_params, bridge_params_of, create_tap, delete_tap,
    ensure_bridge, ensure_nat, feed, guest, guest_params, ip, nat_params, run, tap_params,
};

fn set_up() -> (World, Fixture) {
    let world = World::new();
    let host = Fixture::new();
    ensure_bridge(&host, bridge_params()).unwrap();
    (world, host)
}

#[test]
fn the_world_is_reached_with_nat_and_only_with_it() {
    if !is_root() {
        return;
    }
    let (world, host) = set_up();
    let mut two = guest(&host, 2, guest_params(2));
    assert!(two.reaches("172.16.0.1"), "the bridge itself answers pings");
    assert!(two.is_kept_from("9.9.9.9"));
    assert!(ensure_nat(&host, &nat_params(2)).unwrap());
    assert!(two.reaches("9.9.9.9"));
    let mut three = guest(&host, 3, guest_params(3));
    assert!(three.is_kept_from("9.9.9.9"), "it is for one guest only");

    // Not to private networks unless that is said, and to nobody's addresses never.
    for address in [&PRIVATE[..], &NOBODYS].concat() {
        assert!(two.is_kept_from(address), "{address}");
    }
    assert!(ensure_nat(&host, &EnsureNatParams { allow_lan: true, ..nat_params(2) }).unwrap());
    for address in PRIVATE {
        assert!(two.reaches(address), "{address}");
    }
    for address in NOBODYS {
        assert!(two.is_kept_from(address), "{address}");
    }
    assert!(two.reaches("9.9.9.9"));
    assert!(ensure_nat(&host, &nat_params(2)).unwrap());
    assert!(two.is_kept_from(PRIVATE[0]) && two.reaches("9.9.9.9"));

    // Another uplink, with nobody telling the helper; then one that has yet to forward.
    world.add_uplink("up1", 3);
    run("sysctl -qw net.ipv4.conf.up1.forwarding=1");
    run("ip route replace default via 9.9.3.1");
    assert!(two.reaches("9.9.9.9"));
    world.add_uplink("up2", 4);
    run("ip link delete up1");
    run("ip route replace default via 9.9.4.1");
    assert!(host.host.refresh_network().unwrap());
    assert!(!host.host.refresh_network().unwrap());
    assert!(two.reaches("9.9.9.9"));

    // The host is no router for anybody else: not for the world to guests,
    assert_eq!(std::fs::read_to_string("/proc/sys/net/ipv4/ip_forward").unwrap().trim(), "0");
    world.run("ip route add 172.16.0.0/24 via 9.9.4.2");
    world.sends("172.16.0.2", 9);
    let unasked = |frame: &[u8]| frame.ends_with(b"unasked\n").then_some(());
    assert_eq!(two.wait(std::time::Duration::from_millis(250), unasked), None);
    // and not for the world to the host's other networks, also after the rules were flushed.
    run("ip link add name lan0 type veth peer name lan1");
    for line in
        ["ip link set lan0 up", "ip link set lan1 up", "ip address add 10.99.0.1/24 dev lan0"]
    {
        run(line);
    }
    run("ip neighbour add 10.99.0.5 lladdr 02:00:00:00:00:05 dev lan0");
    world.run("ip route add 10.99.0.0/24 via 9.9.4.2");
    let is_routed = || {
        let watch = "add table netdev watch\ndelete table netdev watch\nadd table netdev watch\n\
            add chain netdev watch lan1 { type filter hook ingress device lan1 priority 0; }\n\
            add rule netdev watch lan1 ip daddr 10.99.0.5 counter\n";
        feed("nft -f -", watch);
        world.sends("10.99.0.5", 9);
        std::thread::sleep(std::time::Duration::from_millis(100));
        !run("nft list table netdev watch").contains("packets 0 ")
    };
    assert!(!is_routed());
    run("nft delete table inet banger");
    assert!(is_routed(), "the watch sees what is routed");
    assert!(host.host.refresh_network().unwrap());
    assert!(!is_routed());
    assert!(two.reaches("9.9.9.9"));
    // Unless somebody says that it is one.
    run("sysctl -qw net.ipv4.ip_forward=1");
    assert!(host.host.refresh_network().unwrap());
    assert!(is_routed());
    assert!(two.reaches("9.9.9.9"));

    assert!(ensure_nat(&host, &EnsureNatParams { enable: false, ..nat_params(2) }).unwrap());
    assert!(two.is_kept_from("9.9.9.9"));
    assert!(ensure_nat(&host, &nat_params(2)).unwrap());
    assert!(two.reaches("9.9.9.9"));
    drop(two);
    assert!(delete_tap(&host, "tap-fc-2").unwrap());
    let mut again = guest(&host, 2, guest_params(2));
    assert!(again.is_kept_from("9.9.9.9"), "a new tap of an old name has no old rights");
}

#[test]
fn a_connection_that_is_open_ends_with_the_right_to_it() {
    if !is_root() {
        return;
    }
    let (_world, host) = set_up();
    let mut two = guest(&host, 2, guest_params(2));
    ensure_nat(&host, &nat_params(2)).unwrap();
    for _ in 0..3 {
        assert!(two.reaches("9.9.9.9"));
    }
    ensure_nat(&host, &EnsureNatParams { enable: false, ..nat_params(2) }).unwrap();
    assert!(two.is_kept_from("9.9.9.9"), "one flow: the pings have one identifier");
}

#[test]
fn of_the_host_a_guest_sees_the_name_server_and_no_more() {
    if !is_root() {
        return;
    }
    let (_world, host) = set_up();
    let names = UdpSocket::bind((GATEWAY, 42_070)).unwrap();
    let named = TcpListener::bind((GATEWAY, 42_070)).unwrap();
    let _service = TcpListener::bind("0.0.0.0:8080").unwrap();
    let other = UdpSocket::bind("0.0.0.0:8080").unwrap();
    let answer = |socket: UdpSocket, text: &'static [u8]| {
        std::thread::spawn(move || {
            let mut buffer = [0; 100];
            while let Ok((_, from)) = socket.recv_from(&mut buffer) {
                let _ = socket.send_to(text, from);
            }
        });
    };
    answer(names, b"names");
    answer(other, b"other");
    let mut two = guest(&host, 2, guest_params(2));
    for has_nat in [false, true] {
        if has_nat {
            ensure_nat(&host, &EnsureNatParams { allow_lan: true, ..nat_params(2) }).unwrap();
        }
        assert_eq!(two.asks(GATEWAY, 53, true).as_deref(), Some(&b"names"[..]));
        assert!(two.connects(GATEWAY, 53, true));
        assert_eq!(two.asks(GATEWAY, 8080, false), None);
        assert!(!two.connects(GATEWAY, 8080, false));
        // The host's other addresses are the host, too.
        for address in ["9.9.2.2", "127.0.0.1", "172.16.0.255", "224.0.0.1", "255.255.255.255"] {
            assert!(two.is_kept_from(address), "{address}");
            assert!(!two.connects(ip(address), 8080, false), "{address}");
            assert_eq!(two.asks(ip(address), 53, false), None, "{address}");
        }
    }
    drop(named);

    // IPv6 and a VLAN's frames reach neither host nor guest.
    let before = rx_of_bridge();
    let echo = [&[0x60, 0, 0, 0, 0, 8, 58, 64][..], &[0xfe; 16], &[0xff; 16], &[128; 8]].concat();
    let mac = two.mac;
    let packet = ipv4(two.ip, GATEWAY, 17, &udp(9, 53, b"x"));
    for (kind, payload) in [
        (0x86dd, echo),
        (0x8100, [&[0, 5, 8, 0][..], &packet].concat()),
        (0x88a8, [&[0, 5, 8, 0][..], &packet].concat()),
        (0x88cc, vec![0; 60]),
    ] {
        for to in [GATEWAY_MAC, BROADCAST, [0x33, 0x33, 0, 0, 0, 1], [1, 0x80, 0xc2, 0, 0, 0xe]] {
            two.send(&ethernet(to, mac, kind, &payload));
        }
    }
    assert!(two.reaches("172.16.0.1"), "the neighbour of all these");
    assert_eq!(rx_of_bridge() - before, 1, "only the ping came through");
}

/// Frames that the host's own stack has had from the bridge.
fn rx_of_bridge() -> u64 {
    let text = run("ip -s -j link show br-fc");
    let list: serde_json::Value = serde_json::from_str(&text).unwrap();
    list[0]["stats64"]["rx"]["packets"].as_u64().unwrap()
}

#[test]
fn guests_hear_each_other_only_in_a_group() {
    if !is_root() {
        return;
    }
    let (_world, host) = set_up();
    let grouped = |number: u8, group: &str| CreateTapParams {
        group: Some(group.to_owned()),
        ..guest_params(number)
    };
    let open = |number: u8| CreateTapParams { isolated: Some(false), ..guest_params(number) };
    let mut guests = [
        guest(&host, 2, guest_params(2)),
        guest(&host, 3, guest_params(3)),
        guest(&host, 4, grouped(4, "blue")),
        guest(&host, 5, grouped(5, "blue")),
        guest(&host, 6, grouped(6, "red")),
        guest(&host, 7, open(7)),
        guest(&host, 8, CreateTapParams { isolated: Some(false), ..tap_params("tap-fc-8") }),
    ];
    let check = |guests: &mut [crate::guest::Guest]| {
        for from in 0..guests.len() {
            for to in (0..guests.len()).filter(|to| *to != from) {
                let should = [from, to].iter().all(|index| [2, 3].contains(index));
                let [one, other] = guests.get_disjoint_mut([from, to]).unwrap();
                assert_eq!(one.is_heard_by(other, should), should, "{} {}", one.ip, other.ip);
            }
        }
    };
    check(&mut guests);
    // Not by way of the host either, not by broadcast, and not with all rights.
    for number in 2..8 {
        let lan = EnsureNatParams { allow_lan: true, ..nat_params(number) };
        ensure_nat(&host, &lan).unwrap();
    }
    for (from, to) in [(0, 1), (2, 3), (2, 4), (6, 0), (0, 6)] {
        let [one, other] = guests.get_disjoint_mut([from, to]).unwrap();
        let packet = ipv4(one.ip, other.ip, 17, &udp(9, 9, b"by the gateway"));
        let frame = ethernet(GATEWAY_MAC, one.mac, 0x0800, &packet);
        assert!(!one.frame_arrives(&frame, other, b"by the gateway"), "{from} {to}");
        if (from, to) != (2, 3) {
            let frame = ethernet(BROADCAST, one.mac, 0x0800, &packet);
            assert!(!one.frame_arrives(&frame, other, b"by the gateway"), "{from} {to}");
        }
    }
    // Nor by a port forwarding of the host to another guest.
    run("nft add table ip ports");
    run("nft add chain ip ports pre { type nat hook prerouting priority -110 ; }");
    run("nft add rule ip ports pre udp dport 8099 dnat to 172.16.0.3:9");
    let [one, other, ..] = &mut guests;
    let packet = ipv4(one.ip, GATEWAY, 17, &udp(9, 8099, b"turned round"));
    let frame = ethernet(GATEWAY_MAC, one.mac, 0x0800, &packet);
    assert!(!one.frame_arrives(&frame, other, b"turned round"));
    run("nft delete table ip ports");
    // The same where the kernel shows bridged packets to a firewall that drops them.
    if std::path::Path::new("/proc/sys/net/bridge").exists() {
        run("sysctl -qw net.bridge.bridge-nf-call-iptables=1");
        run("iptables -P FORWARD DROP");
        let [_, _, four, five, ..] = &mut guests;
        assert!(!four.is_heard_by(five, false), "dropped by the host's firewall");
        assert!(host.host.refresh_network().unwrap());
        check(&mut guests);
    }
    // Who leaves the group is alone.
    drop(guests);
    assert!(create_tap(&host, guest_params(5)).unwrap().0);
    assert_eq!(run("nft list map bridge banger groups").matches("tap-fc-").count(), 2);
}

#[test]
fn guests_of_two_bridges_do_not_meet() {
    if !is_root() {
        return;
    }
    let (_world, host) = set_up();
    ensure_bridge(&host, bridge_params_of("br-fc-2", "172.17.0.1", "24", None)).unwrap();
    let theirs = CreateTapParams {
        bridge_name: "br-fc-2".to_owned(),
        bridge_ip: "172.17.0.1".to_owned(),
        ..tap_params("tap-fc-9")
    };
    let mut nine = guest(&host, 9, theirs);
    nine.ip = Ipv4Addr::new(172, 17, 0, 9);
    let mut two = guest(&host, 2, guest_params(2));
    ensure_nat(&host, &EnsureNatParams { allow_lan: true, ..nat_params(2) }).unwrap();
    let packet = ipv4(two.ip, nine.ip, 17, &udp(9, 9, b"over there"));
    let frame = ethernet(GATEWAY_MAC, two.mac, 0x0800, &packet);
    assert!(!two.frame_arrives(&frame, &mut nine, b"over there"));
    assert!(two.is_kept_from("172.17.0.1"), "nor the other bridge's address");
    assert!(two.reaches("172.16.0.1"));
}

#[test]
fn nobody_speaks_for_another() {
    if !is_root() {
        return;
    }
    let (_world, host) = set_up();
    let mut two = guest(&host, 2, guest_params(2));
    let mut free = guest(&host, 3, tap_params("tap-fc-3"));
    ensure_nat(&host, &nat_params(2)).unwrap();
    assert!(two.reaches("9.9.9.9"));
    let short = std::time::Duration::from_millis(250);
    let (mac, own) = (two.mac, two.ip);
    assert!(!two.pings_as(free.mac, own, GATEWAY, short), "another MAC");
    assert!(!two.pings_as(mac, ip("172.16.0.3"), GATEWAY, short), "another guest's address");
    assert!(!two.pings_as(mac, ip("9.9.9.8"), GATEWAY, short), "the world's");
    assert!(!two.pings_as(mac, GATEWAY, ip("9.9.9.9"), short), "the gateway's");
    // What has a way out is its tap's alone, also where a tap's guest is not known.
    assert!(!free.pings_as(mac, own, ip("9.9.9.9"), short));
    assert!(!free.pings_as(free.mac, own, GATEWAY, short));
    assert!(free.reaches("172.16.0.1"), "its own address is nobody's business");

    // ARP: the host believes only what is so.
    let neighbours = || run("ip neighbour show dev br-fc");
    let claim = |guest: &mut crate::guest::Guest, from: [u8; 6], mac: [u8; 6], ip: Ipv4Addr| {
        guest.send(&ethernet(BROADCAST, from, 0x0806, &arp(1, mac, ip, GATEWAY)));
        guest.send(&ethernet(GATEWAY_MAC, from, 0x0806, &arp(2, mac, ip, GATEWAY)));
    };
    let stranger = [6, 0, 1, 2, 3, 4];
    run("ip neighbour flush dev br-fc");
    claim(&mut two, mac, mac, ip("172.16.0.44"));
    claim(&mut two, mac, stranger, own);
    claim(&mut two, stranger, stranger, own);
    let free_mac = free.mac;
    claim(&mut free, free_mac, free_mac, own);
    claim(&mut free, free_mac, free_mac, GATEWAY);
    assert_eq!(neighbours(), "");
    claim(&mut two, mac, mac, own);
    claim(&mut free, free_mac, free_mac, ip("172.16.0.45"));
    let found = neighbours();
    assert!(found.contains("172.16.0.2 lladdr 06:00:ac:10:00:02"), "{found}");
    assert!(found.contains("172.16.0.45"), "{found}");
    assert!(!found.contains("172.16.0.44") && !found.contains("06:00:01:02"), "{found}");
}
