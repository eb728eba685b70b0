//! NAT: what enabling it for one more guest takes, and what passes through it.

use anyhow::{Context, Result, anyhow};
use banger_helper_api::Method;
use banger_privileged_sys::tun::Tap;
use banger_privileged_tests::enter_own_network;
use banger_privileged_tests::running::Peer;
use serde_json::{Value, json};

use super::side::{Side, run};
use crate::helper::{World, bridge, done, timed};
use crate::number::{Limit, Number, median_ms};
use crate::say;

/// The most guests of the comparison.
const GUESTS: u32 = 200;
/// What is sent at a time.
const BYTES: u64 = 64 << 20;

fn ip(number: u32) -> String {
    format!("172.16.0.{}", number + 1)
}

fn mac(number: u32) -> String {
    format!("06:00:ac:10:00:{:02x}", number + 1)
}

fn tap(number: u32) -> String {
    format!("tap-fc-{number}")
}

fn create(peer: &mut Peer, number: u32) -> Result<()> {
    let mut params = bridge();
    params["tap_name"] = tap(number).into();
    params["guest_mac"] = mac(number).into();
    params["guest_ip"] = ip(number).into();
    done(peer, Method::CreateTap, &params).map(drop)
}

fn nat(number: u32, enable: bool) -> Value {
    json!({"guest_ip": ip(number), "tap": tap(number), "enable": enable})
}

/// The first guest gets its way out, and the last of many.
pub(super) fn enabling(world: &World, rounds: u32) -> Result<Vec<Number>> {
    let mut peer = world.helper().connect();
    for number in 1..=GUESTS {
        create(&mut peer, number)?;
    }
    let (mut firsts, mut lasts) = (vec![], vec![]);
    for round in 0..rounds {
        for number in 1..=GUESTS {
            let mut enable = || done(&mut peer, Method::EnsureNat, &nat(number, true)).map(drop);
            let took = timed(&mut enable)?;
            match number {
                1 => firsts.push(took),
                GUESTS => lasts.push(took),
                _ => {}
            }
        }
        for number in 1..=GUESTS {
            done(&mut peer, Method::EnsureNat, &nat(number, false))?;
        }
        say(format_args!(
            "network, NAT for one guest, round {round}: {:.2} ms, with {} others {:.2} ms",
            median_ms(&firsts),
            GUESTS - 1,
            median_ms(&lasts)
        ));
    }
    for number in 1..=GUESTS {
        done(&mut peer, Method::DeleteTap, &json!({"tap_name": tap(number)}))?;
    }
    Ok(vec![Number {
        name: format!("network: `priv.ensure_nat` for guest {GUESTS}"),
        ours: median_ms(&lasts),
        peer: Some(("for the first".to_owned(), median_ms(&firsts))),
        unit: "ms",
        limit: Limit::AtMostTimes(1.5),
    }])
}

/// A tap with an address, and one rule.
fn bare() -> Result<Side> {
    enter_own_network();
    run("/usr/sbin/ip link set lo up")?;
    let world = Side::world()?;
    let made = Tap::create("tap0").context("make a tap")?;
    made.persist().context("keep a tap")?;
    drop(made);
    run("/usr/sbin/ip address add 172.16.0.1/24 dev tap0")?;
    run("/usr/sbin/ip link set tap0 up")?;
    run("/usr/sbin/nft add table ip bare")?;
    let hook = "{ type nat hook postrouting priority 100 ; }";
    run(&format!("/usr/sbin/nft add chain ip bare out {hook}"))?;
    run("/usr/sbin/nft add rule ip bare out ip saddr 172.16.0.0/24 oifname up0 masquerade")?;
    std::fs::write("/proc/sys/net/ipv4/ip_forward", "1").context("forward packets")?;
    Side::new(world, "tap0", &mac(1), &ip(1), "172.16.0.1")
}

/// Bytes from a guest to the world, through banger's walls and through one rule.
pub(super) fn throughput(helper: &World, rounds: u32) -> Result<Vec<Number>> {
    let world = Side::world()?;
    let mut peer = helper.helper().connect();
    create(&mut peer, 1)?;
    done(&mut peer, Method::EnsureNat, &nat(1, true))?;
    let ours = Side::new(world, &tap(1), &mac(1), &ip(1), "172.16.0.1")?;
    let thread = std::thread::spawn(bare);
    let bare = thread.join().map_err(|_| anyhow!("the bare tap could not be made"))??;
    let (mut times, mut bares) = (vec![], vec![]);
    // Neighbours are asked for, and windows grow.
    for side in [&ours, &bare] {
        side.send(BYTES / 8)?;
    }
    for round in 0..rounds {
        times.push(ours.send(BYTES)?);
        bares.push(bare.send(BYTES)?);
        let rate = |times| speed(median_ms(times));
        say(format_args!(
            "network, NAT, round {round}: {:.0} MiB/s, bare {:.0} MiB/s",
            rate(&times),
            rate(&bares)
        ));
    }
    drop(ours);
    done(&mut peer, Method::DeleteTap, &json!({"tap_name": tap(1)}))?;
    Ok(vec![Number {
        name: "network: frames of 1,500 bytes from a guest with NAT".to_owned(),
        ours: speed(median_ms(&times)),
        peer: Some(("a bare tap with a masquerade rule".to_owned(), speed(median_ms(&bares)))),
        unit: "MiB/s",
        // A guest of a VMM sends TCP in segments of up to 64 KiB, for which the walls are passed once;
        // a wire of this program cannot, so this is the worst there is, not what a limit is about.
        limit: Limit::None,
    }])
}

/// Milliseconds for all bytes, as MiB a second.
fn speed(milliseconds: f64) -> f64 {
    f64::from(u32::try_from(BYTES >> 20).unwrap_or(u32::MAX)) * 1000.0 / milliseconds
}
