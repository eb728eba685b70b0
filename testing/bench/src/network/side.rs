//! One side of the comparison: a guest, a host and a world, each with a network of its own.

use std::fs::File;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::process::{Child, Command};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use banger_privileged_sys::tun::Tap;
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// Where the world listens.
const WORLD: &str = "9.9.2.1:9000";
/// The longest frame with its header, with room.
const FRAME: usize = 4096;
/// How often a wire looks whether it is to end.
const LOOK: Duration = Duration::from_millis(100);

/// Runs a line of words in this thread's network.
pub(super) fn run(line: &str) -> Result<()> {
    let words: Vec<&str> = line.split(' ').collect();
    let output = Command::new(words[0]).args(&words[1..]).output().context("run a program")?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{line}: {said}");
    Ok(())
}

/// A network that is there for as long as this.
#[derive(Debug)]
pub(super) struct Network(Child);

impl Network {
    pub(super) fn new() -> Result<Self> {
        let child = Command::new("unshare").args(["-n", "sleep", "infinity"]).spawn()?;
        let network = Self(child);
        let of = |who: &str| std::fs::read_link(format!("/proc/{who}/ns/net")).ok();
        let own = of("thread-self");
        while of(&network.0.id().to_string()).is_none_or(|other| Some(other) == own) {
            std::thread::yield_now();
        }
        network.run("/usr/sbin/ip link set lo up")?;
        Ok(network)
    }

    pub(super) fn run(&self, line: &str) -> Result<()> {
        run(&format!("/usr/bin/nsenter -t {} -n {line}", self.0.id()))
    }

    pub(super) fn pid(&self) -> u32 {
        self.0.id()
    }

    /// Does something in it, on a thread of its own.
    pub(super) fn within<T: Send + 'static>(
        &self,
        act: impl FnOnce() -> Result<T> + Send + 'static,
    ) -> Result<JoinHandle<Result<T>>> {
        let place: OwnedFd = File::open(format!("/proc/{}/ns/net", self.0.id()))?.into();
        Ok(std::thread::spawn(move || {
            let kind = Some(LinkNameSpaceType::Network);
            move_into_link_name_space(place.as_fd(), kind).context("enter a network")?;
            act()
        }))
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn ended<T>(thread: JoinHandle<Result<T>>) -> Result<T> {
    thread.join().map_err(|_| anyhow!("a thread panicked"))?
}

/// Carries frames between two taps until it is dropped.
#[derive(Debug)]
struct Wire {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Wire {
    fn new(one: File, other: File) -> Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let mut threads = Vec::new();
        for (from, to) in [(one.try_clone()?, other.try_clone()?), (other, one)] {
            let stop = Arc::clone(&stop);
            threads.push(std::thread::spawn(move || carry(&from, &to, &stop)));
        }
        Ok(Self { stop, threads })
    }
}

fn carry(mut from: &File, mut to: &File, stop: &AtomicBool) {
    let mut frame = vec![0; FRAME];
    let wait = Timespec::try_from(LOOK).ok();
    while !stop.load(Ordering::Relaxed) {
        let mut events = [PollFd::new(from, PollFlags::IN)];
        if !matches!(rustix::event::poll(&mut events, wait.as_ref()), Ok(ready) if ready > 0) {
            continue;
        }
        let Ok(length) = from.read(&mut frame) else { return };
        // A full queue loses frames, as a real wire does.
        let _ = to.write(&frame[..length]);
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

/// A guest that reaches the world through a tap of this thread's network, whatever is done to its
/// packets there.
#[derive(Debug)]
pub(super) struct Side {
    _wire: Wire,
    guest: Network,
    world: Network,
}

impl Side {
    /// Connects this thread's network with a world; the guest comes with [`Side::new`].
    pub(super) fn world() -> Result<Network> {
        let world = Network::new()?;
        run(&format!("/usr/sbin/ip link add up0 type veth peer name up0 netns {}", world.pid()))?;
        run("/usr/sbin/ip address add 9.9.2.2/24 dev up0")?;
        run("/usr/sbin/ip link set up0 up")?;
        world.run("/usr/sbin/ip address add 9.9.2.1/24 dev up0")?;
        world.run("/usr/sbin/ip link set up0 up")?;
        run("/usr/sbin/ip route add default via 9.9.2.1")?;
        Ok(world)
    }

    /// Connects a guest with these addresses to a tap that is there.
    pub(super) fn new(
        world: Network,
        tap: &str,
        mac: &str,
        ip: &str,
        gateway: &str,
    ) -> Result<Self> {
        let guest = Network::new()?;
        let near = Tap::open(tap).with_context(|| format!("open {tap}"))?.into_file();
        let far = ended(guest.within(|| Tap::create("eth0").context("make the guest's end"))?)?;
        guest.run(&format!("/usr/sbin/ip link set eth0 address {mac}"))?;
        guest.run(&format!("/usr/sbin/ip address add {ip}/24 dev eth0"))?;
        guest.run("/usr/sbin/ip link set eth0 up")?;
        guest.run(&format!("/usr/sbin/ip route add default via {gateway}"))?;
        Ok(Self { _wire: Wire::new(near, far.into_file())?, guest, world })
    }

    /// Sends `bytes` from the guest to the world by TCP; returns how long it takes from the connection to
    /// the last byte's arrival.
    pub(super) fn send(&self, bytes: u64) -> Result<Duration> {
        let (ready, told) = std::sync::mpsc::channel();
        let receiver = self.world.within(move || {
            let listener = TcpListener::bind(WORLD).context("listen in the world")?;
            ready.send(()).context("say so")?;
            let (stream, _) = listener.accept().context("accept")?;
            let count = std::io::copy(&mut &stream, &mut std::io::sink()).context("receive")?;
            Ok((count, Instant::now()))
        })?;
        told.recv().context("wait for the world")?;
        let sender = self.guest.within(move || {
            let mut stream = TcpStream::connect(WORLD).context("reach the world")?;
            let began = Instant::now();
            std::io::copy(&mut std::io::repeat(0x5a).take(bytes), &mut stream).context("send")?;
            Ok(began)
        })?;
        let began = ended(sender)?;
        let (count, end) = ended(receiver)?;
        ensure!(count == bytes, "{count} bytes of {bytes} arrived");
        Ok(end.duration_since(began))
    }
}
