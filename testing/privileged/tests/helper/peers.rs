//! Who may ask.

use std::net::{TcpListener, UdpSocket};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::process::{Command, Stdio};

use banger_helper_api::{ErrorCode, Method};
use banger_privileged_tests::running::{Peer, RunningHelper, arguments, outcome, program, request};
use banger_privileged_tests::{Directories, OWNER};
use rustix::process::{Gid, Uid};
use serde_json::json;

use crate::{enter_own_world, is_not_root};

/// Connects as another user, in a thread that becomes it.
fn ask_as(uid: u32, helper: &RunningHelper) -> Option<serde_json::Value> {
    let socket = helper.socket();
    let api = helper.directories.runtime.join("a.sock");
    let line = request(Method::ProcessRunning, &json!({"pid": 4_194_304, "api_sock": api}));
    std::thread::spawn(move || {
        let (user, group) = (Uid::from_raw(uid), Gid::from_raw(uid));
        rustix::thread::set_thread_groups(&[]).unwrap();
        rustix::thread::set_thread_res_gid(group, group, group).unwrap();
        rustix::thread::set_thread_res_uid(user, user, user).unwrap();
        UnixStream::connect(&socket).ok()?;
        Peer::connect(&socket).ask(&line)
    })
    .join()
    .unwrap()
}

#[test]
fn the_kernel_says_who_asks_also_where_the_socket_is_open_to_all() {
    if is_not_root() {
        return;
    }
    enter_own_world();
    let helper = RunningHelper::start();
    let metadata = helper.socket().metadata().unwrap();
    assert_eq!((metadata.uid(), metadata.gid(), metadata.mode() & 0o7777), (OWNER, OWNER, 0o600));
    assert_eq!(ask_as(65_534, &helper), None, "the socket's mode");
    std::fs::set_permissions(helper.socket(), PermissionsExt::from_mode(0o666)).unwrap();
    for uid in [65_534, OWNER + 1, 1] {
        let answer = ask_as(uid, &helper).expect("an answer");
        assert_eq!(outcome(&answer).unwrap_err().0, ErrorCode::Unauthorized, "uid {uid}");
    }
    for uid in [OWNER, 0] {
        assert!(outcome(&ask_as(uid, &helper).unwrap()).is_ok(), "uid {uid}");
    }
    assert!(helper.log().contains("\"peer_uid\":65534"));
}

/// Starts a helper that is passed a descriptor, and returns whether it took it.
fn takes(listener: OwnedFd) -> (bool, String) {
    let directories = Directories::new();
    let log = std::fs::File::create(directories.log()).unwrap();
    // Passed sockets begin at 3 and name the process that they are for.
    let script = "exec 3<&0 </dev/null; LISTEN_PID=$$ LISTEN_FDS=1 exec \"$@\"";
    let mut child = Command::new("/bin/sh")
        .args(["-c", script, "sh"])
        .arg(program())
        .args(arguments(&directories))
        .stdin(Stdio::from(listener))
        .stdout(Stdio::piped())
        .stderr(log)
        .spawn()
        .unwrap();
    let mut line = String::new();
    let stdout = child.stdout.take().unwrap();
    std::io::BufRead::read_line(&mut std::io::BufReader::new(stdout), &mut line).unwrap();
    let _ = child.kill();
    let _ = child.wait();
    assert!(!directories.socket().exists(), "it made one of its own");
    (line == "ready\n", std::fs::read_to_string(directories.log()).unwrap())
}

#[test]
fn a_passed_socket_is_a_listening_unix_stream_or_refused() {
    if is_not_root() {
        return;
    }
    enter_own_world();
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    let (connected, _other) = UnixStream::pair().unwrap();
    let loopback = Command::new("/usr/sbin/ip").args(["link", "set", "lo", "up"]).status();
    assert!(loopback.is_ok_and(|status| status.success()));
    for bad in [
        OwnedFd::from(TcpListener::bind("127.0.0.1:0").unwrap()),
        OwnedFd::from(UdpSocket::bind("127.0.0.1:0").unwrap()),
        OwnedFd::from(UnixDatagram::bind(path("datagram")).unwrap()),
        OwnedFd::from(connected),
        OwnedFd::from(std::fs::File::open("/dev/zero").unwrap()),
    ] {
        let (taken, log) = takes(bad);
        assert!(!taken && log.contains("\"level\":\"error\""), "{log}");
    }
    let (taken, log) = takes(UnixListener::bind(path("stream")).unwrap().into());
    assert!(taken, "{log}");
}

#[test]
fn a_second_helper_leaves_the_first_one_its_socket() {
    if is_not_root() {
        return;
    }
    enter_own_world();
    let helper = RunningHelper::start();
    let second = Command::new(program()).args(arguments(&helper.directories)).output().unwrap();
    assert!(!second.status.success() && second.stdout.is_empty());
    assert!(String::from_utf8_lossy(&second.stderr).contains("another bangerd-root"));
    let api = helper.directories.runtime.join("a.sock");
    let running = json!({"pid": 4_194_304, "api_sock": api});
    assert!(helper.call(Method::ProcessRunning, &running).is_ok());
}

#[test]
fn it_refuses_root_for_an_owner_and_directories_that_are_not_its_own() {
    if is_not_root() {
        return;
    }
    enter_own_world();
    let directories = Directories::new();
    let start = |change: &dyn Fn(&mut Vec<String>)| {
        let mut words = arguments(&directories);
        change(&mut words);
        let output = Command::new(program()).args(&words).output().unwrap();
        assert!(!output.status.success() && output.stdout.is_empty(), "{words:?}");
        String::from_utf8(output.stderr).unwrap()
    };
    let set = |at: usize, value: &str| {
        let value = value.to_owned();
        move |words: &mut Vec<String>| words[at].clone_from(&value)
    };
    assert!(start(&set(4, "0")).contains("must not be root"));
    assert!(start(&set(6, "0")).contains("must not be root"));
    let outside = directories.outside.to_str().unwrap();
    assert!(start(&set(8, outside)).contains("belongs to uid 0"));
    let state = directories.state.to_str().unwrap();
    assert!(start(&set(12, &format!("{state}/jails"))).contains("root's alone"));
    assert!(start(&set(2, &format!("{state}/helper.sock"))).contains("root's alone"));
    let link = directories.outside.join("link");
    std::os::unix::fs::symlink(&directories.state, &link).unwrap();
    assert!(start(&set(8, link.to_str().unwrap())).contains("open"));
    assert!(!directories.state.join("jails").exists());
}
