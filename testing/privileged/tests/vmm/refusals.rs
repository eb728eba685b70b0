//! What only the host can know speaks against a launch; each with a neighbour that works.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::{MetadataExt, chown, symlink};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use banger_host::HostError;
use banger_privileged_sys::as_file_user;
use banger_privileged_tests::OWNER;
use rustix::fs::{CWD, FileType, Mode};
use rustix::mount::{MountFlags, mount};
use serde_json::{Value, json};

use banger_privileged_tests::vmm::{Scene, children, elf, scene, set_mode, wait_until_gone};

fn refused(scene: &Scene, params: Value, parameter: &str, rule: &str) {
    let before = scene.everything();
    let error = scene.launch(params).unwrap_err();
    assert!(matches!(error, HostError::Refused(_)), "{parameter}, {rule}: {error:?}");
    let text = error.to_string();
    assert!(text.starts_with(parameter) && text.contains(rule), "{parameter}, {rule}: {text}");
    assert_eq!(scene.everything(), before, "{parameter}, {rule}");
}

fn works(scene: &Scene, params: Value) {
    let id = params["vm_id"].as_str().unwrap().to_owned();
    let pid = scene.launch(params).unwrap();
    scene.end(&id, pid);
}

/// Bad files of every kind below the state directory, and the rule that each breaks.
fn bad_files(scene: &Scene) -> Vec<(PathBuf, &'static str)> {
    let state = &scene.fixture.state;
    let outside = state.parent().unwrap().join("outside");
    fs::write(&outside, b"outside").unwrap();
    chown(&outside, Some(OWNER), Some(OWNER)).unwrap();
    symlink(&outside, state.join("link")).unwrap();
    symlink("itself", state.join("itself")).unwrap();
    symlink(state, state.join("middle")).unwrap();
    fs::create_dir(state.join("directory")).unwrap();
    fs::write(state.join("foreign"), b"root's").unwrap();
    rustix::fs::mknodat(CWD, state.join("fifo"), FileType::Fifo, Mode::RWXU, 0).unwrap();
    let null = rustix::fs::makedev(1, 3);
    let kind = FileType::CharacterDevice;
    rustix::fs::mknodat(CWD, state.join("device"), kind, Mode::RWXU, null).unwrap();
    vec![
        (state.join("missing"), "no such file"),
        (state.join("missing/below"), "no such file"),
        (state.join("link"), "link"),
        (state.join("itself"), "link"),
        (state.join("middle/kernel"), "link"),
        (state.join("directory"), "not a regular file"),
        (state.join("fifo"), "not a regular file"),
        (state.join("device"), "not a regular file"),
        (state.join("foreign"), "another user"),
    ]
}

#[test]
fn files_that_are_not_the_owners_own_are_refused() {
    let Some(scene) = scene() else { return };
    let bad = bad_files(&scene);
    let set = |parameter: &str, path: &Path| {
        let mut params = scene.params("one");
        match parameter {
            "drives.path" => params["drives"] = json!([{ "id": "data", "path": path }]),
            parameter => params[parameter] = json!(path),
        }
        params
    };
    for parameter in ["kernel_image_path", "initrd_path", "drives.path"] {
        for (path, rule) in &bad {
            // A part that is no directory, or nothing, is nothing there.
            refused(&scene, set(parameter, path), parameter, rule);
        }
    }
    let disk = scene.write("disk", &[0; 4096]);
    fs::hard_link(&disk, scene.fixture.state.join("other-name")).unwrap();
    refused(&scene, set("drives.path", &disk), "drives.path", "more than one name");
    let mut shared = set("drives.path", &disk);
    shared["drives"][0]["read_only"] = json!(true);
    works(&scene, shared);
    fs::remove_file(scene.fixture.state.join("other-name")).unwrap();
    works(&scene, set("drives.path", &disk));
    let initrd = scene.write("an-initrd", &[0; 4096]);
    works(&scene, set("initrd_path", &initrd));
    scene.assert_clean();
}

#[test]
fn logs_and_places_for_links_are_the_owners_own() {
    let Some(scene) = scene() else { return };
    let set = |parameter: &str, path: &Path| {
        let mut params = scene.params("one");
        params["vsock_cid"] = json!(3);
        params[parameter] = json!(path);
        params
    };
    let (state, runtime) = (&scene.fixture.state, &scene.fixture.runtime);
    for (path, rule) in bad_files(&scene) {
        // A log need not be there; its directory must.
        match path.strip_prefix(state).unwrap().to_str().unwrap() {
            "missing" | "missing/below" => {}
            _ => refused(&scene, set("log_path", &path), "log_path", rule),
        }
    }
    let log = scene.write("log", b"");
    fs::hard_link(&log, state.join("other-log")).unwrap();
    refused(&scene, set("log_path", &log), "log_path", "more than one name");
    fs::remove_file(state.join("other-log")).unwrap();
    works(&scene, set("log_path", &log));

    fs::write(runtime.join("file"), b"").unwrap();
    fs::create_dir(runtime.join("directory")).unwrap();
    let listener = UnixListener::bind(runtime.join("live")).unwrap();
    symlink(runtime, runtime.join("middle")).unwrap();
    for parameter in ["socket_path", "vsock_path"] {
        let no_link = "neither a link nor a stale socket";
        for (name, rule) in [
            ("file", no_link),
            ("directory", no_link),
            ("live", no_link),
            ("middle/x.sock", "no such directory"),
            ("nowhere/x.sock", "no such directory"),
            ("directory/x.sock", "another user"),
        ] {
            refused(&scene, set(parameter, &runtime.join(name)), parameter, rule);
        }
    }
    drop(listener);
    // A link and a socket that nobody listens at any more are stale, wherever the link leads.
    for parameter in ["socket_path", "vsock_path"] {
        works(&scene, set(parameter, &runtime.join("live")));
        drop(UnixListener::bind(runtime.join("live")).unwrap());
        symlink("/etc/passwd", runtime.join("stale")).unwrap();
        works(&scene, set(parameter, &runtime.join("stale")));
    }
    assert!(Path::new("/etc/passwd").is_file());
    fs::remove_file(runtime.join("middle")).unwrap();
    scene.assert_clean();
}

#[test]
fn of_many_launches_of_one_id_one_wins() {
    let Some(scene) = scene() else { return };
    let grant = scene.grant(scene.params("one"));
    let outcomes: Vec<_> = std::thread::scope(|scope| {
        let runs: Vec<_> =
            (0..8).map(|_| scope.spawn(|| scene.host().launch_firecracker(&grant))).collect();
        runs.into_iter().map(|run| run.join().unwrap()).collect()
    });
    let (won, lost): (Vec<_>, Vec<_>) = outcomes.into_iter().partition(Result::is_ok);
    assert_eq!(won.len(), 1, "{lost:?}");
    for error in lost {
        assert!(matches!(error, Err(HostError::Refused(_))), "{error:?}");
    }
    let pid = i32::try_from(*won[0].as_ref().unwrap()).unwrap();
    assert_eq!(children(), [pid]);
    scene.end("one", pid);
    scene.assert_clean();
}

#[test]
fn what_fails_after_the_start_is_undone_and_says_why() {
    let Some(scene) = scene() else { return };
    scene.write("kernel", b"this is no kernel");
    let error = scene.launch(scene.params("one")).unwrap_err();
    let HostError::Failed { operation: "start", source, .. } = error else { panic!("{error:?}") };
    assert!(source.to_string().contains("Kernel"), "Firecracker's own words: {source}");
    scene.assert_clean();
    // A kernel below where Firecracker has its own tables.
    let mut low = elf(&[0xf4]);
    low[24..32].copy_from_slice(&0x1000_u64.to_le_bytes());
    scene.write("kernel", &low);
    scene.launch(scene.params("one")).unwrap_err();
    scene.assert_clean();
    scene.write_kernel("kernel", b"x");
    let mut params = scene.params("one");
    params["tap_device"] = json!("tap-fc-none");
    let error = scene.launch(params).unwrap_err();
    assert!(matches!(error, HostError::Failed { .. }), "no such tap: {error:?}");
    scene.assert_clean();
    works(&scene, scene.params("one"));
    scene.assert_clean();
}

/// Firecracker's "negative no-file limit": each disk takes some.
#[test]
fn a_machine_that_needs_more_open_files_than_its_limit_does_not_start() {
    let Some(scene) = scene() else { return };
    let drive = |index: usize| {
        let path = scene.write(&format!("disk{index}"), &[0; 4096]);
        json!({ "id": format!("disk{index}"), "path": path })
    };
    let mut params = scene.params("one");
    params["drives"] = (0..15).map(drive).collect();
    params["limits"] = json!({ "open_files": 64 });
    let error = scene.launch(params.clone()).unwrap_err();
    let HostError::Failed { operation: "start", source, .. } = error else { panic!("{error:?}") };
    assert!(source.to_string().contains("os error 24"), "EMFILE: {source}");
    scene.assert_clean();
    params["limits"] = json!({ "open_files": 1024 });
    works(&scene, params);
    scene.assert_clean();
}

/// The jailer has a child by then, which executes Firecracker whatever becomes of the jailer.
#[test]
fn a_jailer_that_dies_late_leaves_no_process() {
    let Some(scene) = scene() else { return };
    for round in 0..20 {
        let mut params = scene.params(&format!("late{round}"));
        params["limits"] = json!({ "file_size": 1 });
        let error = scene.launch(params).unwrap_err();
        assert!(matches!(error, HostError::Failed { operation: "jail", .. }), "{error:?}");
        let left = children();
        assert!(left.is_empty(), "round {round}: {left:?}");
    }
    scene.assert_clean();
}

/// Firecracker's "file size limit": what it writes may not become longer, as a snapshot of its
/// memory would.
#[test]
fn a_machine_that_writes_a_longer_file_than_its_limit_ends() {
    let Some(scene) = scene() else { return };
    let mut params = scene.params("one");
    params["limits"] = json!({ "file_size": 1 });
    let error = scene.launch(params.clone()).unwrap_err();
    // The jailer copies Firecracker, and writes its pid.
    let HostError::Failed { operation: "jail", source, .. } = error else { panic!("{error:?}") };
    assert!(source.to_string().contains("SIGXFSZ"), "{source}");
    scene.assert_clean();
    let ask = |request: &str, body: &Value| {
        let body = body.to_string();
        let mut api = UnixStream::connect(scene.fixture.runtime.join("fc-one.sock")).unwrap();
        let head = format!("{request} HTTP/1.1\r\nHost: x\r\nContent-Length: {}", body.len());
        api.write_all(format!("{head}\r\n\r\n{body}").as_bytes()).unwrap();
        let mut answer = vec![0; 4096];
        // A Firecracker that ends does not answer.
        let read = api.read(&mut answer).unwrap_or_default();
        String::from_utf8_lossy(&answer[..read]).into_owned()
    };
    let snapshot = json!({ "snapshot_path": "/run/state", "mem_file_path": "/run/memory" });
    for (mebibytes, is_enough) in [(64_u64, false), (256, true)] {
        params["limits"] = json!({ "file_size": mebibytes << 20 });
        params["memory_mib"] = json!(128);
        let pid = scene.launch(params.clone()).unwrap();
        let paused = ask("PATCH /vm", &json!({ "state": "Paused" }));
        assert!(paused.starts_with("HTTP/1.1 204"), "{paused}");
        let taken = ask("PUT /snapshot/create", &snapshot);
        assert_eq!(taken.starts_with("HTTP/1.1 204"), is_enough, "{mebibytes} MiB: {taken}");
        if is_enough {
            scene.host().kill_process(&scene.pid(pid)).unwrap();
        }
        wait_until_gone(pid);
        scene.clean_up("one").unwrap();
        scene.assert_clean();
    }
}

/// What is read is shown read-only and never linked, so that a VMM that broke out of its jail cannot
/// change what other machines share. What is written is linked, or shown where it cannot be linked.
#[test]
fn what_is_only_read_cannot_be_changed_from_the_jail() {
    let Some(scene) = scene() else { return };
    let other = scene.fixture.state.join("other");
    fs::create_dir(&other).unwrap();
    for (is_other, links) in [(false, 2), (true, 1)] {
        if is_other {
            mount("tmpfs", &other, "tmpfs", MountFlags::empty(), c"mode=700").unwrap();
        }
        chown(&other, Some(OWNER), Some(OWNER)).unwrap();
        scene.write_kernel("other/kernel", b"shown in the jail\n");
        let initrd = scene.write("other/initrd", &[3; 4096]);
        let writable = scene.write("other/writable", &[1; 4096]);
        let readable = scene.write("other/readable", &[2; 4096]);
        // What is only read may have other names; its image is one of them.
        fs::hard_link(&readable, other.join("image")).unwrap();
        let mut params = scene.params("one");
        params["kernel_image_path"] = json!(other.join("kernel"));
        params["initrd_path"] = json!(initrd);
        params["drives"] = json!([
            { "id": "writable", "path": writable },
            { "id": "readable", "path": readable, "read_only": true },
        ]);
        // Started, cleaned up, and started again.
        for _ in 0..2 {
            let pid = scene.launch(params.clone()).unwrap();
            scene.wait_for_words("one", "shown in the jail");
            let root = scene.jail("one").join("root");
            let metadata = |path: &Path| path.metadata().unwrap();
            let shown = |name: &str| metadata(&root.join(name)).ino();
            assert_eq!(shown("disk-writable"), metadata(&writable).ino(), "the same file");
            assert_eq!(metadata(&writable).nlink(), links);
            let open = |name: &str| fs::File::options().write(true).open(root.join(name));
            open("disk-writable").unwrap();
            for (name, path, links) in [
                ("vmlinux", &other.join("kernel"), 1),
                ("initrd", &initrd, 1),
                ("disk-readable", &readable, 2),
            ] {
                assert_eq!(shown(name), metadata(path).ino(), "{name} is the same file");
                assert_eq!(metadata(path).nlink(), links, "{name} has no name in the jail");
                let error = open(name).unwrap_err();
                assert_eq!(error.kind(), std::io::ErrorKind::ReadOnlyFilesystem, "{name}");
                // The owner's uid is the VMM's.
                let place = root.join(name);
                as_file_user(OWNER, OWNER, || set_mode_of(&place)).unwrap_err();
            }
            scene.end("one", pid);
            scene.assert_clean();
        }
        assert_eq!(fs::read(&writable).unwrap(), [1; 4096]);
        assert_eq!(fs::read(&readable).unwrap(), [2; 4096]);
        fs::remove_file(other.join("image")).unwrap();
    }
}

fn set_mode_of(path: &Path) -> std::io::Result<()> {
    fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o666))
}

/// The jailer walks the jails by name: every part of that name is root's alone.
#[test]
fn jails_that_others_could_swap_are_not_used() {
    let Some(scene) = scene() else { return };
    let jails = &scene.fixture.jails;
    let fails = |what: &str| {
        let before = scene.everything();
        let error = scene.launch(scene.params("one")).unwrap_err();
        assert!(matches!(error, HostError::Failed { operation: "use", .. }), "{what}: {error:?}");
        assert_eq!(scene.everything(), before, "{what}");
    };
    for mode in [0o777, 0o1777, 0o771] {
        set_mode(jails, mode);
        fails("a base that others can write to");
    }
    set_mode(jails, 0o711);
    chown(jails, Some(OWNER), None).unwrap();
    fails("the owner's base");
    chown(jails, Some(0), None).unwrap();
    let parent = jails.parent().unwrap();
    chown(parent, Some(OWNER), None).unwrap();
    fails("a base in the owner's directory");
    chown(parent, Some(0), None).unwrap();
    let moved = parent.join("moved");
    fs::rename(jails, &moved).unwrap();
    symlink(&moved, jails).unwrap();
    fails("a base behind a link");
    fs::remove_file(jails).unwrap();
    fs::rename(&moved, jails).unwrap();
    symlink("/tmp", jails.join("firecracker")).unwrap();
    fails("a link in the base");
    fs::remove_file(jails.join("firecracker")).unwrap();
    set_mode(jails, 0o700);
    works(&scene, scene.params("one"));
    scene.assert_clean();
}
