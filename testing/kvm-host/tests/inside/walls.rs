//! The network of an installed banger's Firecracker machines: its walls from inside a guest, and how
//! fast a card may be.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

use crate::Inside;
use crate::installation::{OWNER, banger_as};
use crate::machines::{Ready, banger, show};
use crate::tool::{Undo, run};

/// The world behind the host's uplink: addresses of it, public, of nobody, and private.
const OUTSIDE: &str = "9.9.9.9";
const METADATA: &str = "169.254.169.254";
const LAN: &str = "192.168.7.7";
/// A service on all of the host's addresses.
const SERVICE: u16 = 7002;
/// A file that a guest serves.
const MIB: usize = 3;

/// A world in a network of its own; gone when dropped.
fn world() -> Undo {
    let end = "ip netns delete world; umount /run/netns; rmdir /run/netns";
    let undo = Undo::with(&["sh", "-c", end]);
    for line in [
        "ip netns add world",
        "ip link add up0 type veth peer name up0 netns world",
        "ip address add 9.9.2.2/24 dev up0",
        "ip link set up0 up",
        "ip netns exec world ip address add 9.9.2.1/24 dev up0",
        "ip netns exec world ip link set up0 up",
        "ip netns exec world ip link set lo up",
    ] {
        let words: Vec<&str> = line.split(' ').collect();
        run(words[0], &words[1..]);
    }
    for address in [OUTSIDE, METADATA, LAN] {
        let line = format!("netns exec world ip address add {address}/32 dev lo");
        run("ip", line.split(' '));
        run("ip", ["route", "add", address, "via", "9.9.2.1"]);
    }
    undo
}

fn can(vm: &str, script: &str) -> bool {
    banger_as(OWNER, &["vm", "exec", vm, "--", "sh", "-c", script]).status.success()
}

fn pings(vm: &str, to: &str) -> bool {
    can(vm, &format!("ping -c 1 -W 3 {to}"))
}

/// Which of these commands succeed, all begun at once.
fn succeed(vm: &str, commands: &[String]) -> String {
    let one = |command: &String| format!("({command} > /dev/null 2>&1 && echo '{command}') &\n");
    let script = commands.iter().map(one).collect::<String>() + "wait";
    banger(&["vm", "exec", vm, "--", "sh", "-c", &script])
}

fn address(vm: &str) -> String {
    show(vm)["address"].as_str().expect("an address").to_owned()
}

/// How long the host takes to get the file from a guest.
fn get(ip: &str) -> Duration {
    let began = Instant::now();
    let mut stream = TcpStream::connect((ip, 80)).expect("reach the guest");
    stream.write_all(b"GET /file HTTP/1.0\r\n\r\n").expect("ask for the file");
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).expect("the file");
    assert!(answer.len() > MIB << 20, "{} bytes", answer.len());
    began.elapsed()
}

fn start(name: &str, options: &[&str]) {
    let words = ["vm", "run", "-d", "--vmm", "firecracker", "--image", "busybox", "--name", name];
    banger(&[&words[..], options].concat());
    let serve = format!("dd if=/dev/zero of=/root/file bs=1M count={MIB} && httpd -h /root");
    assert!(can(name, &serve));
}

#[test]
fn guests_are_walled_off_and_held_to_their_rates() {
    let Some(inside) = Inside::get() else { return };
    let world = world();
    let service = TcpListener::bind(("0.0.0.0", SERVICE)).expect("a port");
    std::thread::spawn(move || service.incoming().for_each(drop));
    let ready = Ready::new(&inside);
    start("a", &["--nat", "--group", "web"]);
    start("b", &["--group", "web"]);
    let (a, b) = (address("a"), address("b"));
    let gateway = format!("{}.1", a.rsplit_once('.').expect("an address").0);
    run("ping", ["-c", "1", "-W", "10", &a]);
    for (vm, to) in [("a", gateway.as_str()), ("a", b.as_str()), ("b", a.as_str()), ("a", OUTSIDE)]
    {
        assert!(pings(vm, to), "{vm} to {to}");
    }
    let ping = |to: &str| format!("ping -c 1 -W 3 {to}");
    let connect = |to: &str, port: u16| format!("busybox nc -w 3 {to} {port} </dev/null");
    assert!(can("a", &connect(&gateway, 53)) && can("a", &connect(&b, 80)));
    // What is refused says so by its silence, which is waited for at once.
    let mut refused: Vec<String> = [METADATA, LAN, "9.9.2.2"].map(ping).into();
    refused.extend([connect(&gateway, SERVICE), connect("9.9.2.2", SERVICE)]);
    assert_eq!(succeed("a", &refused), "");
    assert_eq!(succeed("b", &[ping(OUTSIDE), ping(&a)]), format!("{}\n", ping(&a)));
    let mac = show("a")["mac"].as_str().expect("a MAC").to_owned();
    let other = show("b")["mac"].as_str().expect("a MAC").to_owned();
    let as_mac = |mac: &str| {
        can("a", &format!("ip link set eth0 address {mac} && ping -c 1 -W 3 {gateway}"))
    };
    assert!(!as_mac(&other) && as_mac(&mac));
    let stolen = format!("ip address add {b}/32 dev eth0 && ping -c 1 -W 3 -I {b} {gateway}");
    assert!(!can("a", &stolen) && can("a", &format!("ip address del {b}/32 dev eth0")));
    assert!(pings("b", &a) && pings("a", &gateway));

    // What leaves a card that is held to a rate takes a multiple of the time, at once.
    let unlimited = get(&a);
    banger(&["vm", "set", "a", "--net-bandwidth", "256K"]);
    let limited = get(&a);
    assert!(limited > unlimited * 2, "{limited:?} {unlimited:?}");
    drop((ready, world));
}
