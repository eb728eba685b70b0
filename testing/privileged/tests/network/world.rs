//! A host with an uplink, the world behind it, and what both look like.

use std::net::Ipv4Addr;
use std::process::{Child, Command, Stdio};

use banger_gates::{TapName, request};
use banger_helper_api::{CreateTapParams, EnsureBridgeParams, EnsureNatParams};
use banger_host::HostError;
use banger_privileged_tests::{Fixture, enter_own_network};

use crate::guest::Guest;

/// Runs a line of words in this thread's network; fails the test unless it succeeds.
pub fn run(line: &str) -> String {
    let words: Vec<&str> = line.split(' ').collect();
    let output = Command::new(words[0]).args(&words[1..]).output().unwrap();
    assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// The same with a text on its standard input.
pub fn feed(line: &str, text: &str) {
    use std::io::Write;
    let words: Vec<&str> = line.split(' ').collect();
    let mut child = Command::new(words[0]).args(&words[1..]).stdin(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    assert!(child.wait().unwrap().success(), "{line}: {text}");
}

/// All that a method of this family could change, counters left out.
pub fn picture() -> String {
    let mut picture = String::new();
    for line in [
        "ip -d link",
        "ip -4 address",
        "ip -4 route show table all",
        "nft -s list ruleset",
        "sysctl -a -r net.ipv4.(ip_forward$|conf.*(forwarding|route_localnet|rp_filter))",
    ] {
        picture += &run(line);
    }
    // But for the timers of a bridge, which never rest, and whether a tap is open.
    let is_state = |word: &&str| {
        ["UNKNOWN", "DOWN", "UP", "disabled", "forwarding", "linkdown", "65536", "524280"]
            .contains(word)
            || word.contains('.') && word.parse::<f64>().is_ok()
    };
    let words = |line: &str| {
        let words = line.split_whitespace().filter(|word| !is_state(word));
        let line = words.collect::<Vec<_>>().join(" ");
        line.replace("NO-CARRIER,", "").replace(",LOWER_UP", "") + "\n"
    };
    picture.lines().map(words).collect()
}

/// A process with a network of its own.
pub struct World(Child);

/// Where nobody may go, and where only guests with a way to private networks may.
pub const NOBODYS: [&str; 5] =
    ["169.254.169.254", "192.0.0.192", "100.100.100.200", "168.63.129.16", "169.254.1.1"];
pub const PRIVATE: [&str; 6] =
    ["10.50.0.1", "172.20.0.1", "192.168.7.7", "100.64.1.1", "198.18.0.1", "203.0.113.9"];

impl World {
    /// Enters a network of one's own, with an uplink `up0` to a world that answers pings at
    /// 9.9.9.9, at private addresses and at those of nobody.
    pub fn new() -> Self {
        enter_own_network();
        run("ip link set lo up");
        let world = Command::new("unshare").args(["-n", "sleep", "infinity"]).spawn().unwrap();
        let network = |of: &str| std::fs::read_link(format!("/proc/{of}/ns/net")).ok();
        let own = network("thread-self");
        while network(&world.id().to_string()).is_none_or(|other| Some(other) == own) {
            std::thread::yield_now();
        }
        let world = Self(world);
        world.add_uplink("up0", 2);
        run("ip route add default via 9.9.2.1");
        for address in [&["9.9.9.9"], &NOBODYS[..], &PRIVATE[..]].concat() {
            world.run(&format!("ip address add {address}/32 dev lo"));
        }
        world.run("ip link set lo up");
        world
    }

    /// Runs a line in the world.
    pub fn run(&self, line: &str) -> String {
        run(&format!("nsenter -t {} -n {line}", self.0.id()))
    }

    /// Sends a text to a UDP port from there.
    pub fn sends(&self, to: &str, port: u16) {
        let script = format!("echo unasked >/dev/udp/{to}/{port}");
        let world = self.0.id().to_string();
        let nsenter = ["-t", &world, "-n", "bash", "-c", &script];
        assert!(Command::new("nsenter").args(nsenter).status().unwrap().success());
    }

    /// A link NAME to the world: 9.9.N.2 here, 9.9.N.1 there.
    pub fn add_uplink(&self, name: &str, number: u8) {
        run(&format!("ip link add {name} type veth peer name {name} netns {}", self.0.id()));
        run(&format!("ip address add 9.9.{number}.2/24 dev {name}"));
        run(&format!("ip link set {name} up"));
        self.run(&format!("ip address add 9.9.{number}.1/24 dev {name}"));
        self.run(&format!("ip link set {name} up"));
    }
}

impl Drop for World {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// `br-fc`, 172.16.0.1/24 and a name server's port.
pub fn bridge_params() -> EnsureBridgeParams {
    bridge_params_of("br-fc", "172.16.0.1", "24", Some(42_070))
}

pub fn bridge_params_of(name: &str, ip: &str, cidr: &str, dns: Option<u16>) -> EnsureBridgeParams {
    let (bridge_name, bridge_ip) = (name.to_owned(), ip.to_owned());
    EnsureBridgeParams { bridge_name, bridge_ip, cidr: cidr.to_owned(), dns_port: dns }
}

pub fn ensure_bridge(host: &Fixture, params: EnsureBridgeParams) -> Result<bool, HostError> {
    host.host.ensure_bridge(&request::ensure_bridge(params).unwrap())
}

/// A plain tap of `br-fc`.
pub fn tap_params(name: &str) -> CreateTapParams {
    CreateTapParams {
        bridge_name: "br-fc".to_owned(),
        bridge_ip: "172.16.0.1".to_owned(),
        cidr: "24".to_owned(),
        tap_name: name.to_owned(),
        guest_mac: None,
        guest_ip: None,
        group: None,
        isolated: None,
        return_fd: true,
    }
}

/// A tap whose guest is 172.16.0.N with the MAC that banger gives it.
pub fn guest_params(number: u8) -> CreateTapParams {
    CreateTapParams {
        guest_mac: Some(format!("06:00:ac:10:00:{number:02x}")),
        guest_ip: Some(format!("172.16.0.{number}")),
        ..tap_params(&format!("tap-fc-{number}"))
    }
}

type Made = (bool, Option<std::os::fd::OwnedFd>);

pub fn create_tap(host: &Fixture, params: CreateTapParams) -> Result<Made, HostError> {
    host.host.create_tap(&request::create_tap(params).unwrap())
}

/// Makes a tap and plays the guest 172.16.0.N behind it.
pub fn guest(host: &Fixture, number: u8, params: CreateTapParams) -> Guest {
    let descriptor = create_tap(host, params).unwrap().1.unwrap();
    Guest::new(descriptor, number)
}

pub fn nat_params(number: u8) -> EnsureNatParams {
    EnsureNatParams {
        guest_ip: format!("172.16.0.{number}"),
        tap: format!("tap-fc-{number}"),
        enable: true,
        allow_lan: false,
    }
}

pub fn ensure_nat(host: &Fixture, params: &EnsureNatParams) -> Result<bool, HostError> {
    host.host.ensure_nat(&request::ensure_nat(params).unwrap())
}

pub fn delete_tap(host: &Fixture, name: &str) -> Result<bool, HostError> {
    host.host.delete_tap(&TapName::parse("tap_name", name).unwrap())
}

/// That an act was refused for one parameter, and that nothing changed.
#[track_caller]
pub fn refused<T: std::fmt::Debug>(parameter: &str, act: impl FnOnce() -> Result<T, HostError>) {
    let before = picture();
    match act() {
        Err(HostError::Refused(refusal)) => assert_eq!(refusal.parameter, parameter, "{refusal}"),
        other => panic!("not refused: {other:?}"),
    }
    same(&before, &picture());
}

/// That two pictures are the same; shows the lines that are not.
#[track_caller]
pub fn same(before: &str, after: &str) {
    let only = |one: &str, other: &str| {
        let other: std::collections::BTreeSet<_> = other.lines().collect();
        one.lines().filter(|line| !other.contains(line)).map(String::from).collect::<Vec<_>>()
    };
    let changes = (only(before, after), only(after, before));
    assert!(before == after, "gone: {:#?}\ncame: {:#?}", changes.0, changes.1);
}

pub fn ip(text: &str) -> Ipv4Addr {
    text.parse().unwrap()
}
