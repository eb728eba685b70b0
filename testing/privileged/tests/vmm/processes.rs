//! Whose processes may be signalled.

use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use banger_gates::Signal;
use banger_gates::request::Running;
use banger_helper_api::ErrorCode;
use banger_host::HostError;
use banger_privileged_tests::OWNER;

use banger_privileged_tests::vmm::{Idle, Scene, idle_program, scene, set_mode, wait_until_gone};

fn refused(scene: &Scene, pid: i32, rule: &str) {
    let pid = scene.pid(pid);
    let signals =
        Signal::ALL.iter().map(|(_, signal)| scene.host().signal_process(&(pid, *signal)));
    for outcome in signals.chain(std::iter::once_with(|| scene.host().kill_process(&pid))) {
        let error = outcome.unwrap_err();
        let HostError::Refused(refusal) = &error else { panic!("{rule}: {error:?}") };
        assert_eq!(refusal.code, ErrorCode::InvalidPid);
        assert!(error.to_string().contains(rule), "{error} is not {rule}");
    }
}

/// A program that does nothing, under some name.
pub(crate) fn program(scene: &Scene, name: &str) -> PathBuf {
    let folder = scene.fixture.state.parent().unwrap().join("programs");
    fs::create_dir_all(&folder).unwrap();
    set_mode(&folder, 0o755);
    let path = folder.join(name);
    fs::write(&path, idle_program()).unwrap();
    set_mode(&path, 0o755);
    path
}

#[test]
fn only_the_owners_firecrackers_are_signalled() {
    let Some(scene) = scene() else { return };
    let firecracker = program(&scene, "firecracker");
    let other = program(&scene, "another");
    let socket = scene.fixture.runtime.join("x.sock");
    let socket = socket.to_str().unwrap();
    let forms: [&[&str]; 3] =
        [&["--api-sock", socket], &[&format!("--api-sock={socket}")], &["-a", socket]];
    for words in forms {
        let mut allowed = Idle::start(&firecracker, words, OWNER);
        // Its name is read from what it executes, so wait until it does.
        banger_harness::wait_for("exec", std::time::Duration::from_secs(5), || {
            scene.host().signal_process(&(scene.pid(allowed.pid()), Signal::Term)).ok()
        });
        assert!(!allowed.0.wait().unwrap().success());
        for (program, words, uid, rule) in [
            (&firecracker, words, OWNER + 1, "another user"),
            (&firecracker, words, 0, "another user"),
            (&other, words, OWNER, "not a Firecracker"),
            (&firecracker, &[][..], OWNER, "not a Firecracker"),
            (&firecracker, &["--api-sock", "/tmp/x.sock"][..], OWNER, "not a Firecracker"),
            (&firecracker, &["--api-sock"][..], OWNER, "not a Firecracker"),
            (&firecracker, &["--id", "none"][..], OWNER, "not a Firecracker"),
            (
                &firecracker,
                &["-a", &format!("{socket}/../../../x")][..],
                OWNER,
                "not a Firecracker",
            ),
            (
                &firecracker,
                &["-a", &format!("{}-other/x", scene.fixture.runtime.display())][..],
                OWNER,
                "not a Firecracker",
            ),
        ] {
            let mut process = Idle::start(program, words, uid);
            refused(&scene, process.pid(), rule);
            assert!(process.is_running(), "{rule}");
        }
    }
    // The jail's own copy, said to be of another jail.
    let pid = scene.launch(scene.params("one")).unwrap();
    let mut foreign = Idle::start(&firecracker, &["--id", "one"], OWNER);
    refused(&scene, foreign.pid(), "not a Firecracker");
    assert!(foreign.is_running());
    // Init, and this test's parent, are others' processes.
    let parent = i32::try_from(std::os::unix::process::parent_id()).unwrap();
    refused(&scene, parent, "another user");
    scene.end("one", pid);
    refused(&scene, pid, "no such process");
    drop(foreign);
    scene.assert_clean();
}

/// Firecracker's "kill by pid", with every signal that may be sent.
#[test]
fn every_signal_of_the_list_arrives() {
    let Some(scene) = scene() else { return };
    let firecracker = program(&scene, "firecracker");
    let socket = scene.fixture.runtime.join("x.sock");
    for (name, signal) in Signal::ALL {
        let mut process = Idle::start(&firecracker, &["-a", socket.to_str().unwrap()], OWNER);
        banger_harness::wait_for("exec", std::time::Duration::from_secs(5), || {
            scene.host().signal_process(&(scene.pid(process.pid()), signal)).ok()
        });
        let status = process.0.wait().unwrap();
        let number = std::os::unix::process::ExitStatusExt::signal(&status);
        let words = Command::new("/bin/kill").args(["-l", name]).output().unwrap().stdout;
        let expected = String::from_utf8(words).unwrap().trim().parse().ok();
        assert_eq!(number, expected, "{name}");
    }
}

#[test]
fn a_zombie_has_ended() {
    let Some(scene) = scene() else { return };
    let firecracker = program(&scene, "firecracker");
    let socket = scene.fixture.runtime.join("x.sock");
    let mut command = Command::new(&firecracker);
    command.args([Path::new("-a"), &socket]).uid(OWNER).gid(OWNER);
    let mut child = command.spawn().unwrap();
    let pid = i32::try_from(child.id()).unwrap();
    child.kill().unwrap();
    let state = || {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
        stat.contains(") Z ").then_some(())
    };
    banger_harness::wait_for("a zombie", std::time::Duration::from_secs(5), state);
    refused(&scene, pid, "");
    child.wait().unwrap();
}

/// Gives the next process a pid that was another's: `ns_last_pid` of proc_sys_kernel(5).
pub(crate) fn start_with_pid(pid: i32, program: &Path, words: &[&str]) -> Idle {
    let last = "/proc/sys/kernel/ns_last_pid";
    let before = fs::read_to_string(last).unwrap();
    let found = (0..10_000).find_map(|_| {
        fs::write(last, (pid - 1).to_string()).unwrap();
        let process = Idle::start(program, words, OWNER);
        (process.pid() == pid).then_some(process)
    });
    // Others go on where they were.
    fs::write(last, before.trim()).unwrap();
    found.unwrap_or_else(|| panic!("pid {pid} could not be had again"))
}

#[test]
fn a_pid_that_is_anothers_now_is_not_signalled() {
    let Some(scene) = scene() else { return };
    let other = program(&scene, "another");
    let pid = scene.launch(scene.params("one")).unwrap();
    let at = scene.runtime_path("fc-one.sock");
    scene.host().kill_process(&scene.pid(pid)).unwrap();
    wait_until_gone(pid);
    let mut process = start_with_pid(pid, &other, &[]);
    refused(&scene, pid, "not a Firecracker");
    let asked = Running { pid: scene.pid(pid), api_socket: at.clone() };
    assert!(!scene.host().process_running(&asked).unwrap());
    scene.host().find_firecracker_pid(&at).unwrap_err();
    // It is no reason to keep the jail, and the clean-up does not end it.
    scene.clean_up("one").unwrap();
    assert!(process.is_running());
    drop(process);
    scene.assert_clean();
}

#[test]
fn sockets_are_asked_about_below_the_runtime_directory_only() {
    let Some(scene) = scene() else { return };
    let runtime = &scene.fixture.runtime;
    std::os::unix::fs::symlink(runtime, runtime.join("middle")).unwrap();
    let pid = scene.launch(scene.params("one")).unwrap();
    let before = scene.everything();
    for name in ["middle/fc-one.sock", "nowhere/fc-one.sock"] {
        let at = scene.runtime_path(name);
        let error = scene.host().find_firecracker_pid(&at).unwrap_err();
        assert!(matches!(error, HostError::Refused(_)), "{error:?}");
        let asked = Running { pid: scene.pid(pid), api_socket: at };
        assert!(matches!(scene.host().process_running(&asked), Err(HostError::Refused(_))));
    }
    let none = scene.runtime_path("none.sock");
    let error = scene.host().find_firecracker_pid(&none).unwrap_err();
    assert!(matches!(error, HostError::Failed { .. }), "{error:?}");
    assert_eq!(scene.everything(), before);
    fs::remove_file(runtime.join("middle")).unwrap();
    scene.end("one", pid);
    scene.assert_clean();
}

/// The kernel tells a file without a name by a word behind its last one, and anybody can call a file
/// so.
#[test]
fn a_firecracker_that_was_replaced_is_one_and_a_file_that_is_called_so_is_none() {
    let Some(scene) = scene() else { return };
    let socket = scene.fixture.runtime.join("x.sock");
    let words = ["-a", socket.to_str().unwrap()];
    // Of the words that it was started with, until then they are this test's.
    let executes = |idle: &Idle| {
        let words = || fs::read(format!("/proc/{}/cmdline", idle.pid())).unwrap_or_default();
        let runs = || words().windows(4).any(|part| part == b"\0-a\0").then_some(());
        banger_harness::wait_for("exec", std::time::Duration::from_secs(5), runs);
    };
    for is_removed in [false, true] {
        let path = program(&scene, "firecracker (deleted)");
        let mut called_so = Idle::start(&path, &words, OWNER);
        executes(&called_so);
        if is_removed {
            fs::remove_file(&path).unwrap();
        }
        refused(&scene, called_so.pid(), "not a Firecracker");
        assert!(called_so.is_running());
    }
    let path = program(&scene, "firecracker");
    let mut replaced = Idle::start(&path, &words, OWNER);
    executes(&replaced);
    fs::remove_file(&path).unwrap();
    program(&scene, "firecracker");
    scene.host().kill_process(&scene.pid(replaced.pid())).unwrap();
    assert!(!replaced.0.wait().unwrap().success());
}

/// A record names a process by its pid, its start and the file that it executes.
#[test]
fn a_record_of_another_file_is_no_evidence() {
    use std::os::unix::fs::MetadataExt;
    let Some(scene) = scene() else { return };
    let pid = scene.launch(scene.params("one")).unwrap();
    let place = scene.fixture.own.join("records/launch.one.json");
    let record: serde_json::Value = serde_json::from_slice(&fs::read(&place).unwrap()).unwrap();
    let copy = scene.jail("one").join("root/firecracker").metadata().unwrap();
    assert_eq!(record["process"]["pid"], pid);
    assert_eq!(record["process"]["file"], serde_json::json!([copy.dev(), copy.ino()]));
    // The same of a process that is none but by its record.
    let path = program(&scene, "another");
    let mut other = Idle::start(&path, &[], OWNER);
    refused(&scene, other.pid(), "not a Firecracker");
    let stat = fs::read_to_string(format!("/proc/{}/stat", other.pid())).unwrap();
    let start = stat.rsplit_once(')').unwrap().1.split_whitespace().nth(19).unwrap();
    let start: u64 = start.parse().unwrap();
    let file = path.metadata().unwrap();
    let number = other.pid();
    let write = |start: u64, file: [u64; 2]| {
        let mut record = record.clone();
        record["process"] = serde_json::json!({"pid": number, "start_time": start, "file": file});
        fs::write(scene.fixture.own.join("records/launch.two.json"), record.to_string()).unwrap();
    };
    for (start, file) in
        [(start, [file.dev(), file.ino() + 1]), (start + 1, [file.dev(), file.ino()])]
    {
        write(start, file);
        refused(&scene, other.pid(), "not a Firecracker");
    }
    write(start, [file.dev(), file.ino()]);
    scene.host().kill_process(&scene.pid(other.pid())).unwrap();
    assert!(!other.0.wait().unwrap().success());
    fs::remove_file(scene.fixture.own.join("records/launch.two.json")).unwrap();
    scene.end("one", pid);
    scene.assert_clean();
}
