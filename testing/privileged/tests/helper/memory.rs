//! What lines of many small things cost: no more than lines of few, and nothing once they are
//! answered.

use banger_harness::Process;
use banger_helper_api::{ErrorCode, LONGEST_FRAME, LONGEST_WRITE_FRAME, Method};
use banger_privileged_tests::running::{Peer, RunningHelper, outcome, request};
use serde_json::json;

use crate::{enter_own_world, is_not_root};

const MIB: u64 = 1 << 20;
const FILE: &str = r#"{"guest_path":"/a","data":""}"#;

/// A line that is as long as it may be with as many of `item` in a list as there can be.
fn full_line(params: &str, item: &str, longest: usize, method: Method) -> String {
    let frame = |items: &str| {
        let params = params.replace("ITEMS", items);
        let method = method.name();
        format!(r#"{{"version":1,"method":"{method}","op_id":"op-1","params":{params}}}"#)
    };
    let room = longest - frame("").len();
    let items = vec![item; (room + 1) / (item.len() + 1)].join(",");
    let line = frame(&items);
    assert!(line.len() <= longest && line.len() > longest - item.len() - 1);
    line
}

fn files(item: &str, longest: usize) -> String {
    let params = r#"{"image_path":"/dev/mapper/fc-rootfs-a","files":[ITEMS]}"#;
    full_line(params, item, longest, Method::WriteExt4Files)
}

fn process(helper: &RunningHelper) -> Process {
    Process { pid: helper.pid(), command: String::new() }
}

/// Asks, and has it refused for what is said.
fn assert_refused(peer: &mut Peer, line: &str, why: &str) {
    let (code, message) = outcome(&peer.ask(line).expect("an answer")).unwrap_err();
    assert_eq!(code, ErrorCode::BadParams, "{message:.200}");
    assert!(message.contains(why), "{why}: {message:.200}");
}

#[test]
fn many_small_files_in_a_line_take_no_more_memory_than_a_long_one() {
    if is_not_root() {
        return;
    }
    enter_own_world();
    let helper = RunningHelper::start();
    let process = process(&helper);
    let mut peer = helper.connect();
    // One file as long as a line may be.
    let file = json!({"guest_path": "/x", "data": "A".repeat(LONGEST_WRITE_FRAME - 1024)});
    let params = json!({"image_path": "/etc/passwd", "files": [file]});
    let long = request(Method::WriteExt4Files, &params);
    assert_refused(&mut peer, &long, "image_path");
    let (peak, kept) = (process.peak_resident().unwrap(), process.resident().unwrap());
    for item in [FILE, r#"["/a",""]"#, "[]", "[[]]", "{}", "0"] {
        let line = files(item, LONGEST_WRITE_FRAME);
        let why = if item == "0" { "" } else { "too many" };
        assert_refused(&mut peer, &line, why);
        let (most, left) = (process.peak_resident().unwrap(), process.resident().unwrap());
        assert!(most < peak + MIB, "{item}: {most} bytes, {peak} for one long file");
        assert!(left < kept + MIB, "{item}: {left} bytes left, {kept} before");
    }
    // What may be in a line is forgotten too: as many files as there can be, none of them large.
    let item = json!({"guest_path": "/a/file", "data": "A".repeat(15 << 10)});
    let params = json!({"image_path": "/etc/passwd", "files": vec![item; 1024]});
    let line = request(Method::WriteExt4Files, &params);
    for _ in 0..4 {
        assert_refused(&mut peer, &line, "image_path");
    }
    let left = process.resident().unwrap();
    assert!(left < kept + MIB, "{left} bytes left, {kept} before");
}

#[test]
fn many_small_things_on_many_connections_take_little_memory() {
    if is_not_root() {
        return;
    }
    enter_own_world();
    let helper = RunningHelper::start();
    let process = process(&helper);
    let launch = r#"{"binary_path":"/a","vm_id":"a","socket_path":"/a","log_path":"/a",
        "kernel_image_path":"/a","kernel_args":"","drives":[ITEMS],"vcpu_count":1,"memory_mib":1}"#;
    let launch = launch.replace('\n', "");
    let drive = r#"{"id":"a","path":"/a"}"#;
    let lines = [
        files(FILE, LONGEST_FRAME),
        full_line(&launch, drive, LONGEST_FRAME, Method::LaunchFirecracker),
        files("[]", LONGEST_FRAME),
    ];
    let mut peers: Vec<Peer> = (0..32).map(|_| helper.connect()).collect();
    for peer in &mut peers {
        // Their threads run, and each has had an answer.
        assert_refused(peer, &request(Method::FsckSnapshot, &json!({"dm_dev": "/a"})), "dm_dev");
    }
    let before = process.peak_resident().unwrap();
    for line in &lines {
        std::thread::scope(|scope| {
            for peer in &mut peers {
                scope.spawn(move || {
                    for _ in 0..4 {
                        assert_refused(peer, line, "too many");
                    }
                });
            }
        });
    }
    // Each line is held twice, as it came and as its parameters.
    let (most, left) = (process.peak_resident().unwrap(), process.resident().unwrap());
    assert!(most < before + 10 * MIB, "{most} bytes, {before} before");
    assert!(left < before + 6 * MIB, "{left} bytes left, {before} before");
}
