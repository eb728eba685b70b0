//! The root helper: the `bangerd-root` that is released, in a network and mounts of its own.
//!
//! Every peer does by itself, in the same namespaces, what the helper is asked for over its socket.

mod bare_launch;
pub(crate) mod bare_tap;
mod echo;
mod launch;
mod memory;
mod round_trip;
mod tap;

use std::ffi::CString;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use banger_helper_api::Method;
use banger_privileged_tests::running::{Peer, RunningHelper};
use banger_privileged_tests::{
    Directories, OWNER, enter_own_mounts, enter_own_network, unmount_below, vmm,
};
use rustix::mount::MountFlags;
use serde_json::{Value, json};

use crate::number::Number;
use crate::say;

use echo::Echo;
pub(crate) use echo::answer as answer_echoes;

/// The bridge that the taps are ports of.
const BRIDGE: &str = "br-fc";

/// Measures what this machine can; the rest is said to be skipped.
pub(crate) fn measure(rounds: u32) -> Result<Vec<Number>> {
    if !banger_harness::is_root() {
        say("skipped: the root helper: only root can start it");
        return Ok(Vec::new());
    }
    // Namespaces are a thread's, and of the processes that it starts.
    let thread = std::thread::spawn(move || in_own_world(rounds));
    thread.join().map_err(|_| anyhow!("what the helper is measured with could not be made"))?
}

fn in_own_world(rounds: u32) -> Result<Vec<Number>> {
    enter_own_network();
    enter_own_mounts();
    let has_machines = can_launch()?;
    let has_bridge = Path::new("/usr/sbin/nft").exists();
    let world = World::new()?;
    if has_bridge {
        world.ensure_bridge()?;
    } else {
        say("skipped: taps: there is no /usr/sbin/nft for the bridge's rules");
    }
    let mut numbers = round_trip::measure(&world, rounds, has_machines)?;
    if has_bridge {
        numbers.extend(tap::measure(&world, rounds)?);
    }
    if has_machines {
        numbers.extend(launch::measure(&world, rounds)?);
    }
    drop(world);
    numbers.push(memory::measure(has_bridge, has_machines)?);
    Ok(numbers)
}

/// Puts firecracker and jailer where the helper takes them from; says so if that cannot be.
pub(crate) fn can_launch() -> Result<bool> {
    let Some(programs) = banger_harness::vmm_binaries() else {
        say(
            "skipped: launches: there are no vmm-binaries; `cargo xtask vmm-binaries` fetches them",
        );
        return Ok(false);
    };
    if std::fs::File::options().read(true).write(true).open("/dev/kvm").is_err() {
        say("skipped: launches: Firecracker needs /dev/kvm");
        return Ok(false);
    }
    vmm::put_programs(&programs);
    Ok(true)
}

/// A helper with its directories; at its end nothing of it is left.
#[derive(Debug)]
pub(crate) struct World {
    helper: RunningHelper,
}

impl World {
    pub(crate) fn new() -> Result<Self> {
        let directories = Directories::new();
        // Both are below /run where banger is installed: in memory.
        let owners = CString::new(format!("mode=700,uid={OWNER},gid={OWNER}"))?;
        for (path, options) in [(&directories.own, c"mode=711"), (&directories.runtime, &owners)] {
            rustix::mount::mount("tmpfs", path, "tmpfs", MountFlags::empty(), options)
                .with_context(|| format!("mount {}", path.display()))?;
        }
        directories.write("kernel", &vmm::tiny_kernel(b"hello\n"));
        let program = banger_harness::repository().join("target/release/bangerd-root");
        Ok(Self { helper: RunningHelper::start_program(&program, directories) })
    }

    fn directories(&self) -> &Directories {
        &self.helper.directories
    }

    pub(crate) fn helper(&self) -> &RunningHelper {
        &self.helper
    }

    pub(crate) fn ensure_bridge(&self) -> Result<()> {
        done(&mut self.helper.connect(), Method::EnsureBridge, &bridge()).map(drop)
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.helper.stop();
        unmount_below(self.directories().root());
    }
}

pub(crate) fn bridge() -> Value {
    json!({"bridge_name": BRIDGE, "bridge_ip": "172.16.0.1", "cidr": "24"})
}

/// Has a method done; that it is not is an error.
pub(crate) fn done(peer: &mut Peer, method: Method, params: &Value) -> Result<Value> {
    peer.call(method, params).map_err(|(code, why)| anyhow!("{}: {code:?}: {why}", method.name()))
}

/// How long something takes.
pub(crate) fn timed(act: impl FnOnce() -> Result<()>) -> Result<Duration> {
    let began = Instant::now();
    act()?;
    Ok(began.elapsed())
}
