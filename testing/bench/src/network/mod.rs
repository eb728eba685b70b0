//! The guests' network: what a way out costs, and how fast names are answered.
//!
//! ```text
//!  guest (a network of its own) ──wire──► tap ► bridge ► NAT (banger) ──► world (a third network)
//!                               ──wire──► tap ► masquerade  (bare)    ──► world
//! ```
//!
//! The wire is a thread that carries frames between the guest's end and the tap, as a VMM does; it is
//! the same on both sides, so what is compared is the host's part. It cannot do what a VMM's offload
//! does, so [`guest`] measures with a VMM and a real guest, too.

mod dns;
mod guest;
mod nat;
mod side;

use std::path::Path;

use anyhow::{Result, anyhow};
use banger_privileged_tests::{enter_own_mounts, enter_own_network};

use crate::helper::World;
use crate::number::Number;
use crate::say;

/// Measures what this machine can; the rest is said to be skipped.
pub(crate) fn measure(rounds: u32) -> Result<Vec<Number>> {
    if !banger_harness::is_root() {
        say("skipped: the network: only root can make taps");
        return Ok(Vec::new());
    }
    for tool in ["/usr/sbin/nft", "/usr/sbin/ip", "/usr/bin/nsenter"] {
        if !Path::new(tool).exists() {
            say(format_args!("skipped: the network: there is no {tool}"));
            return Ok(Vec::new());
        }
    }
    // Namespaces are a thread's, and of the processes that it starts.
    let thread = std::thread::spawn(move || in_own_world(rounds));
    let numbers = thread.join();
    let mut numbers =
        numbers.map_err(|_| anyhow!("what the network is measured with could not be made"))??;
    numbers.extend(guest::measure(rounds)?);
    Ok(numbers)
}

fn in_own_world(rounds: u32) -> Result<Vec<Number>> {
    enter_own_network();
    enter_own_mounts();
    let world = World::new()?;
    world.ensure_bridge()?;
    let mut numbers = nat::enabling(&world, rounds)?;
    numbers.extend(nat::throughput(&world, rounds)?);
    numbers.extend(dns::measure(rounds)?);
    Ok(numbers)
}
