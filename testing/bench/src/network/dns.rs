//! Answers a second for names of machines, beside a name server that people use for such zones.

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use banger_dns::{Host, Server, Upstreams, Zone};
use banger_types::VmId;

use super::side::run;
use crate::number::{Limit, Number};
use crate::{runtime, say};

/// The peer.
const DNSMASQ: &str = "/usr/sbin/dnsmasq";
/// Where both listen.
const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 99, 0, 1);
const OURS: u16 = 42069;
const THEIRS: u16 = 42070;
/// Names in the zone.
const NAMES: u8 = 200;
/// Questions per round and side, and how many are under way.
const QUESTIONS: usize = 50_000;
const WINDOW: usize = 32;
/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(10);

fn name(number: u8) -> String {
    format!("machine-{number}")
}

fn address(number: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 99, 0, number.saturating_add(2))
}

/// A question for the address of `NAME.vm` (RFC 1035 section 4.1), numbered.
fn question(id: u16, number: u8) -> Vec<u8> {
    let mut packet = id.to_be_bytes().to_vec();
    // Recursion desired; one question.
    packet.extend([1, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
    for label in [name(number).as_str(), "vm"] {
        packet.extend(u8::try_from(label.len()));
        packet.extend(label.bytes());
    }
    packet.extend([0, 0, 1, 0, 1]);
    packet
}

/// dnsmasq with the same names; ended when dropped.
struct Dnsmasq(Child);

impl Dnsmasq {
    fn start(hosts: &Path) -> Result<Self> {
        let mut lines = String::new();
        for number in 0..NAMES {
            lines.push_str(&format!("{} {}.vm\n", address(number), name(number)));
        }
        std::fs::write(hosts, lines).context("write the names")?;
        let mut command = Command::new(DNSMASQ);
        command.args(["--keep-in-foreground", "--conf-file=/dev/null", "--no-resolv"]);
        command.args(["--no-hosts", "--local=/vm/", "--bind-interfaces", "--user=root"]);
        command.args(["--pid-file=", "--cache-size=10000", "--log-facility=/dev/null"]);
        command.arg(format!("--listen-address={GATEWAY}")).arg(format!("--port={THEIRS}"));
        command.arg(format!("--addn-hosts={}", hosts.display()));
        let child = command.stdin(Stdio::null()).spawn().context("start dnsmasq")?;
        Ok(Self(child))
    }
}

impl Drop for Dnsmasq {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn client(port: u16) -> Result<UdpSocket> {
    let socket = UdpSocket::bind(SocketAddr::new(GATEWAY.into(), 0)).context("make a client")?;
    socket.connect(SocketAddr::new(GATEWAY.into(), port)).context("point the client")?;
    socket.set_read_timeout(Some(PATIENCE)).context("limit the client's patience")?;
    Ok(socket)
}

/// Waits until a server answers.
fn wait_for(port: u16) -> Result<()> {
    let socket = client(port)?;
    let began = Instant::now();
    while began.elapsed() < PATIENCE {
        // Nobody there yet is an error of the next call.
        if socket.send(&question(1, 0)).is_ok() && socket.recv(&mut [0; 512]).is_ok() {
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    bail!("no name server answers at port {port}")
}

/// Asks for all names over and over; returns answers a second. Every answer is looked at.
fn rate(port: u16) -> Result<f64> {
    let socket = client(port)?;
    let mut answer = [0; 512];
    let began = Instant::now();
    for (round, numbers) in (0..QUESTIONS).collect::<Vec<_>>().chunks(WINDOW).enumerate() {
        for number in numbers {
            let id = u16::try_from(number % 65_536).unwrap_or(0);
            let name = u8::try_from(number % usize::from(NAMES)).unwrap_or(0);
            socket.send(&question(id, name)).context("ask")?;
        }
        for _ in numbers {
            let length = socket.recv(&mut answer).with_context(|| format!("hear in {round}"))?;
            let id = usize::from(u16::from_be_bytes([answer[0], answer[1]]));
            let asked = numbers.iter().find(|number| *number % 65_536 == id);
            let asked = asked.context("an answer to no question")? % usize::from(NAMES);
            let expected = address(u8::try_from(asked).unwrap_or(0)).octets();
            ensure!(answer[..length].windows(4).any(|bytes| bytes == expected), "a wrong answer");
        }
    }
    let questions = f64::from(u32::try_from(QUESTIONS).unwrap_or(u32::MAX));
    Ok(questions / began.elapsed().as_secs_f64())
}

fn median(rates: &mut [f64]) -> f64 {
    rates.sort_by(f64::total_cmp);
    rates.get(rates.len() / 2).copied().unwrap_or(f64::NAN)
}

/// Both answer for the same names at the same address, in turns.
pub(super) fn measure(rounds: u32) -> Result<Vec<Number>> {
    if !Path::new(DNSMASQ).exists() {
        say("skipped: the name server: dnsmasq-base is not installed");
        return Ok(Vec::new());
    }
    run("/usr/sbin/ip link set lo up")?;
    run(&format!("/usr/sbin/ip address add {GATEWAY}/24 dev lo"))?;
    let zone = Zone::default();
    zone.set_subnet(format!("{GATEWAY}/24").parse().context("a subnet")?);
    for number in 0..NAMES {
        zone.add(Host {
            vm: VmId::random(),
            name: name(number).parse().context("a name")?,
            address: Some(address(number)),
            group: None,
            nat: false,
        });
    }
    // The socket belongs to this thread's network; the tasks run on another thread, as in bangerd.
    let runtime = runtime()?;
    let at = SocketAddr::new(GATEWAY.into(), OURS);
    let server = runtime.block_on(Server::start(at, zone, Upstreams::Fixed(Vec::new())))?;
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let serving = std::thread::spawn(move || {
        // An error says that the sender is gone, which is the end.
        let _ = runtime.block_on(stopped);
        drop(server);
    });
    let directory = tempfile::tempdir().context("make a directory")?;
    let peer = Dnsmasq::start(&directory.path().join("hosts"))?;
    for port in [OURS, THEIRS] {
        wait_for(port)?;
    }
    let (mut ours, mut theirs) = (vec![], vec![]);
    for round in 0..rounds {
        ours.push(rate(OURS)?);
        theirs.push(rate(THEIRS)?);
        say(format_args!(
            "network, names, round {round}: {:.0} answers/s, dnsmasq {:.0} answers/s",
            ours.last().copied().unwrap_or_default(),
            theirs.last().copied().unwrap_or_default()
        ));
    }
    drop((peer, stop));
    let _ = serving.join();
    Ok(vec![Number {
        name: format!("network: names of {NAMES} machines"),
        ours: median(&mut ours),
        peer: Some(("dnsmasq with the same names".to_owned(), median(&mut theirs))),
        unit: "answers/s",
        limit: Limit::AtLeastTimes(1.0),
    }])
}
