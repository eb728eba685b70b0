//! A tap's beginning and end, against the kernel's acts alone and against `ip`.

use anyhow::Result;
use banger_helper_api::Method;
use banger_privileged_tests::OWNER;
use banger_privileged_tests::running::Peer;
use serde_json::{Value, json};

use super::{BRIDGE, World, bare_tap, bridge, done, timed};
use crate::number::{Limit, Number, median_ms};
use crate::say;

/// Taps per round and side.
const TAPS: u32 = 8;
const NAME: &str = "tap-fc-bench";
const POOLED: &str = "tap-pool-bench";
const MAC: &str = "06:00:ac:10:00:02";
const IP: &str = "172.16.0.2";

fn through_helper(peer: &mut Peer, tap: &Value) -> Result<()> {
    done(peer, Method::CreateTap, tap)?;
    done(peer, Method::DeleteTap, &json!({"tap_name": NAME})).map(drop)
}

/// Each side makes a tap and ends it.
pub(super) fn measure(world: &World, rounds: u32) -> Result<Vec<Number>> {
    let mut peer = world.helper.connect();
    let mut plain = bridge();
    plain["tap_name"] = NAME.into();
    let mut checked = plain.clone();
    checked["guest_mac"] = MAC.into();
    checked["guest_ip"] = IP.into();
    let has_ip = std::path::Path::new("/usr/sbin/ip").exists();
    let (mut ours, mut bares, mut ips) = (vec![], vec![], vec![]);
    let (mut ours_checked, mut bares_checked) = (vec![], vec![]);
    for round in 0..rounds {
        for _ in 0..TAPS {
            ours.push(timed(|| through_helper(&mut peer, &plain))?);
            bares.push(timed(|| {
                bare_tap::create(NAME, BRIDGE, OWNER)?;
                bare_tap::delete(NAME)
            })?);
            if has_ip {
                ips.push(timed(|| {
                    bare_tap::create_by_ip(NAME)?;
                    bare_tap::delete_by_ip(NAME)
                })?);
            }
            ours_checked.push(timed(|| through_helper(&mut peer, &checked))?);
            bares_checked.push(timed(|| {
                bare_tap::check_guest("add", NAME, MAC, IP)?;
                bare_tap::create(NAME, BRIDGE, OWNER)?;
                bare_tap::delete(NAME)?;
                bare_tap::check_guest("delete", NAME, MAC, IP)
            })?);
        }
        say(format_args!(
            "helper, tap, round {round}: {:.2} ms, bare {:.2} ms, ip {:.2} ms; its guest's addresses checked: {:.2} ms, bare {:.2} ms",
            median_ms(&ours),
            median_ms(&bares),
            median_ms(&ips),
            median_ms(&ours_checked),
            median_ms(&bares_checked)
        ));
    }
    let number = |what: &str, ours: &[_], by: &str, peers: &[_], limit| Number {
        name: format!("helper: `priv.create_tap` and `priv.delete_tap`{what}"),
        ours: median_ms(ours),
        peer: Some((by.to_owned(), median_ms(peers))),
        unit: "ms",
        limit,
    };
    let mut numbers = vec![number(
        "",
        &ours,
        "the same ioctls and netlink messages by a bare program",
        &bares,
        Limit::AtMostTimes(1.3),
    )];
    if has_ip {
        numbers.push(number("", &ours, "`ip`, five times", &ips, Limit::None));
    }
    numbers.push(number(
        " of a guest whose addresses are checked",
        &ours_checked,
        "a bare program, and `nft` twice, which nothing is read back from",
        &bares_checked,
        Limit::None,
    ));
    numbers.extend(pooled(world, rounds)?);
    Ok(numbers)
}

/// What a tap that waits saves, against one that is made for the guest.
fn pooled(world: &World, rounds: u32) -> Result<Vec<Number>> {
    let mut peer = world.helper.connect();
    let guest = |name: &str| {
        let mut params = bridge();
        params["tap_name"] = name.into();
        params["guest_mac"] = MAC.into();
        params["guest_ip"] = IP.into();
        params["return_fd"] = true.into();
        params
    };
    let mut waiting = bridge();
    waiting["tap_name"] = POOLED.into();
    done(&mut peer, Method::CreateTap, &waiting)?;
    let (mut takes, mut makes) = (vec![], vec![]);
    for round in 0..rounds {
        for _ in 0..TAPS {
            let mut act =
                |method, params: &Value| timed(|| done(&mut peer, method, params).map(drop));
            takes.push(act(Method::CreateTap, &guest(POOLED))?);
            act(Method::CreateTap, &waiting)?;
            makes.push(act(Method::CreateTap, &guest(NAME))?);
            act(Method::DeleteTap, &json!({"tap_name": NAME}))?;
        }
        say(format_args!(
            "helper, pool, round {round}: {:.2} ms, without {:.2} ms",
            median_ms(&takes),
            median_ms(&makes)
        ));
    }
    done(&mut peer, Method::DeleteTap, &json!({"tap_name": POOLED}))?;
    Ok(vec![Number {
        name: "helper: `priv.create_tap` of a guest, with a tap that waits for one".to_owned(),
        ours: median_ms(&takes),
        peer: Some(("with none".to_owned(), median_ms(&makes))),
        unit: "ms",
        limit: Limit::None,
    }])
}
