//! The daemon as a process: who may run it, where, how it ends.

use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::process::Command;

use crate::support::{DROPPED_UID, Place, is_root};
use rustix::process::Signal;

#[test]
fn root_is_refused_before_anything_is_touched() {
    if !is_root() {
        println!("SKIP: root: only root can start the daemon as root");
        return;
    }
    let base = tempfile::tempdir().unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_bangerd"))
        .args(["--direct", "--state-dir"])
        .arg(base.path().join("s"))
        .arg("--cache-dir")
        .arg(base.path().join("c"))
        .arg("--runtime-dir")
        .arg(base.path().join("r"))
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    let error: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(error["code"], "unauthorized");
    assert_eq!(error["message"], "bangerd never runs as root");
    assert_eq!(std::fs::read_dir(base.path()).unwrap().count(), 0);
}

#[test]
fn it_says_who_and_where_it_is_and_is_small_when_idle() {
    let place = Place::new();
    let daemon = place.start();
    let ping = place.get("/v1/ping");
    assert_eq!(ping["pid"], daemon.pid());
    assert_eq!(ping["build_id"], "test");
    assert_eq!(ping["state_dir"], place.path("state").to_str().unwrap());
    let uid = if is_root() { DROPPED_UID } else { rustix::process::geteuid().as_raw() };
    assert_eq!(ping["uid"], uid);

    let status = std::fs::read_to_string(format!("/proc/{}/status", daemon.pid())).unwrap();
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        line.trim_start_matches(':').split_whitespace().next().unwrap().to_owned()
    };
    assert_eq!(field("NoNewPrivs"), "1");
    assert_eq!(field("Umask"), "0077");
    let resident: u64 = field("VmRSS").parse().unwrap();
    assert!(resident <= 30 << 10, "{resident} KiB");
    for path in ["state", "cache", "run"] {
        assert_eq!(place.path(path).metadata().unwrap().mode() & 0o7777, 0o700);
    }
    assert_eq!(place.socket().metadata().unwrap().mode() & 0o777, 0o600);
}

#[test]
fn a_socket_that_is_passed_to_it_is_refused() {
    let place = Place::new();
    let tcp = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let unix = std::os::unix::net::UnixListener::bind(place.path("passed")).unwrap();
    for listener in [OwnedFd::from(tcp), OwnedFd::from(unix)] {
        let command = place.command().with_listener(&place, listener);
        let error = command.start().err().expect("it serves a stranger's socket");
        assert!(error["message"].as_str().unwrap().contains("LISTEN_FDS"), "{error}");
        assert!(!place.socket().exists());
    }
    // The variables of another process, which a parent may have left, are none of its business.
    let daemon = place.command().variable("LISTEN_PID", "1").variable("LISTEN_FDS", "1").start();
    assert_eq!(place.get("/v1/ping")["pid"], daemon.unwrap().pid());
}

#[test]
fn a_second_daemon_is_refused_and_the_first_goes_on() {
    let place = Place::new();
    let first = place.start();
    let error = place.command().start().err().expect("there are two daemons");
    assert_eq!(error["code"], "in_use");
    assert!(error["message"].as_str().unwrap().contains(&first.pid().to_string()), "{error}");
    place.get("/v1/ping");
}

#[test]
fn what_a_killed_daemon_left_is_no_obstacle() {
    let place = Place::new();
    place.start().kill();
    assert!(place.socket().exists());
    let _daemon = place.start();
    place.get("/v1/ping");
}

#[test]
fn sigterm_ends_it_in_order_and_sighup_does_not() {
    let place = Place::new();
    let daemon = place.start();
    daemon.signal(Signal::HUP);
    place.get("/v1/ping");
    daemon.signal(Signal::TERM);
    assert_eq!(daemon.ended().code(), Some(0));
    assert!(!place.socket().exists());
    let _daemon = place.start();
}

#[test]
fn a_client_can_end_it_while_another_waits() {
    let place = Place::new();
    let daemon = place.start();
    // A connection that never says anything must not hold the end up for long.
    let _silent = place.connect();
    assert_eq!(place.request("POST", "/v1/shutdown", b"").status, 200);
    assert_eq!(daemon.ended().code(), Some(0));
}

#[test]
fn an_idle_daemon_ends_by_itself() {
    let place = Place::new();
    let daemon = place.command().arg("--idle-timeout").arg("1").start().unwrap();
    assert_eq!(daemon.ended().code(), Some(0));
    assert!(!place.socket().exists());
}

#[test]
fn directories_of_strangers_and_links_are_refused() {
    let place = Place::new();
    std::fs::remove_dir(place.path("run")).unwrap();
    std::os::unix::fs::symlink(place.path("cache"), place.path("run")).unwrap();
    let error = place.command().start().err().expect("a link was taken");
    assert!(error["message"].as_str().unwrap().ends_with("is not a real directory"), "{error}");
    std::fs::remove_file(place.path("run")).unwrap();

    if !is_root() {
        println!("SKIP: root: only root can give a directory away");
        return;
    }
    std::fs::create_dir(place.path("run")).unwrap();
    std::fs::set_permissions(place.path("run"), PermissionsExt::from_mode(0o777)).unwrap();
    let error = place.command().start().err().expect("root's directory was taken");
    assert!(error["message"].as_str().unwrap().contains("belongs to uid 0"), "{error}");
}

#[test]
fn a_runtime_directory_too_long_for_sockets_is_refused() {
    let place = Place::new();
    let long = place.path(&"x".repeat(100));
    std::fs::rename(place.path("run"), &long).unwrap();
    let error = place.command_in(&long).start().err().expect("the path was taken");
    assert_eq!(error["code"], "bad_params");
    assert!(error["hint"].as_str().unwrap().contains("BANGER_RUNTIME_DIR"), "{error}");
}

#[test]
fn a_damaged_database_is_set_aside_and_said_loudly() {
    let place = Place::new();
    let daemon = place.start();
    daemon.signal(Signal::TERM);
    daemon.ended();
    let database = place.path("state/banger.db");
    std::fs::write(&database, b"this is no database, whatever it was").unwrap();
    let _daemon = place.start();
    assert_eq!(place.get("/v1/vms"), serde_json::json!([]));
    let doctor = place.get("/v1/doctor");
    let warned = doctor["checks"].as_array().unwrap().iter().any(|check| {
        check["name"] == "store"
            && check["status"] == "WARN"
            && check["detail"].as_str().unwrap().contains("banger.db.corrupt-")
    });
    assert!(warned, "{doctor}");
}

#[test]
fn a_database_of_a_later_build_is_refused_and_left_alone() {
    let place = Place::new();
    let daemon = place.start();
    daemon.signal(Signal::TERM);
    assert_eq!(daemon.ended().code(), Some(0));
    assert_eq!(place.check_migrations(), 0);
    let database = place.path("state/banger.db");
    let mut bytes = std::fs::read(&database).unwrap();
    // The header's user_version (sqlite.org/fileformat.html, 1.3).
    bytes[60..64].copy_from_slice(&99_u32.to_be_bytes());
    std::fs::write(&database, &bytes).unwrap();
    assert_eq!(place.check_migrations(), 2);
    let error = place.command().start().err().expect("a later database was taken");
    assert!(error["message"].as_str().unwrap().contains("99"), "{error}");
    assert!(error["hint"].as_str().unwrap().contains("BANGER_STATE_DIR"), "{error}");
    assert_eq!(std::fs::read(&database).unwrap(), bytes);
}

#[test]
fn the_log_has_one_json_line_for_each_request() {
    let place = Place::new();
    let daemon = place.start();
    let op_id = "op-00112233445566ff";
    place.request_with("GET", "/v1/vms/none", &[("banger-op-id", op_id)], b"");
    daemon.signal(Signal::TERM);
    daemon.ended();
    let log = std::fs::read_to_string(place.path("state/bangerd.log")).unwrap();
    let lines: Vec<serde_json::Value> =
        log.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let of_request: Vec<_> = lines.iter().filter(|line| line["op_id"] == op_id).collect();
    let [line] = of_request.as_slice() else { panic!("{log}") };
    assert_eq!(line["method"], "GET");
    assert_eq!(line["path"], "/v1/vms/none");
    assert_eq!(line["status"], 404);
    assert_eq!(line["code"], "not_found");
    assert_eq!(line["peer_pid"], std::process::id());
    assert!(line["duration_us"].is_u64());
}
