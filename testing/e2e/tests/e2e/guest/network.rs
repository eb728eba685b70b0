//! Guests on the host's bridge: whom they reach, what they are called, and what stays of that.
//!
//! The host here is a network namespace, with an uplink to another one that stands for the world.

use std::process::{Child, Command, Stdio};

use banger_harness::{Contents, Environment};

/// An address of the world's that is nobody's private one.
pub(super) const OUTSIDE: &str = "9.9.9.9";
pub(super) const LAN: &str = "192.168.7.7";

/// The world behind the host's uplink.
pub(super) struct World(Child);

impl World {
    pub(super) fn new(environment: &Environment) -> Self {
        let file = environment.base().join("n").display().to_string();
        let mut command = Command::new("/usr/bin/nsenter");
        command.arg(format!("--net={file}")).args(["unshare", "--net", "sleep", "infinity"]);
        let child = command.stdin(Stdio::null()).spawn().expect("start a process");
        let world = Self(child);
        let pid = world.0.id();
        let network = |path: String| std::fs::read_link(path).ok();
        let here = environment.in_network("readlink /proc/self/ns/net");
        banger_harness::wait_for("a network of its own", banger_harness::GUEST_DEADLINE, || {
            let now = network(format!("/proc/{pid}/ns/net"))?.display().to_string();
            let ours = network("/proc/self/ns/net".to_owned())?.display().to_string();
            (now != here.trim() && now != ours).then_some(())
        });
        environment.in_network(&format!("ip link add up0 type veth peer name up0 netns {pid}"));
        for line in [
            "ip address add 9.9.2.2/24 dev up0",
            "ip link set up0 up",
            "ip route add default via 9.9.2.1",
        ] {
            // The route needs the other end to be up.
            if line.contains("route") {
                for line in [
                    "ip address add 9.9.2.1/24 dev up0",
                    "ip link set up0 up",
                    "ip link set lo up",
                    &format!("ip address add {OUTSIDE}/32 dev lo"),
                    &format!("ip address add {LAN}/32 dev lo"),
                ] {
                    world.run(line);
                }
            }
            environment.in_network(line);
        }
        world
    }

    /// The file of its network.
    pub(super) fn network(&self) -> String {
        format!("/proc/{}/ns/net", self.0.id())
    }

    /// A link NAME to it: 9.9.N.2 here, 9.9.N.1 there.
    pub(super) fn add_uplink(&self, environment: &Environment, name: &str, number: u8) {
        let pid = self.0.id();
        environment
            .in_network(&format!("ip link add {name} type veth peer name {name} netns {pid}"));
        environment.in_network(&format!("ip address add 9.9.{number}.2/24 dev {name}"));
        environment.in_network(&format!("ip link set {name} up"));
        self.run(&format!("ip address add 9.9.{number}.1/24 dev {name}"));
        self.run(&format!("ip link set {name} up"));
    }

    pub(super) fn run(&self, line: &str) {
        let mut command = Command::new("/usr/bin/nsenter");
        command.args(["-t", &self.0.id().to_string(), "-n"]).args(line.split(' '));
        assert!(command.status().is_ok_and(|status| status.success()), "{line}");
    }
}

impl Drop for World {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

pub(super) fn start(environment: &Environment, name: &str, options: &[&str]) -> String {
    let words = ["vm", "run", "-d", "--image", banger_harness::BUSYBOX_IMAGE, "--name", name];
    environment.banger([&words[..], options].concat()).ok();
    let shown = environment.show(name);
    assert_eq!(shown["network"], "tap", "{shown}");
    assert_eq!(shown["runtime"]["guest_ip"], shown["address"]);
    shown["address"].as_str().expect("an address").to_owned()
}

/// Whether a guest gets an answer from an address.
pub(super) fn pings(environment: &Environment, vm: &str, address: &str) -> bool {
    let finished = environment.exec(vm, ["ping", "-c", "1", "-W", "1", address]).run();
    finished.exit_code() == Some(0)
}

/// What a guest learns of a name; none if it learns nothing.
pub(super) fn resolves(environment: &Environment, vm: &str, name: &str) -> Option<String> {
    let finished = environment.exec(vm, ["busybox", "nslookup", "-type=a", name]).run();
    let out = finished.out();
    // First comes the server's own address, with its port.
    let addresses = out.lines().filter_map(|line| line.strip_prefix("Address:"));
    let address = addresses.map(str::trim).rfind(|address| !address.contains(':'))?;
    (finished.exit_code() == Some(0)).then(|| address.to_owned())
}

#[test]
fn guests_reach_whom_they_may_and_nobody_else() {
    if !banger_harness::is_root() {
        banger_harness::skip("root", "only root has a helper without an installation");
        return;
    }
    let environment = Environment::new(Contents::Busybox);
    let world = World::new(&environment);
    let rules = || environment.in_network("nft list ruleset");
    assert_eq!(rules(), "");

    let one = start(&environment, "one", &["--nat", "--group", "web"]);
    let two = start(&environment, "two", &["--group", "web"]);
    assert_eq!((one.as_str(), two.as_str()), ("172.16.0.2", "172.16.0.3"));
    let gateway = "172.16.0.1";
    for vm in ["one", "two"] {
        assert!(pings(&environment, vm, gateway), "{vm}");
    }
    // Of one group they reach each other, by name too.
    assert!(pings(&environment, "one", &two) && pings(&environment, "two", &one));
    assert_eq!(resolves(&environment, "one", "two.vm"), Some(two.clone()));
    assert_eq!(resolves(&environment, "one", "none.vm"), None);
    // Only one of them has a way out, and not to private networks.
    assert!(pings(&environment, "one", OUTSIDE));
    assert!(!pings(&environment, "two", OUTSIDE));
    let forwards = || environment.in_network("cat /proc/sys/net/ipv4/conf/up0/forwarding");
    assert_eq!(forwards(), "1\n");
    assert!(!pings(&environment, "one", LAN));

    // All of it changes while they run.
    environment.banger(["vm", "set", "one", "--allow-lan"]).ok();
    assert!(pings(&environment, "one", LAN));
    environment.banger(["vm", "set", "two", "--nat", "--no-group"]).ok();
    assert!(pings(&environment, "two", OUTSIDE));
    assert!(!pings(&environment, "one", &two) && !pings(&environment, "two", &one));
    assert_eq!(resolves(&environment, "one", "two.vm"), None);
    environment.banger(["vm", "set", "one", "--no-nat"]).ok();
    assert!(!pings(&environment, "one", OUTSIDE) && pings(&environment, "one", gateway));
    assert_eq!(environment.show("one")["spec"]["allow_lan"], false);

    // A subnet in use stays; one that is another's is refused, with a free one.
    let in_use = environment.banger(["config", "set", "network.subnet", "10.9.8.1/24"]).run();
    in_use.code(1).is_a_clear_error().says(&["one", "two", "vm stop"]);

    // The daemon dies, and with it its helper: the next ones know who is who, and what each may.
    environment.daemon().expect("it runs").signal(rustix::process::Signal::KILL);
    assert_eq!(environment.show("two")["address"], two.as_str());
    assert!(pings(&environment, "two", OUTSIDE) && !pings(&environment, "one", OUTSIDE));
    banger_harness::wait_for("the name server", banger_harness::GUEST_DEADLINE, || {
        resolves(&environment, "two", "two.vm").map(drop)
    });
    if banger_harness::find_program("dig").is_some() {
        let dig = |words: &str| {
            environment.in_network(&format!("dig +short +time=5 -p 42069 @{gateway} {words}"))
        };
        assert_eq!(dig("one.vm").trim(), one);
        assert_eq!(dig(&format!("-x {two}")).trim(), "two.vm.");
    } else {
        banger_harness::skip("dig", "bind9-dnsutils is not installed");
    }

    // An address is kept over a stop, and free after a deletion.
    environment.banger(["vm", "stop", "one"]).ok();
    assert_eq!(environment.show("one")["address"], one.as_str());
    environment.banger(["vm", "delete", "two"]).ok();
    let three = start(&environment, "three", &[]);
    assert_eq!(three, two);
    environment.banger(["vm", "delete", "one", "three"]).ok();

    // The bridge stays, and of its guests nothing: no element of a set.
    let left = rules().replace("tap-fc-*", "");
    for word in ["tap-fc", one.as_str(), two.as_str()] {
        assert!(!left.contains(word), "{word} in {left}");
    }
    let taken = environment.banger(["config", "set", "network.subnet", "9.9.2.1/24"]).run();
    taken.code(2).is_a_clear_error().says(&["lies in"]);
    world.run("ip link set up0 up");
    environment.in_network("ip address add 10.9.8.9/24 dev up0");
    let taken = environment.banger(["config", "set", "network.subnet", "10.9.8.1/24"]).run();
    taken.code(1).is_a_clear_error().says(&["10.9.8", "up0", "network.subnet 172.16."]);
    assert_eq!(environment.banger(["config", "get", "network.subnet"]).ok().out(), "auto\n");
    environment.banger(["config", "set", "network.subnet", "10.9.7.1/24"]).ok();
    assert_eq!(start(&environment, "four", &[]), "10.9.7.2");
    assert!(pings(&environment, "four", "10.9.7.1"));
    // A daemon that ends by itself, as an idle one does, takes the bridge with it, and all rules.
    environment.banger(["vm", "delete", "four"]).ok();
    assert_ne!(environment.in_network("ip -o link show type bridge"), "");
    environment.daemon().expect("it runs").signal(rustix::process::Signal::TERM);
    banger_harness::wait_for("the bridge's end", banger_harness::GUEST_DEADLINE, || {
        let bridges = environment.in_network("ip -o link show type bridge");
        (bridges.is_empty() && rules().is_empty() && forwards() == "0\n").then_some(())
    });
    drop(world);
    environment.finish();
}
