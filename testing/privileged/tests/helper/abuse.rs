//! Peers that are slow, many, deaf, or all at once.

use std::io::{BufRead, Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use banger_harness::Process;
use banger_helper_api::{ErrorCode, Method};
use banger_privileged_tests::OWNER;
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
    let before = Snapshot::take(&helper.directories);
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
    assert_eq!(before, Snapshot::take(&helper.directories));
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
    let before = Snapshot::take(&helper.directories);
    let made = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for at in 0..16 {
            let (helper, bridge, made) = (&helper, &bridge, &made);
            scope.spawn(move || {
                // Two of them share each tap.
                let name = format!("tap-fc-{}", at / 2);
                for _ in 0..8 {
                    let mut tap = bridge.clone();
                    tap["tap_name"] = name.clone().into();
                    // The other one may end it at any moment, which is all that may go wrong.
                    match helper.call(Method::CreateTap, &tap) {
                        Ok(_) => drop(made.fetch_add(1, Ordering::Relaxed)),
                        Err((code, _)) => assert_eq!(code, ErrorCode::OperationFailed),
                    }
                    let delete = helper.call(Method::DeleteTap, &json!({"tap_name": name}));
                    assert!(delete.is_ok(), "{delete:?}");
                }
            });
        }
    });
    assert!(made.into_inner() >= 8 * 8, "of two who share a tap at least one makes it");
    assert_answers(&helper);
    assert_eq!(before, Snapshot::take(&helper.directories));
}

/// What the kernel counts as the most that a process ever had resident, in bytes.
fn most_resident(helper: &RunningHelper) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", helper.pid())).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() << 10
}

/// Long requests and long answers, on as many connections as there are.
#[test]
fn many_long_lines_at_once_take_the_memory_of_one() {
    if is_not_root() {
        return;
    }
    if banger_harness::find_program("mke2fs").is_none() {
        return banger_harness::skip("mke2fs", "writes into an image");
    }
    enter_own_world();
    let helper = RunningHelper::start();
    let image = |at: usize| helper.directories.state.join(format!("image{at}"));
    let data = "A".repeat(12 << 20);
    let write = |at: usize| json!({"image_path": image(at), "files": [{"guest_path": "/long", "data": data}]});
    let read = |at: usize| json!({"image_path": image(at), "guest_path": "/long"});
    let done = |method, params: &serde_json::Value| {
        let answer = helper.connect().call(method, params);
        assert!(answer.is_ok(), "{method}: {:?}", answer.map(drop));
    };
    const PEERS: usize = 12;
    for at in 0..PEERS {
        std::fs::File::create(image(at)).unwrap().set_len(32 << 20).unwrap();
        let mut make = Command::new("/usr/sbin/mke2fs");
        assert!(make.args(["-q", "-F", "-t", "ext4"]).arg(image(at)).status().unwrap().success());
        std::os::unix::fs::chown(image(at), Some(OWNER), Some(OWNER)).unwrap();
    }
    done(Method::WriteExt4Files, &write(0));
    done(Method::ReadExt4File, &read(0));
    let one = most_resident(&helper);
    for method in [Method::WriteExt4Files, Method::ReadExt4File] {
        std::thread::scope(|scope| {
            for at in 0..PEERS {
                let params = if method == Method::ReadExt4File { read(0) } else { write(at) };
                scope.spawn(move || done(method, &params));
            }
        });
    }
    let all = most_resident(&helper);
    assert!(all < one * 3 / 2, "{one} bytes for one, {all} for {PEERS} at once");
}

/// One who takes a long answer little by little keeps the others from theirs for a time only.
#[test]
fn a_slow_reader_keeps_nobody_from_their_turn() {
    if is_not_root() {
        return;
    }
    if banger_harness::find_program("mke2fs").is_none() {
        return banger_harness::skip("mke2fs", "reads from an image");
    }
    enter_own_world();
    let helper = RunningHelper::start();
    let tree = tempfile::tempdir().unwrap();
    std::fs::write(tree.path().join("long"), vec![b'x'; 12 << 20]).unwrap();
    let image = helper.directories.state.join("image");
    std::fs::File::create(&image).unwrap().set_len(32 << 20).unwrap();
    let mut make = Command::new("/usr/sbin/mke2fs");
    make.args(["-q", "-F", "-t", "ext4", "-d"]).args([tree.path(), &image]);
    assert!(make.status().unwrap().success());
    std::os::unix::fs::chown(&image, Some(OWNER), Some(OWNER)).unwrap();
    let params = json!({"image_path": image, "guest_path": "/long"});
    let mut slow = helper.connect();
    let line = format!("{}\n", request(Method::ReadExt4File, &params));
    slow.send(line.as_bytes()).unwrap();
    let mut stream = slow.stream.get_ref().try_clone().unwrap();
    let mut piece = [0; 64 << 10];
    // It has its answer's beginning, and so the turn.
    stream.read_exact(&mut piece).unwrap();
    std::thread::scope(|scope| {
        let slowly = scope.spawn(move || {
            let mut taken = 0;
            while let Ok(1..) = stream.read(&mut piece) {
                taken += piece.len();
                std::thread::sleep(Duration::from_millis(250));
            }
            taken
        });
        let answer = helper.connect().call(Method::ReadExt4File, &params);
        assert!(answer.is_ok(), "{:?}", answer.map(drop));
        assert!(slowly.join().unwrap() < 12 << 20, "it was given all the time that it wished");
    });
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
    let before = Snapshot::take(&helper.directories);
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
    assert_eq!(before, Snapshot::take(&helper.directories));
}

#[test]
fn words_of_a_peer_do_not_fill_the_log() {
    if is_not_root() {
        return;
    }
    enter_own_world();
    let helper = RunningHelper::start();
    let key = "x".repeat(60_000);
    let method = "priv.delete_tap";
    let line =
        format!(r#"{{"version":1,"method":"{method}","params":{{"{key}":1}},"op_id":"a"}}"#) + "\n";
    let log = helper.directories.log();
    let before = log.metadata().unwrap().len();
    let mut peer = helper.connect();
    for _ in 0..100 {
        peer.stream.get_mut().write_all(line.as_bytes()).unwrap();
        let mut answer = String::new();
        peer.stream.read_line(&mut answer).unwrap();
        assert!(answer.contains("bad_params"), "{answer:.200}");
    }
    let grown = log.metadata().unwrap().len() - before;
    assert!((100 * 64..100 * 2048).contains(&grown), "{grown} bytes of 100 lines");
    // And it is put aside before it is long, as the log of direct mode, which nobody else shortens.
    std::fs::File::options().append(true).open(&log).unwrap().set_len(17 << 20).unwrap();
    let ask = || helper.call(Method::ProcessRunning, &json!({"api_sock": "/x", "pid": 2}));
    ask().unwrap_err();
    assert!(log.metadata().unwrap().len() < 1 << 20);
    ask().unwrap_err();
    assert_eq!(helper.log().matches("process_running").count(), 2);
    let aside = PathBuf::from(format!("{}.1", log.display()));
    let said = std::fs::read_to_string(&aside).unwrap();
    assert!(said.len() == 17 << 20 && said.matches(method).count() == 100);
    assert_eq!(log.metadata().unwrap().mode() & 0o777, 0o600);
}
