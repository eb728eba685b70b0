//! Peers that are slow, many, deaf, or all at once.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use banger_harness::Process;
use banger_helper_api::Method;
use banger_privileged_tests::running::{Peer, RunningHelper, request};
use serde_json::json;

use crate::snapshot::Snapshot;
use crate::{enter_own_world, is_not_root};

/// More than the helper takes.
const PEERS: usize = 48;

fn harmless(helper: &RunningHelper) -> (Method, serde_json::Value) {
    let socket = helper.directories.runtime.join("a.sock");
    (Method::ProcessRunning, json!({"pid": 4_194_304, "api_sock": socket}))
}

fn assert_answers(helper: &RunningHelper) {
    let (method, params) = harmless(helper);
    helper.call(method, &params).expect("it answers");
}

#[test]
fn half_open_and_slow_peers_are_kept_to_their_number() {
    if is_not_root() {
        return;
    }
    enter_own_world();
    let helper = RunningHelper::start();
    let before = Snapshot::take(&helper.directories, helper.pid());
    let mut peers: Vec<Peer> = (0..PEERS)
        .map(|at| {
            let mut peer = helper.connect();
            if at % 2 == 0 {
                // It may have been refused already.
                let _ = peer.send(b"{\"version\":1,");
            }
            peer
        })
        .collect();
    let refused = peers
        .iter_mut()
        .skip(32)
        .map(|peer| peer.answer().expect("a word"))
        .filter(|answer| answer["error"]["message"] == "too many connections")
        .count();
    assert_eq!(refused, PEERS - 32);
    drop(peers);
    // The helper learns of the ends one by one.
    let (method, params) = harmless(&helper);
    let line = request(method, &params);
    while helper.connect().ask(&line).is_none_or(|answer| answer["ok"] == false) {
        std::thread::yield_now();
    }
    assert_answers(&helper);
    assert_eq!(before, Snapshot::take(&helper.directories, helper.pid()));
}

#[test]
fn a_peer_that_never_reads_hinders_nobody() {
    if is_not_root() {
        return;
    }
    enter_own_world();
    let helper = RunningHelper::start();
    let mut deaf = helper.connect();
    let (method, params) = harmless(&helper);
    let line = format!("{}\n", request(method, &params)).repeat(256);
    let short = Some(std::time::Duration::from_millis(200));
    deaf.stream.get_mut().set_write_timeout(short).unwrap();
    // Until the helper takes no more, because its answers lie unread.
    while deaf.send(line.as_bytes()).is_ok() {
        assert_answers(&helper);
    }
    assert_answers(&helper);
    drop(deaf);
    assert_answers(&helper);
}

#[test]
fn sixteen_at_once_make_and_end_taps_and_leave_none() {
    if is_not_root() {
        return;
    }
    if !std::path::Path::new("/usr/sbin/nft").exists() {
        return banger_harness::skip("nft", "makes a bridge with its firewall");
    }
    enter_own_world();
    let helper = RunningHelper::start();
    let bridge = json!({"bridge_name": "br-fc", "bridge_ip": "172.16.0.1", "cidr": "24"});
    helper.call(Method::EnsureBridge, &bridge).unwrap();
    let before = Snapshot::take(&helper.directories, helper.pid());
    std::thread::scope(|scope| {
        for at in 0..16 {
            let (helper, bridge) = (&helper, &bridge);
            scope.spawn(move || {
                // Two of them share each tap.
                let name = format!("tap-fc-{}", at / 2);
                for _ in 0..8 {
                    let mut tap = bridge.clone();
                    tap["tap_name"] = name.clone().into();
                    // The other one may end it at any moment; that is no reason to hang or leak.
                    let _ = helper.call(Method::CreateTap, &tap);
                    let delete = helper.call(Method::DeleteTap, &json!({"tap_name": name}));
                    assert!(delete.is_ok(), "{delete:?}");
                }
            });
        }
    });
    assert_answers(&helper);
    assert_eq!(before, Snapshot::take(&helper.directories, helper.pid()));
}

#[test]
fn long_frames_on_many_connections_are_not_kept_in_memory() {
    if is_not_root() {
        return;
    }
    enter_own_world();
    let helper = RunningHelper::start();
    let process = Process { pid: helper.pid(), command: String::new() };
    let file = json!({"guest_path": "/x", "data": "A".repeat(2 << 20)});
    let params = json!({"image_path": "/etc/passwd", "files": [file]});
    let line = request(Method::WriteExt4Files, &params);
    let before = process.resident().unwrap();
    let mut peers: Vec<Peer> = (0..16).map(|_| helper.connect()).collect();
    for _ in 0..2 {
        for peer in &mut peers {
            assert_eq!(peer.ask(&line).expect("an answer")["ok"], false);
        }
    }
    let grown = process.resident().unwrap().saturating_sub(before);
    assert!(grown < 4 << 20, "{before} bytes and {grown} more");
}

/// Half-sent long lines on every place: each is dropped when its time is over, not one after the
/// other, and another's long line gets its turn then.
#[test]
fn long_lines_that_never_end_hold_no_place_beyond_their_time() {
    if is_not_root() {
        return;
    }
    enter_own_world();
    let helper = RunningHelper::start();
    let before = Snapshot::take(&helper.directories, helper.pid());
    let file = json!({"guest_path": "/x", "data": "A".repeat(200 << 10)});
    let params = json!({"image_path": "/etc/passwd", "files": [file]});
    let line = request(Method::WriteExt4Files, &params);
    let mut peers: Vec<Peer> = (0..32).map(|_| helper.connect()).collect();
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        // They go on for as long as they may: silence is not what ends them.
        let speakers: Vec<_> = peers
            .iter_mut()
            .map(|peer| {
                let (line, is_over) = (&line, &is_over);
                scope.spawn(move || {
                    let mut half = line.as_bytes()[..150 << 10].to_vec();
                    while !is_over.load(Ordering::Relaxed) && peer.send(&half).is_ok() {
                        half = b"A".to_vec();
                        std::thread::sleep(Duration::from_millis(50));
                    }
                    peer.answer().map(|answer| answer["error"]["message"].clone())
                })
            })
            .collect();
        // One after the other they would take eight times as long as this waits.
        let ended = || {
            let all = speakers.iter().all(std::thread::ScopedJoinHandle::is_finished);
            all.then_some(())
        };
        banger_harness::wait_for("the end of 32 lines", Duration::from_secs(40), ended);
        is_over.store(true, Ordering::Relaxed);
        for speaker in speakers {
            let message = speaker.join().unwrap();
            assert_eq!(message, Some("a line that takes too long".into()));
        }
    });
    drop(peers);
    assert_eq!(helper.connect().ask(&line).expect("an answer")["error"]["code"], "bad_params");
    assert_answers(&helper);
    assert_eq!(before, Snapshot::take(&helper.directories, helper.pid()));
}
