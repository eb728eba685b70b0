//! A real guest's bytes, to the world and from it: through banger's bridge, walls and NAT, and by the
//! same tap without them.
//!
//! ```text
//!  guest ──QEMU──► tap ► bridge ► walls ► NAT (banger) ──► world
//!                  tap ► masquerade  (bare)            ──► world
//! ```
//!
//! It is one guest, and one QEMU that goes on: its tap is taken off the bridge, given the gateway's
//! address and one rule, and put back. The guest sends TCP in segments of up to 64 KiB, as guests do.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use banger_harness::{Contents, Environment};
use banger_privileged_tests::{enter_own_mounts, enter_own_network};
use rustix::fs::FlockOperation;
use rustix::mount::{MountFlags, mount};
use serde_json::Value;

use super::side::{Network, Side, run};
use crate::number::{Limit, Number, median_ms};
use crate::{keep_place, say};

/// The machine's name.
const GUEST: &str = "guest";
/// What is sent at a time, in MiB: about a second's, so that what else the host does hits both sides.
const MEBIBYTES: u32 = 64;
/// Turns of each side in a round.
const TURNS: u32 = 4;
const BYTES: u64 = (MEBIBYTES as u64) << 20;
/// Where the world listens.
const WORLD: &str = "9.9.2.1:9001";
/// How long the guest may take for the way to the world, and for one transfer.
const PATIENCE: Duration = Duration::from_secs(300);
/// Held by a helper that changes the network (privileged/host/src/network/mod.rs): nobody puts the
/// rules back while they are away.
const LOCK: &str = "/proc/sys/net/ipv4/tcp_fastopen_key";
/// What the guest does: connect, and send so many MiB or receive them; then the world hears a byte.
const SCRIPT: &str = "\
import socket, sys
way, host, port, mebibytes = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
buffer = bytearray(1 << 20)
with socket.create_connection((host, port), 60) as world:
    left = mebibytes << 20
    while left and way == 'out':
        world.sendall(buffer)
        left -= len(buffer)
    while left and way == 'in':
        left -= world.recv_into(buffer, min(left, len(buffer))) or sys.exit('the world hung up')
    world.sendall(b'!')
";

/// Which way the bytes go.
#[derive(Debug, Clone, Copy)]
enum Way {
    Out,
    In,
}

/// Measures both ways in a network of its own.
pub(super) fn measure(rounds: u32) -> Result<Vec<Number>> {
    // Namespaces are a thread's, and of the processes that it starts.
    let thread = std::thread::spawn(move || in_own_world(rounds));
    thread.join().map_err(|_| anyhow!("what a guest is measured with could not be made"))?
}

fn in_own_world(rounds: u32) -> Result<Vec<Number>> {
    // Before the network is another one: the image may have to be fetched.
    let programs = banger_harness::repository().join("target/release");
    let environment =
        Environment::new(Contents::Debian).with_programs(programs).in_callers_network();
    keep_place(environment.base());
    enter_own_network();
    enter_own_mounts();
    // The records of other daemons' helpers.
    mount("tmpfs", "/run", "tmpfs", MountFlags::empty(), c"mode=755").context("mount /run")?;
    run("/usr/sbin/ip link set lo up")?;
    let world = Side::world()?;
    let guest = Guest::start(environment)?;
    let (mut outs, mut ins, mut bare_outs, mut bare_ins) = (vec![], vec![], vec![], vec![]);
    // Windows grow.
    guest.transfer(&world, Way::Out)?;
    for round in 0..rounds {
        for _ in 0..TURNS {
            outs.push(guest.transfer(&world, Way::Out)?);
            ins.push(guest.transfer(&world, Way::In)?);
            let bare = guest.take_off_the_bridge()?;
            bare_outs.push(guest.transfer(&world, Way::Out)?);
            bare_ins.push(guest.transfer(&world, Way::In)?);
            guest.put_back(bare)?;
        }
        let rates = [&outs, &bare_outs, &ins, &bare_ins].map(|times| speed(median_ms(times)));
        say(format_args!(
            "network, a guest, round {round}: out {:.0} MiB/s, bare {:.0} MiB/s; in {:.0} MiB/s, bare {:.0} MiB/s",
            rates[0], rates[1], rates[2], rates[3]
        ));
    }
    guest.environment.finish();
    let number = |way: &str, ours: &[_], bares: &[_]| Number {
        name: format!("network: TCP of a guest with NAT, {way}"),
        ours: speed(median_ms(ours)),
        peer: Some((
            "the same guest, its tap bare, with a masquerade rule".to_owned(),
            speed(median_ms(bares)),
        )),
        unit: "MiB/s",
        limit: Limit::AtLeastTimes(0.9),
    };
    Ok(vec![number("to the world", &outs, &bare_outs), number("from it", &ins, &bare_ins)])
}

/// Milliseconds for all bytes, as MiB a second.
fn speed(milliseconds: f64) -> f64 {
    f64::from(MEBIBYTES) * 1000.0 / milliseconds
}

/// A running machine, and what it is reached by.
struct Guest {
    environment: Environment,
    tap: String,
    bridge: String,
    gateway: String,
    subnet: String,
}

/// How it was on the bridge; until it is put back nobody of banger's changes this network.
struct Bare {
    _turn: File,
    rules: String,
    port: String,
}

impl Guest {
    fn start(environment: Environment) -> Result<Self> {
        let words = ["vm", "run", "-d", "--vmm", "qemu", "--nat", "--name", GUEST];
        environment.banger(words).ok();
        let shown = environment.show(GUEST);
        ensure!(shown["network"] == "tap", "the machine has no tap: {shown}");
        let address = shown["address"].as_str().context("an address")?;
        let (start, _) = address.rsplit_once('.').context("an address")?;
        let (gateway, subnet) = (format!("{start}.1"), format!("{start}.0/24"));
        let links: Value = serde_json::from_str(&output("/usr/sbin/ip -j link show")?)?;
        let links = links.as_array().context("a list of links")?;
        let is_machines =
            |link: &&Value| link["ifname"].as_str().is_some_and(|name| name.starts_with("tap-fc-"));
        let tap = links.iter().find(is_machines).context("the machine's tap is not there")?;
        let word = |key: &str| tap[key].as_str().map(str::to_owned).context("a word of ip's");
        let (tap, bridge) = (word("ifname")?, word("master")?);
        Ok(Self { environment, tap, bridge, gateway, subnet })
    }

    /// Has the guest send or receive all bytes; returns how long that takes, from its connection to
    /// the byte by which it says that it is done.
    fn transfer(&self, world: &Network, way: Way) -> Result<Duration> {
        let (ready, told) = std::sync::mpsc::channel();
        let peer = world.within(move || {
            let listener = TcpListener::bind(WORLD).context("listen in the world")?;
            ready.send(()).context("say so")?;
            let (stream, from) = listener.accept().context("accept")?;
            let began = Instant::now();
            for limit in [TcpStream::set_read_timeout, TcpStream::set_write_timeout] {
                limit(&stream, Some(PATIENCE)).context("limit the world's patience")?;
            }
            exchange(stream, way)?;
            Ok((began.elapsed(), from))
        })?;
        told.recv().context("wait for the world")?;
        let (host, port) = WORLD.split_once(':').context("an address")?;
        let direction = match way {
            Way::Out => "out",
            Way::In => "in",
        };
        let mebibytes = MEBIBYTES.to_string();
        let words = ["/usr/bin/python3", "-c", SCRIPT, direction, host, port, &mebibytes];
        self.environment.exec(GUEST, words).deadline(PATIENCE).ok();
        let joined = peer.join().map_err(|_| anyhow!("the world panicked"))?;
        let (took, from): (Duration, SocketAddr) = joined?;
        // That it is masqueraded is what is measured.
        ensure!(from.ip().to_string() == "9.9.2.2", "the world saw {from}");
        Ok(took)
    }

    /// What there is of the port that a plain `nomaster` forgets.
    fn port(&self) -> Result<String> {
        output(&format!("/usr/sbin/ip -d -o link show dev {}", self.tap))
    }

    /// Makes the guest's tap one by itself: the gateway's address, and one rule for the way out.
    fn take_off_the_bridge(&self) -> Result<Bare> {
        let Self { tap, bridge, gateway, subnet, .. } = self;
        let turn = File::open(LOCK).context("open the helpers' lock")?;
        rustix::fs::flock(&turn, FlockOperation::LockExclusive)
            .context("take the helpers' turn")?;
        let rules = output("/usr/sbin/nft -s list ruleset")?;
        ensure!(rules.contains("table bridge banger"), "the walls are away: {rules}");
        let bare = Bare { _turn: turn, rules, port: self.port()? };
        run(&format!("/usr/sbin/ip link set dev {tap} nomaster"))?;
        run(&format!("/usr/sbin/ip address del {gateway}/24 dev {bridge}"))?;
        run(&format!("/usr/sbin/ip address add {gateway}/24 dev {tap}"))?;
        forward(tap, "1")?;
        load(&format!(
            "flush ruleset\n\
             table ip bare {{\n\
             chain out {{\n\
             type nat hook postrouting priority srcnat\n\
             ip saddr {subnet} oifname up0 masquerade\n\
             }}\n\
             }}\n"
        ))?;
        self.forget_gateway();
        Ok(bare)
    }

    /// Makes all of it what it was, and fails where it is not that.
    fn put_back(&self, bare: Bare) -> Result<()> {
        let Self { tap, bridge, gateway, .. } = self;
        load(&format!("flush ruleset\n{}", bare.rules))?;
        forward(tap, "0")?;
        run(&format!("/usr/sbin/ip address del {gateway}/24 dev {tap}"))?;
        run(&format!("/usr/sbin/ip link set dev {tap} master {bridge}"))?;
        run(&format!("/usr/sbin/ip link set dev {tap} type bridge_slave isolated on"))?;
        run(&format!("/usr/sbin/ip address add {gateway}/24 dev {bridge}"))?;
        let (rules, port) = (output("/usr/sbin/nft -s list ruleset")?, self.port()?);
        ensure!(rules == bare.rules, "the rules are others now: {rules}\nand were {}", bare.rules);
        ensure!(words(&port) == words(&bare.port), "the port is {port}, and was {}", bare.port);
        self.forget_gateway();
        Ok(())
    }

    /// The gateway's MAC is another one now.
    fn forget_gateway(&self) {
        self.environment.exec(GUEST, ["ip", "neigh", "flush", "dev", "eth0"]).ok();
    }
}

/// Receives all bytes and the last one, or sends them and receives that.
fn exchange(mut stream: TcpStream, way: Way) -> Result<()> {
    match way {
        Way::Out => {
            let count = std::io::copy(&mut (&stream).take(BYTES), &mut std::io::sink());
            let count = count.context("receive")?;
            ensure!(count == BYTES, "{count} bytes of {BYTES} arrived");
        }
        Way::In => {
            let chunk = vec![0x5a; 1 << 20];
            for _ in 0..MEBIBYTES {
                stream.write_all(&chunk).context("send")?;
            }
        }
    }
    let mut last = [0];
    stream.read_exact(&mut last).context("hear that the guest is done")?;
    ensure!(last == *b"!", "the guest said {last:?}");
    Ok(())
}

/// The words of a port's description that say how it is set, without what its timers stand at.
fn words(text: &str) -> Vec<&str> {
    let mut words = text.split_whitespace();
    let mut kept = Vec::new();
    while let Some(word) = words.next() {
        kept.push(word);
        if word.ends_with("_timer") {
            words.next();
        }
    }
    kept
}

/// Whether an interface of this thread's network forwards.
fn forward(name: &str, value: &str) -> Result<()> {
    let path = format!("/proc/sys/net/ipv4/conf/{name}/forwarding");
    fs::write(&path, value).with_context(|| format!("write {path}"))
}

/// Runs a line of words in this thread's network; what it prints.
fn output(line: &str) -> Result<String> {
    let words: Vec<&str> = line.split(' ').collect();
    let output = Command::new(words[0]).args(&words[1..]).output().context("run a program")?;
    ensure!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).context("its output is text")
}

/// Has nft load rules, all or none.
fn load(rules: &str) -> Result<()> {
    let mut command = Command::new("/usr/sbin/nft");
    let mut child = command.args(["-f", "-"]).stdin(Stdio::piped()).spawn().context("start nft")?;
    let mut input = child.stdin.take().context("nft's input")?;
    input.write_all(rules.as_bytes()).context("write to nft")?;
    drop(input);
    ensure!(child.wait().context("wait for nft")?.success(), "nft refused:\n{rules}");
    Ok(())
}
