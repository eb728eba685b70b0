//! The walls as real guests meet them: root in a guest tries what `testing/privileged` tries frame by
//! frame, and each thing that is kept from it stands beside a neighbour that works.

use std::net::{TcpListener, UdpSocket};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use banger_harness::{Contents, Environment, GUEST_DEADLINE, skip, wait_for};
use rustix::fd::AsFd;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::network::{LAN, OUTSIDE, World, pings, resolves, start};

const GATEWAY: &str = "172.16.0.1";
const METADATA: &str = "169.254.169.254";
/// Where services listen: on the host's loopback alone, on all of the host's addresses, in the world.
const HIDDEN: u16 = 7001;
const OPEN: u16 = 7002;

/// Says three times that the guest is a router, and which addresses are to be had by it (RFC 4861, 4.2
/// and 4.6.2). The kernel fills in the checksum; 255 hops say that nobody has forwarded it.
const ADVERTISE: &str = "\
import socket, struct
link = socket.if_nametoindex('eth0')
out = socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6)
out.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, 255)
prefix = socket.inet_pton(socket.AF_INET6, '2001:db8:7::')
router = struct.pack('!BBHBBHII', 134, 0, 0, 64, 0, 1800, 0, 0)
addresses = struct.pack('!BBBBIII', 3, 4, 64, 0xc0, 86400, 14400, 0) + prefix
for _ in range(3):
    out.sendto(router + addresses, ('ff02::1', 0, 0, link))
";
/// What an address of that prefix begins with.
const ADVERTISED: &str = "2001:db8:7:";

/// Does something in another network, on a thread of its own.
fn within<T: Send + 'static>(
    network: &str,
    act: impl FnOnce() -> T + Send + 'static,
) -> JoinHandle<T> {
    let place = std::fs::File::open(network).unwrap();
    std::thread::spawn(move || {
        let kind = Some(LinkNameSpaceType::Network);
        move_into_link_name_space(place.as_fd(), kind).unwrap();
        act()
    })
}

/// Listens there as long as the test runs; who connects is let in and cut off.
fn listen(network: &str, address: &str) {
    let address = address.to_owned();
    let listener = within(network, move || TcpListener::bind(address).unwrap()).join().unwrap();
    std::thread::spawn(move || listener.incoming().for_each(drop));
}

/// A name server of the world's that knows all names: each is what its first label says, with
/// hyphens for dots. Returns which it was asked for.
fn answer_all(network: &str) -> Arc<Mutex<Vec<String>>> {
    let asked = Arc::new(Mutex::new(Vec::new()));
    let bind = || UdpSocket::bind((OUTSIDE, 53)).unwrap();
    let socket = within(network, bind).join().unwrap();
    let names = Arc::clone(&asked);
    std::thread::spawn(move || {
        let mut packet = [0; 512];
        while let Ok((length, from)) = socket.recv_from(&mut packet) {
            let question = &packet[12..length];
            let end = question.iter().position(|byte| *byte == 0).unwrap();
            let label = &question[1..1 + usize::from(question[0])];
            let label = String::from_utf8_lossy(label).into_owned();
            names.lock().unwrap().push(String::from_utf8_lossy(&question[1..end]).into_owned());
            let address = label.replace('-', ".").parse().unwrap_or(std::net::Ipv4Addr::LOCALHOST);
            let is_a = question[end + 2] == 1;
            // The question again, and a pointer to its name (RFC 1035, 4.1).
            let mut answer =
                [&packet[..2], &[0x81, 0x80, 0, 1, 0, u8::from(is_a), 0, 0, 0, 0]].concat();
            answer.extend(&question[..end + 5]);
            if is_a {
                answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 1, 0, 4]);
                answer.extend(address.octets());
            }
            let _ = socket.send_to(&answer, from);
        }
    });
    asked
}

/// Whether root in a guest can do something.
fn can(environment: &Environment, vm: &str, script: &str) -> bool {
    environment.exec(vm, ["sh", "-c", script]).run().exit_code() == Some(0)
}

fn connects(environment: &Environment, vm: &str, address: &str, port: u16) -> bool {
    can(environment, vm, &format!("busybox nc -w 1 {address} {port} </dev/null"))
}

#[test]
fn root_in_a_guest_gets_no_further_than_its_frames() {
    if !banger_harness::is_root() {
        skip("root", "only root has a helper without an installation");
        return;
    }
    let environment = Environment::new(Contents::Busybox);
    let world = World::new(&environment);
    let before = environment.in_network("nft list ruleset");
    let (host, far) = (environment.base().join("n").display().to_string(), world.network());
    world.run(&format!("ip address add {METADATA}/32 dev lo"));
    listen(&host, &format!("127.0.0.1:{HIDDEN}"));
    listen(&host, &format!("0.0.0.0:{OPEN}"));
    listen(&far, &format!("0.0.0.0:{OPEN}"));
    let asked = answer_all(&far);
    environment.banger(["config", "set", "network.dns", OUTSIDE]).ok();
    let a = start(&environment, "a", &["--nat", "--group", "web"]);
    let b = start(&environment, "b", &["--group", "web"]);
    let c = start(&environment, "c", &["--nat", "--allow-lan"]);
    // The first command finds the network up.
    assert!(can(&environment, "c", &format!("ip -o address | grep -q {c}/24")));
    let host_reaches = |ip: &str| environment.in_network(&format!("busybox ping -c 1 -W 5 {ip}"));
    for ip in [&a, &b, &c] {
        host_reaches(ip);
    }

    // Who reaches whom.
    for (vm, to, may) in [
        ("a", GATEWAY, true),
        ("a", b.as_str(), true),
        ("a", c.as_str(), false),
        ("c", a.as_str(), false),
        ("a", OUTSIDE, true),
        ("b", OUTSIDE, false),
        ("a", LAN, false),
        ("c", LAN, true),
        ("a", METADATA, false),
        ("c", METADATA, false),
        // The host's address on its uplink.
        ("c", "9.9.2.2", false),
    ] {
        assert_eq!(pings(&environment, vm, to), may, "{vm} to {to}");
    }
    for (vm, to, port, may) in [
        ("c", OUTSIDE, OPEN, true),
        ("c", LAN, OPEN, true),
        ("c", METADATA, OPEN, false),
        ("c", GATEWAY, OPEN, false),
        ("c", GATEWAY, HIDDEN, false),
        ("c", "9.9.2.2", OPEN, false),
        ("a", OUTSIDE, OPEN, true),
        ("a", LAN, OPEN, false),
        ("b", OUTSIDE, OPEN, false),
        // Names are the one service there is.
        ("b", GATEWAY, 53, true),
    ] {
        assert_eq!(connects(&environment, vm, to, port), may, "{vm} to {to}:{port}");
    }
    // The host's loopback address, sent to the gateway.
    let route = format!("ip route add 127.0.0.9/32 via {GATEWAY} dev eth0");
    let all = "echo 1 >/proc/sys/net/ipv4/conf/all/route_localnet";
    can(&environment, "c", &format!("{all}; ip address del 127.0.0.1/8 dev lo; {route}"));
    assert!(!connects(&environment, "c", "127.0.0.9", HIDDEN));

    // Another name for an address opens no way to it.
    let named = |ip: &str| format!("{}.evil.example", ip.replace('.', "-"));
    for ip in [LAN, "9.9.2.2"] {
        assert_eq!(resolves(&environment, "a", &named(ip)).as_deref(), Some(ip));
        assert!(!connects(&environment, "a", &named(ip), OPEN), "{ip}");
    }
    assert!(connects(&environment, "a", &named(OUTSIDE), OPEN));
    // One that leads inside is not even passed on.
    for ip in [c.as_str(), GATEWAY, METADATA, "127.0.0.1"] {
        assert_eq!(resolves(&environment, "a", &named(ip)), None, "{ip}");
    }
    // And nobody outside is asked for, or answers for, names of machines.
    assert_eq!(resolves(&environment, "a", "c.vm"), None);
    assert_eq!(resolves(&environment, "a", "1-2-3-4.vm"), None);
    assert_eq!(resolves(&environment, "a", "b.vm").as_deref(), Some(b.as_str()));
    assert_eq!(resolves(&environment, "b", &named(OUTSIDE)), None);
    let asked = asked.lock().unwrap().clone();
    assert!(!asked.is_empty() && asked.iter().all(|name| name.ends_with("example")), "{asked:?}");

    // The default route changes while guests run, to an interface that forwards; others do when the
    // helper looks, once a minute.
    world.add_uplink(&environment, "up1", 3);
    environment.in_network("sysctl -qw net.ipv4.conf.up1.forwarding=1");
    environment.in_network("ip route replace default via 9.9.3.1");
    environment.in_network("ip link delete up0");

    // Another MAC, another address, another guest's, the gateway's.
    let mac = |vm: &str| environment.show(vm)["mac"].as_str().unwrap().to_owned();
    let ping = |from: &str| format!("ping -c 1 -W 1 -I {from} {GATEWAY}");
    let set_mac = |mac: &str| format!("ip link set eth0 address {mac}");
    assert!(can(&environment, "a", &ping(&a)));
    assert!(!can(&environment, "a", &format!("{} && {}", set_mac("06:00:ac:10:00:63"), ping(&a))));
    assert!(!can(&environment, "a", &format!("{} && {}", set_mac(&mac("b")), ping(&a))));
    assert!(can(&environment, "a", &format!("{} && {}", set_mac(&mac("a")), ping(&a))));
    for stolen in ["172.16.0.99", b.as_str(), GATEWAY, "9.9.9.8"] {
        let add = format!("ip address add {stolen}/32 dev eth0");
        let to = if stolen == GATEWAY { b.as_str() } else { GATEWAY };
        let steal = format!("{add} && ping -c 1 -W 1 -I {stolen} {to}");
        assert!(!can(&environment, "a", &steal), "{stolen}");
        // What it says of the address by ARP, as a question and as an answer, nobody believes.
        for kind in ["-U", "-A"] {
            can(&environment, "a", &format!("arping {kind} -c 1 -w 1 -I eth0 {stolen}"));
        }
        assert!(can(&environment, "a", &format!("ip address del {stolen}/32 dev eth0")));
    }
    assert!(pings(&environment, "b", &a) && pings(&environment, "b", GATEWAY));
    host_reaches(&b);
    let neighbours = environment.in_network("ip -4 neighbour");
    let host_sees = |ip: &str| neighbours.lines().find(|line| line.starts_with(&format!("{ip} ")));
    assert!(host_sees(&b).unwrap().contains(&mac("b")), "{neighbours}");
    assert_eq!(host_sees("172.16.0.99"), None);
    let seen = environment.exec("b", ["cat", "/proc/net/arp"]).ok().out();
    let gateway = seen.lines().find(|line| line.starts_with(&format!("{GATEWAY} "))).unwrap();
    assert!(!gateway.contains(&mac("a")) && gateway.contains("02:fc:"), "{seen}");
    assert_eq!(seen.matches(&mac("a")).count(), 1, "its own address alone: {seen}");

    // IPv6: a guest has a link-local address and nobody hears it; the host has none there, and takes
    // no router's word.
    let link_local = |vm: &str| {
        let shown = environment.exec(vm, ["ip", "-6", "-o", "address", "show", "eth0"]).ok().out();
        let word = shown.split_whitespace().find(|word| word.starts_with("fe80:"));
        word.map(|word| word.split('/').next().unwrap_or_default().to_owned())
    };
    let (own, other) = (link_local("a").unwrap(), link_local("b").unwrap());
    assert!(can(&environment, "a", &format!("ping6 -c 1 -W 1 {own}%eth0")), "itself");
    assert!(!can(&environment, "a", &format!("ping6 -c 1 -W 1 {other}%eth0")));
    assert!(!can(&environment, "a", "ping6 -c 1 -W 1 -I eth0 ff02::2"));
    let bridge = environment.in_network("ip -o link show type bridge");
    let bridge = bridge.split(": ").nth(1).unwrap();
    assert_eq!(environment.in_network(&format!("ip -6 address show dev {bridge}")), "");
    let setting =
        |key: &str| environment.in_network(&format!("cat /proc/sys/net/ipv6/conf/{bridge}/{key}"));
    assert_eq!((setting("disable_ipv6").trim(), setting("accept_ra").trim()), ("1", "0"));

    wait_for("the way out by the other uplink", GUEST_DEADLINE, || {
        pings(&environment, "a", OUTSIDE).then_some(())
    });
    environment.banger(["vm", "delete", "a", "b", "c"]).ok();
    environment.stop_daemon();
    wait_for("the end of the bridge and its rules", GUEST_DEADLINE, || {
        let is_gone = environment.in_network("ip -o link show type bridge").is_empty();
        (is_gone && environment.in_network("nft list ruleset") == before).then_some(())
    });
    drop(world);
    environment.finish();
}

#[test]
fn nobody_hears_a_guest_that_says_it_is_a_router() {
    if !banger_harness::is_root() {
        skip("root", "only root has a helper without an installation");
        return;
    }
    let environment = Environment::new(Contents::Debian);
    for name in ["a", "b"] {
        environment.banger(["vm", "run", "-d", "--group", "web", "--name", name]).ok();
    }
    let b = environment.show("b")["address"].as_str().unwrap().to_owned();
    // A host that would believe a router, but for the walls.
    let bridge = environment.in_network("ip -o link show type bridge");
    let bridge = bridge.split(": ").nth(1).unwrap().to_owned();
    let believe = |link: &str| {
        for (key, value) in [("accept_ra", 1), ("disable_ipv6", 0)] {
            environment.in_network(&format!("sysctl -qw net.ipv6.conf.{link}.{key}={value}"));
        }
    };
    believe(&bridge);
    let heard_by_b = || environment.exec("b", ["ip", "-6", "-o", "address"]).ok().out();
    let b_believes = environment.exec("b", ["cat", "/proc/sys/net/ipv6/conf/eth0/accept_ra"]);
    assert_eq!(b_believes.ok().out(), "1\n");
    // The guest's link-local address is not to be had before it is known to be nobody else's.
    let advertise = || environment.exec("a", ["python3", "-c", ADVERTISE]).run().exit_code();
    let advertised = || {
        wait_for("a word of the guest", GUEST_DEADLINE, || (advertise() == Some(0)).then_some(()));
        // What is sent later arrives, so that is not under way any more.
        assert!(pings(&environment, "a", &b));
    };
    advertised();
    let host =
        || environment.in_network("ip -6 -o address") + &environment.in_network("ip -6 route");
    assert!(host().contains(&format!(" {bridge} ")), "it has IPv6 there: {}", host());
    assert!(!host().contains(ADVERTISED), "{}", host());
    assert!(!heard_by_b().contains(ADVERTISED), "{}", heard_by_b());

    // The same words are believed where no wall is.
    wait_for("an address by the guest's word", GUEST_DEADLINE, || {
        // The helper puts them back once a minute.
        environment.in_network("nft flush ruleset");
        advertised();
        (host().contains(ADVERTISED) && heard_by_b().contains(ADVERTISED)).then_some(())
    });
    environment.banger(["vm", "delete", "a", "b"]).ok();
    environment.finish();
}
