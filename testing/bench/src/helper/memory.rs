//! What the helper holds after many calls of all kinds.

use anyhow::{Context, Result, ensure};
use banger_harness::Process;
use banger_helper_api::Method;
use banger_privileged_tests::running::Peer;
use serde_json::{Value, json};

use super::launch::Launched;
use super::{World, bridge, done};
use crate::number::{Limit, Number};
use crate::say;
use crate::sizes::mib;

const CALLS: u32 = 10_000;
/// Connections that stay open meanwhile.
const PEERS: usize = 8;
/// One call in so many is one that starts nft, one that starts debugfs, half a frame.
const DEAR: u32 = 50;
/// One call in so many is on a new connection.
const NEW: u32 = 25;
/// The machines that are launched.
const MACHINES: u32 = 10;
/// What is written into a disk at once, in base64.
const FILE: usize = 400_000;
/// What the helper may hold, in MiB.
const MOST: f64 = 6.0;

/// A question, and whether it is to be refused.
fn cheap(world: &World, at: u32) -> (Method, Value, bool) {
    let runtime = &world.directories().runtime;
    match at % 8 {
        0 => (Method::FindFirecrackerPid, json!({"api_sock": runtime.join("none.sock")}), true),
        1 => (Method::SignalProcess, json!({"pid": 1, "signal": "KILL"}), true),
        2 => (Method::KillProcess, json!({"pid": std::process::id()}), true),
        3 => (Method::DeleteTap, json!({"tap_name": "eth0"}), true),
        4 => (Method::DeleteTap, json!({"tap_name": "tap-fc-none"}), false),
        5 => (Method::ResolveFirecrackerBinary, json!({"requested": "/bin/bash"}), true),
        6 => (Method::ReadExt4File, json!({"image_path": "/etc/passwd", "guest_path": "/x"}), true),
        _ => {
            let params = json!({"pid": 4_194_304, "api_sock": runtime.join("none.sock")});
            (Method::ProcessRunning, params, false)
        }
    }
}

/// The calls that start nft: a guest's whole network, made and ended.
fn network(peer: &mut Peer) -> Result<u32> {
    let mut tap = bridge();
    tap["tap_name"] = "tap-fc-2".into();
    tap["guest_mac"] = "06:00:ac:10:00:02".into();
    tap["guest_ip"] = "172.16.0.2".into();
    done(peer, Method::CreateTap, &tap)?;
    let nat = json!({"guest_ip": "172.16.0.2", "tap": "tap-fc-2", "enable": true});
    done(peer, Method::EnsureNat, &nat)?;
    done(peer, Method::DeleteTap, &json!({"tap_name": "tap-fc-2"}))?;
    Ok(3)
}

/// The calls that start debugfs: a file of an image, written and read.
fn file(peer: &mut Peer, image: &Value) -> Result<u32> {
    let files = json!([{"guest_path": "/file", "data": "A".repeat(FILE)}]);
    done(peer, Method::WriteExt4Files, &json!({"image_path": image, "files": files}))?;
    done(peer, Method::ReadExt4File, &json!({"image_path": image, "guest_path": "/file"}))?;
    Ok(2)
}

/// A machine, launched, ended and cleaned up after.
fn machine(world: &World, number: u32) -> Result<u32> {
    Launched::by_helper(world, &format!("machine-{number}"))?.end(world)?;
    Ok(3)
}

/// An empty ext4 of the owner's, where there are tools for it.
fn image(world: &World) -> Option<Value> {
    let mke2fs = banger_harness::find_program("mke2fs")?;
    let path = world.directories().write("image", b"");
    std::fs::File::options().write(true).open(&path).ok()?.set_len(16 << 20).ok()?;
    let mut made = std::process::Command::new(mke2fs);
    made.args(["-q", "-F", "-t", "ext4"]).arg(&path).status().ok()?.success().then(|| json!(path))
}

/// Asks all kinds of things and looks at the helper's resident memory then.
pub(super) fn measure(has_bridge: bool, has_machines: bool) -> Result<Number> {
    let world = World::new()?;
    if has_bridge {
        world.ensure_bridge()?;
    }
    let image = image(&world);
    let process = Process { pid: world.helper.pid(), command: String::new() };
    let mut peers: Vec<Peer> = (0..PEERS).map(|_| world.helper.connect()).collect();
    let (mut calls, mut at) = (0, 0);
    while calls < CALLS {
        if at % (CALLS / 10) == 0 {
            say(format_args!("helper, after {calls} calls: {:.2} MiB", resident(&process)?));
        }
        let slot = usize::try_from(at)? % PEERS;
        if at % NEW == 0 {
            peers[slot] = world.helper.connect();
        }
        let peer = &mut peers[slot];
        calls += match (at % DEAR, &image) {
            (0, _) if has_bridge => network(peer)?,
            (1, Some(image)) => file(peer, image)?,
            (2, _) if has_machines && at < MACHINES * DEAR => machine(&world, at)?,
            (3, _) => {
                let answer = peer.ask("{\"version\":1,\"method\":").context("an answer")?;
                ensure!(answer["ok"] == false, "half a frame was taken");
                1
            }
            _ => {
                let (method, params, is_refused) = cheap(&world, at);
                let outcome = peer.call(method, &params);
                ensure!(outcome.is_err() == is_refused, "{}: {outcome:?}", method.name());
                1
            }
        };
        at += 1;
    }
    Ok(Number {
        name: format!("helper: resident after {CALLS} calls, most of them refused"),
        ours: resident(&process)?,
        peer: None,
        unit: "MiB",
        limit: Limit::AtMost(MOST),
    })
}

fn resident(process: &Process) -> Result<f64> {
    process.resident().map(mib).context("the helper's memory")
}
