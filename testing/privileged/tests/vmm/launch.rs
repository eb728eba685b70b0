//! Machines that run.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::UnixStream;
use std::path::Path;

use banger_gates::request::Running;
use banger_privileged_sys::as_file_user;
use banger_privileged_tests::OWNER;
use serde_json::json;

use banger_privileged_tests::vmm::{scene, wait_until_gone};

/// A field of `/proc/PID/status`, its words joined by one space.
fn status(pid: i32, field: &str) -> String {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(field)).unwrap();
    line.trim_start_matches(':').split_ascii_whitespace().collect::<Vec<_>>().join(" ")
}

#[test]
fn a_machine_runs_in_its_jail_until_it_is_killed() {
    let Some(scene) = scene() else { return };
    let socket = scene.fixture.runtime.join("fc-one.sock");
    let at = scene.runtime_path("fc-one.sock");
    let disk = scene.write("disk", &[0; 4096]);
    let mut params = scene.params("one");
    params["drives"] = json!([{ "id": "data", "path": disk }]);
    params["vsock_path"] = json!(scene.fixture.runtime.join("vsock-one.sock"));
    params["vsock_cid"] = json!(3);
    params["entropy"] = json!(true);
    params["balloon"] = json!({ "amount_mib": 1, "deflate_on_oom": true });
    for round in 0..2 {
        let pid = scene.launch(params.clone()).unwrap();
        scene.wait_for_words("one", "hello from the jail");
        let uids = [OWNER; 4].map(|uid| uid.to_string()).join(" ");
        assert_eq!(status(pid, "Uid"), uids);
        assert_eq!(status(pid, "Gid"), uids);
        assert_eq!(status(pid, "NoNewPrivs"), "1");
        assert_eq!(status(pid, "CapEff"), "0000000000000000");
        assert_eq!(status(pid, "CapPrm"), "0000000000000000");
        assert_eq!(status(pid, "Seccomp"), "2");
        assert_eq!(status(pid, "NStgid"), format!("{pid} 1"), "a pid namespace of its own");
        let environment = as_file_user(OWNER, OWNER, || fs::read(format!("/proc/{pid}/environ")));
        assert_eq!(environment.unwrap(), b"");
        let limits = fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
        let limits: Vec<Vec<&str>> =
            limits.lines().map(|line| line.split("  ").map(str::trim).collect()).collect();
        let limit = |name| limits.iter().find(|line| line[0] == name).unwrap().join(" ");
        assert!(limit("Max open files").contains("2048"), "the jailer's default");
        assert!(limit("Max file size").contains("unlimited"), "the jailer's default");

        assert_eq!(scene.host().find_firecracker_pid(&at).unwrap(), pid.unsigned_abs());
        let asked = Running { pid: scene.pid(pid), api_socket: at.clone() };
        assert!(scene.host().process_running(&asked).unwrap());
        let other = Running { pid: scene.pid(pid + 1), api_socket: at.clone() };
        assert!(!scene.host().process_running(&other).unwrap());
        let other = Running { pid: scene.pid(pid), api_socket: scene.runtime_path("x.sock") };
        assert!(!scene.host().process_running(&other).unwrap());

        // The owner reaches its sockets, another user does not.
        as_file_user(OWNER, OWNER, || UnixStream::connect(&socket)).unwrap();
        as_file_user(OWNER, OWNER, || {
            UnixStream::connect(scene.fixture.runtime.join("vsock-one.sock"))
        })
        .unwrap();
        let stranger = OWNER + 1;
        as_file_user(stranger, stranger, || UnixStream::connect(&socket)).unwrap_err();
        let error = scene.launch(scene.params("one")).unwrap_err().to_string();
        assert!(error.contains("a machine of this id runs"), "{error}");
        let error = scene.clean_up("one").unwrap_err().to_string();
        assert!(error.contains("its Firecracker runs"), "{error}");

        // Another machine on the same disk is refused, while this one has it and until it is
        // cleaned up.
        let mut second = scene.params("two");
        second["drives"] = params["drives"].clone();
        let error = scene.launch(second).unwrap_err().to_string();
        assert!(error.contains("more than one name"), "{error}");

        scene.host().kill_process(&scene.pid(pid)).unwrap();
        wait_until_gone(pid);
        assert!(!scene.host().process_running(&asked).unwrap());
        scene.host().find_firecracker_pid(&at).unwrap_err();
        scene.clean_up("one").unwrap();
        scene.clean_up("one").unwrap();
        assert!(!socket.is_symlink(), "round {round}");
        assert_eq!(disk.metadata().unwrap().nlink(), 1);
        scene.assert_clean();
        // It was appended to, so its owner can shorten it while a machine runs.
        assert_eq!(scene.log("one").matches("Running Firecracker").count(), 1);
        fs::write(scene.fixture.state.join("one.log"), b"").unwrap();
    }
    let log = scene.fixture.state.join("one.log").metadata().unwrap();
    assert_eq!((log.uid(), log.mode() & 0o777), (OWNER, 0o600));
}

/// Firecracker's "default chroot hierarchy".
#[test]
fn the_jail_has_the_hierarchy_and_modes_that_it_must() {
    let Some(scene) = scene() else { return };
    let pid = scene.launch(scene.params("one")).unwrap();
    let root = scene.jail("one").join("root");
    let check = |path: &Path, mode: u32, uid: u32| {
        let metadata = path.symlink_metadata().unwrap();
        assert_eq!((metadata.mode() & 0o7777, metadata.uid()), (mode, uid), "{path:?}");
        metadata.file_type()
    };
    check(&scene.fixture.jails, 0o711, 0);
    // The owner lists the machines that have a jail, and others do not.
    let folder = root.ancestors().nth(2).unwrap();
    check(folder, 0o750, 0);
    assert_eq!(folder.metadata().unwrap().gid(), OWNER);
    let lists = |uid, gid| as_file_user(uid, gid, || fs::read_dir(folder).is_ok());
    assert!(lists(OWNER, OWNER) && !lists(OWNER + 1, OWNER + 1));
    check(root.parent().unwrap(), 0o711, 0);
    // Root's, so that the VMM's uid takes nothing of root's out of it.
    assert!(check(&root, 0o711, 0).is_dir());
    for directory in ["dev", "dev/net", "run"] {
        assert!(check(&root.join(directory), 0o700, OWNER).is_dir());
    }
    for device in ["dev/kvm", "dev/net/tun", "dev/urandom"] {
        assert!(check(&root.join(device), 0o600, OWNER).is_char_device());
    }
    // Root's up to 1.12, so that the VMM cannot change what it executes.
    assert!(check(&root.join("firecracker"), 0o755, 0).is_file());
    assert!(check(&root.join("firecracker.pid"), 0o600, 0).is_file());
    assert!(check(&root.join("vm.json"), 0o400, OWNER).is_file());
    assert!(check(&root.join("run/firecracker.socket"), 0o700, OWNER).is_socket());
    let kernel = scene.fixture.state.join("kernel").metadata().unwrap();
    assert_eq!(kernel.nlink(), 1, "no link of it");
    let shown = root.join("vmlinux");
    assert_eq!(shown.metadata().unwrap().ino(), kernel.ino(), "the same file");
    let opened = fs::File::options().write(true).open(shown);
    assert_eq!(opened.unwrap_err().kind(), std::io::ErrorKind::ReadOnlyFilesystem);
    scene.end("one", pid);
    scene.assert_clean();
}

#[test]
fn limits_that_are_asked_for_are_kept() {
    let Some(scene) = scene() else { return };
    let mut params = scene.params("one");
    params["limits"] = json!({ "file_size": 2_097_151, "open_files": 1024 });
    let pid = scene.launch(params).unwrap();
    let limits = fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
    let numbers = |name: &str| {
        let line = limits.lines().find(|line| line.starts_with(name)).unwrap();
        let words: Vec<String> =
            line[name.len()..].split_ascii_whitespace().take(2).map(str::to_owned).collect();
        words.join(" ")
    };
    assert_eq!(numbers("Max file size"), "2097151 2097151");
    assert_eq!(numbers("Max open files"), "1024 1024");
    scene.end("one", pid);
    scene.assert_clean();
}
