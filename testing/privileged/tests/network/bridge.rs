//! What a bridge is after `ensure_bridge`, and what is refused.

use std::os::fd::OwnedFd;

use banger_gates::{Owner, Policy};
use banger_host::Host;
use banger_privileged_tests::{Fixture, OWNER, enter_own_mounts, enter_own_network};

use crate::is_root;
use crate::world::{
    World, bridge_params, bridge_params_of, create_tap, delete_tap, ensure_bridge, guest_params,
    picture, refused, run, same, tap_params,
};

#[test]
fn a_bridge_is_made_once_and_is_what_was_asked() {
    if !is_root() {
        return;
    }
    enter_own_network();
    let host = Fixture::new();
    assert!(ensure_bridge(&host, bridge_params()).unwrap());
    let first = picture();
    assert!(!ensure_bridge(&host, bridge_params()).unwrap(), "nothing changes twice");
    same(&first, &picture());
    let link = run("ip -d link show br-fc");
    for word in ["02:fc:ac:10:00:01", "UP", "stp_state 0", "group_fwd_mask 0", "banger, uid 60907"]
    {
        assert!(link.contains(word), "{word}: {link}");
    }
    assert!(run("ip -4 address show br-fc").contains("172.16.0.1/24"));
    assert_eq!(run("ip -6 address show br-fc"), "", "no IPv6");
    for (key, value) in [
        ("ipv4/conf/br-fc/forwarding", "1"),
        ("ipv4/conf/br-fc/route_localnet", "0"),
        ("ipv4/conf/br-fc/rp_filter", "1"),
        ("ipv6/conf/br-fc/disable_ipv6", "1"),
        ("ipv6/conf/br-fc/accept_ra", "0"),
        ("ipv4/ip_forward", "0"),
        ("ipv4/conf/lo/forwarding", "0"),
    ] {
        let now = std::fs::read_to_string(format!("/proc/sys/net/{key}"));
        assert_eq!(now.unwrap().trim(), value, "{key}");
    }

    // Whatever somebody changes by hand is set right again, and an address that they added stays.
    run("ip address add 10.7.0.1/24 dev br-fc");
    for line in [
        "ip link set br-fc down",
        "ip address del 172.16.0.1/24 dev br-fc",
        "ip link set br-fc address 02:00:00:00:00:09",
        "ip link set br-fc type bridge stp_state 1",
        "ip link set br-fc type bridge group_fwd_mask 8",
        "nft delete table inet banger",
        "nft flush chain bridge banger from_tap",
        "nft flush set inet banger services",
        "nft add element inet banger services { br-fc . 172.16.0.1 . 22 }",
    ] {
        run(line);
        assert!(ensure_bridge(&host, bridge_params()).unwrap(), "{line}");
        assert!(!ensure_bridge(&host, bridge_params()).unwrap(), "{line}");
    }
    let addresses = run("ip -4 address show br-fc");
    assert!(addresses.contains("10.7.0.1/24") && addresses.contains("172.16.0.1/24"));
    run("ip address del 10.7.0.1/24 dev br-fc");
    same(&first, &picture());
}

#[test]
fn another_interface_or_another_owners_bridge_is_refused() {
    if !is_root() {
        return;
    }
    enter_own_network();
    let host = Fixture::new();
    for make in ["veth peer name other", "vxlan id 5 dstport 4789"] {
        run(&format!("ip link add name br-fc type {make}"));
        refused("bridge_name", || ensure_bridge(&host, bridge_params()));
        run("ip link delete br-fc");
    }
    run("ip link add name br-fc type bridge");
    run("ip link set br-fc alias someone's");
    refused("bridge_name", || ensure_bridge(&host, bridge_params()));
    run("ip link set br-fc alias ");
    run("ip link add name lan0 type veth peer name lan1");
    run("ip link set lan0 master br-fc");
    refused("bridge_name", || ensure_bridge(&host, bridge_params()));
    // The neighbour: a bridge that nobody claims or uses is taken over.
    run("ip link delete br-fc");
    run("ip link add name br-fc type bridge");
    assert!(ensure_bridge(&host, bridge_params()).unwrap());

    let own = tempfile::tempdir().unwrap();
    let policy = Policy { owner: Owner::new(OWNER + 1, OWNER).unwrap(), ..host.policy().clone() };
    std::os::unix::fs::chown(&policy.state, Some(OWNER + 1), None).unwrap();
    std::os::unix::fs::chown(&policy.runtime, Some(OWNER + 1), None).unwrap();
    let other = Host::open(policy, own.path()).unwrap();
    let grant = banger_gates::request::ensure_bridge(bridge_params()).unwrap();
    refused("bridge_name", || other.ensure_bridge(&grant));
    // And two of them side by side, each with its own.
    let theirs = bridge_params_of("br-fc-1000", "172.17.0.1", "24", None);
    let grant = banger_gates::request::ensure_bridge(theirs).unwrap();
    assert!(other.ensure_bridge(&grant).unwrap());
    assert!(!ensure_bridge(&host, bridge_params()).unwrap());
    assert!(!other.ensure_bridge(&grant).unwrap());
    run("nft delete table bridge banger");
    assert!(other.ensure_bridge(&grant).unwrap());
    assert!(ensure_bridge(&host, bridge_params()).unwrap());
    assert!(!other.ensure_bridge(&grant).unwrap());
    let set = run("nft list set inet banger bridges");
    assert!(set.contains("br-fc-1000") && set.contains("\"br-fc\""), "{set}");
}

#[test]
fn a_subnet_that_is_somebody_elses_is_refused() {
    if !is_root() {
        return;
    }
    let _world = World::new();
    let host = Fixture::new();
    for (make, undo) in [
        ("ip address add 172.16.0.77/32 dev up0", "ip address del 172.16.0.77/32 dev up0"),
        ("ip address add 172.16.5.1/16 dev up0", "ip address del 172.16.5.1/16 dev up0"),
        ("ip route add 172.16.0.128/25 dev up0", "ip route del 172.16.0.128/25"),
        ("ip route add 172.16.0.0/12 via 9.9.2.1", "ip route del 172.16.0.0/12"),
        ("ip route add 172.16.0.9 dev up0 table 77", "ip route del 172.16.0.9 table 77"),
        (
            "ip route add 172.16.0.0/24 nexthop via 9.9.2.1 nexthop via 9.9.2.3",
            "ip route del 172.16.0.0/24",
        ),
        // A gateway that no route leads to, as clouds have it; one of several; one by its number.
        (
            "ip route add default via 172.16.0.77 dev up0 onlink metric 5",
            "ip route del default metric 5",
        ),
        (
            "ip route add 198.51.100.0/24 via 172.16.0.77 dev up0 onlink",
            "ip route del 198.51.100.0/24",
        ),
        (
            "ip route add default metric 5 nexthop via 9.9.2.3 dev up0 \
             nexthop via 172.16.0.77 dev up0 onlink",
            "ip route del default metric 5",
        ),
        // Ways that somebody has forbidden lead to no interface.
        ("ip route add blackhole 172.16.0.0/24", "ip route del blackhole 172.16.0.0/24"),
        ("ip route add unreachable 172.16.0.0/16", "ip route del unreachable 172.16.0.0/16"),
        ("ip route add prohibit 172.16.0.9", "ip route del prohibit 172.16.0.9"),
        ("ip route add blackhole 172.16.0.9 table 7", "ip route del blackhole 172.16.0.9 table 7"),
    ] {
        run(make);
        refused("bridge_ip", || ensure_bridge(&host, bridge_params()));
        run(undo);
    }
    run("ip nexthop add id 7 via 172.16.0.77 dev up0 onlink");
    run("ip route add default nhid 7 metric 5");
    refused("bridge_ip", || ensure_bridge(&host, bridge_params()));
    run("ip route del default metric 5");
    // Neighbours: a gateway and the subnet beside, the two halves of a VPN's default route, and the default route.
    run("ip route add 172.16.1.0/24 dev up0");
    run("ip route add default via 172.16.1.77 dev up0 onlink metric 5");
    run("ip route add 128.0.0.0/1 dev up0");
    run("ip route add blackhole 172.16.3.0/24");
    run("ip route add unreachable default metric 4278198272");
    run("ip route add throw 172.16.0.0/24 table 7");
    assert!(ensure_bridge(&host, bridge_params()).unwrap());
    // A gateway on the bridge itself is a guest, and no other's.
    run("ip route add 198.51.100.0/24 via 172.16.0.5");
    assert!(!ensure_bridge(&host, bridge_params()).unwrap());
    let second = bridge_params_of("br-fc-2", "172.16.0.129", "25", None);
    refused("bridge_ip", || ensure_bridge(&host, second));
    assert!(ensure_bridge(&host, bridge_params_of("br-fc-2", "172.16.2.1", "24", None)).unwrap());
}

#[test]
fn a_bridge_moves_only_while_nobody_depends_on_it() {
    if !is_root() {
        return;
    }
    enter_own_network();
    let host = Fixture::new();
    ensure_bridge(&host, bridge_params()).unwrap();
    drop(create_tap(&host, guest_params(2)).unwrap());
    let moved = || bridge_params_of("br-fc", "172.16.9.1", "24", Some(42_071));
    refused("bridge_ip", || ensure_bridge(&host, moved()));
    let ported = bridge_params_of("br-fc", "172.16.0.1", "24", Some(42_071));
    assert!(ensure_bridge(&host, ported).unwrap(), "another port is no other subnet");
    assert!(delete_tap(&host, "tap-fc-2").unwrap());
    // Nor under a tap that nothing is recorded of, or a port of somebody else's.
    drop(create_tap(&host, tap_params("tap-pool-1")).unwrap());
    refused("bridge_ip", || ensure_bridge(&host, moved()));
    assert!(delete_tap(&host, "tap-pool-1").unwrap());
    run("ip link add name lan0 type veth peer name lan1");
    run("ip link set lan0 master br-fc");
    refused("bridge_ip", || ensure_bridge(&host, moved()));
    run("ip link set lan0 nomaster");
    assert!(ensure_bridge(&host, moved()).unwrap());
    let (address, rules) = (run("ip -4 address show br-fc"), run("nft list ruleset"));
    assert!(address.contains("172.16.9.1/24") && !address.contains("172.16.0.1"), "{address}");
    assert!(
        rules.contains("172.16.9.1 . 42071")
            && !rules.contains("172.16.0.1")
            && !rules.contains("172.16.0.0/24"),
        "{rules}"
    );
}

#[test]
fn a_bridge_that_cannot_be_finished_is_not_left_behind() {
    if !is_root() {
        return;
    }
    enter_own_network();
    let host = Fixture::new();
    let before = picture();
    let records = host.own.join("records");
    std::fs::remove_dir(&records).unwrap();
    assert!(ensure_bridge(&host, bridge_params()).is_err(), "nowhere to write it down");
    same(&before, &picture());
}

#[test]
fn sixteen_at_once_make_one_bridge_and_their_own_taps() {
    if !is_root() {
        return;
    }
    enter_own_network();
    let host = Fixture::new();
    let changed = std::thread::scope(|scope| {
        let makers: Vec<_> = (0..16_u8)
            .map(|number| {
                let host = &host;
                scope.spawn(move || {
                    let made = ensure_bridge(host, bridge_params()).unwrap();
                    let descriptor: Option<OwnedFd> =
                        create_tap(host, guest_params(number + 2)).unwrap().1;
                    assert!(descriptor.is_some());
                    drop(create_tap(host, tap_params("tap-pool-1")));
                    made
                })
            })
            .collect();
        makers.into_iter().map(|maker| maker.join().unwrap()).collect::<Vec<_>>()
    });
    assert_eq!(changed.iter().filter(|changed| **changed).count(), 1, "one of them made it");
    assert_eq!(run("nft list set bridge banger checked").matches("tap-fc-").count(), 16);
    std::thread::scope(|scope| {
        for number in 0..16_u8 {
            let host = &host;
            scope.spawn(move || delete_tap(host, &format!("tap-fc-{}", number + 2)).unwrap());
        }
    });
    assert!(!run("nft list ruleset").contains("tap-fc-2"));
}

#[test]
fn a_subnet_with_a_name_server_of_the_hosts_is_not_taken() {
    if !is_root() {
        return;
    }
    enter_own_network();
    enter_own_mounts();
    let host = Fixture::new();
    // Reached by the default route, so that no other route tells of it.
    run("ip link add name up0 type veth peer name up1");
    run("ip address add 10.20.30.40/24 dev up0");
    run("ip link set up0 up");
    run("ip route add default via 10.20.30.1");
    let file = tempfile::NamedTempFile::new().unwrap();
    let text = "# of the office\nsearch example.org\nnameserver 192.0.2.1\nnameserver 10.1.1.53\n";
    std::fs::write(file.path(), text).unwrap();
    rustix::mount::mount_bind(file.path(), "/etc/resolv.conf").unwrap();
    let near = || bridge_params_of("br-fc", "10.1.1.1", "24", None);
    refused("bridge_ip", || ensure_bridge(&host, near()));
    refused("bridge_ip", || {
        ensure_bridge(&host, bridge_params_of("br-fc", "10.1.1.53", "24", None))
    });
    for line in [
        "nameserver\t10.1.1.53",
        "nameserver 10.1.1.53 # of the office",
        "\tnameserver  10.1.1.53\r",
    ] {
        std::fs::write(file.path(), format!("# nameserver 10.1.2.53\n{line}\n")).unwrap();
        refused("bridge_ip", || ensure_bridge(&host, near()));
    }
    let beside = || bridge_params_of("br-fc", "10.1.2.1", "24", None);
    assert!(ensure_bridge(&host, beside()).unwrap());
    refused("bridge_ip", || ensure_bridge(&host, near()));
    // systemd-resolved names the bridge's own address there once guests' names are routed to it.
    std::fs::write(file.path(), "nameserver 10.1.2.1\n").unwrap();
    assert!(!ensure_bridge(&host, beside()).unwrap());
}
