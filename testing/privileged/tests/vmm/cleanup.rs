//! Jails that a hostile VMM has filled, and jails of earlier helpers.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use banger_helper_api::ErrorCode;
use banger_host::HostError;
use banger_privileged_tests::OWNER;
use rustix::fs::{AtFlags, CWD, FileType, Gid, Mode, OFlags, Uid};
use rustix::mount::{MountFlags, mount, mount_bind};
use serde_json::json;

use banger_privileged_tests::vmm::{Scene, scene, set_mode, tree, wait_until_gone};

fn refused(scene: &Scene, rule: &str) {
    let before = scene.everything();
    let error = scene.clean_up("one").unwrap_err();
    let HostError::Refused(refusal) = &error else { panic!("{rule}: {error:?}") };
    assert_eq!(refusal.code, ErrorCode::InvalidPath, "{rule}");
    assert!(error.to_string().contains(rule), "{rule}: {error}");
    assert_eq!(scene.everything(), before, "{rule}");
}

/// A jail that is left of an earlier helper, with a root of the owner's.
fn left_jail(scene: &Scene) -> PathBuf {
    let root = scene.jail("one").join("root");
    fs::create_dir_all(&root).unwrap();
    set_mode(root.parent().unwrap().parent().unwrap(), 0o711);
    set_mode(root.parent().unwrap(), 0o711);
    chown(&root, Some(OWNER), Some(OWNER)).unwrap();
    root
}

/// A directory of the owner's, as the VMM would make it.
fn make_owners(path: &Path) {
    fs::create_dir(path).unwrap();
    chown(path, Some(OWNER), Some(OWNER)).unwrap();
}

/// The owner may move a directory of another user that lies in one of the owner's, and may not
/// empty it; no more may who cleans up for the owner.
#[test]
fn another_users_directory_that_was_moved_into_a_jail_stays() {
    let Some(scene) = scene() else { return };
    let root = left_jail(&scene);
    make_owners(&root.join("run"));
    fs::write(root.join("run/api.sock"), b"").unwrap();
    let project = scene.fixture.state.join("project");
    make_owners(&project);
    make_owners(&project.join("own"));
    fs::write(project.join("own/file"), b"the owner's").unwrap();
    fs::create_dir_all(project.join("roots/inner")).unwrap();
    fs::write(project.join("roots/inner/precious"), b"keep").unwrap();
    set_mode(project.join("roots"), 0o700);
    // Another user's that is empty is nobody's loss: the owner may remove it too.
    fs::create_dir(project.join("empty")).unwrap();
    let before = tree(&project.join("roots"));
    let moved = banger_privileged_sys::as_file_user(OWNER, OWNER, || {
        fs::remove_dir_all(project.join("roots")).unwrap_err();
        fs::rename(&project, root.join("run/x"))
    });
    moved.unwrap();
    // What was refused once is not gone at the next call either.
    let jail = scene.jail("one");
    for _ in 0..3 {
        let error = scene.clean_up("one").unwrap_err();
        let HostError::Failed { .. } = &error else { panic!("{error:?}") };
        let error = banger_host::chain(&error);
        assert!(error.contains("\"roots\" in ") && error.contains("is of uid 0"), "{error}");
        assert!(error.contains(jail.to_str().unwrap()), "{error}");
        assert_eq!(fs::metadata(&jail).unwrap().permissions().mode() & 0o777, 0o700);
    }
    let found = find(&jail, "roots").expect("it is there");
    assert_eq!(fs::read(found.join("inner/precious")).unwrap(), b"keep");
    // Where it is told to be, by its administrator.
    let outside = scene.fixture.state.join("roots");
    fs::rename(&found, &outside).unwrap();
    let names = |lines: Vec<String>| -> Vec<String> {
        let name = |line: &String| line.rsplit('/').next().unwrap().to_owned();
        let told = lines.iter().map(name);
        told.map(|line| line.split(' ').take(4).collect::<Vec<_>>().join(" ")).collect()
    };
    assert_eq!(names(tree(&outside)), names(before));
    scene.clean_up("one").unwrap();
    fs::remove_dir_all(&outside).unwrap();
    scene.assert_clean();
}

/// What root has made for the libraries is root's, but its name is the owner's to change as long as the
/// jail's root is.
#[test]
fn a_jail_whose_own_directory_was_renamed_is_cleaned_up() {
    let Some(scene) = scene() else { return };
    let root = left_jail(&scene);
    for name in ["lib", "lib64"] {
        fs::create_dir_all(root.join("usr").join(name)).unwrap();
    }
    make_owners(&root.join("run"));
    let renamed = banger_privileged_sys::as_file_user(OWNER, OWNER, || {
        fs::rename(root.join("usr"), root.join("run/usr")).unwrap_err();
        fs::rename(root.join("usr"), root.join("mine"))
    });
    renamed.unwrap();
    scene.clean_up("one").unwrap();
    scene.assert_clean();

    // Anything else in it is not ours.
    let root = left_jail(&scene);
    fs::create_dir_all(root.join("usr/lib")).unwrap();
    fs::write(root.join("usr/precious"), b"keep").unwrap();
    let error = banger_host::chain(&scene.clean_up("one").unwrap_err());
    assert!(error.contains("\"usr\" in \"root\" is of uid 0"), "{error}");
    assert_eq!(fs::read(root.join("usr/precious")).unwrap(), b"keep");
    fs::remove_dir_all(root.join("usr")).unwrap();
    scene.clean_up("one").unwrap();
    scene.assert_clean();
}

/// The directory of a name, wherever it is below.
fn find(folder: &Path, name: &str) -> Option<PathBuf> {
    let entries = fs::read_dir(folder).unwrap().flatten();
    let mut folders = entries.map(|it| it.path()).filter(|it| it.is_dir() && !it.is_symlink());
    folders.find_map(|it| if it.ends_with(name) { Some(it) } else { find(&it, name) })
}

#[test]
fn links_in_place_of_the_jails_directories_are_refused() {
    let Some(scene) = scene() else { return };
    scene.clean_up("one").unwrap();
    let outside = scene.fixture.state.join("outside");
    fs::create_dir_all(outside.join("root")).unwrap();
    fs::write(outside.join("root/precious"), b"keep").unwrap();
    let before = tree(&outside);
    fs::create_dir(scene.fixture.jails.join("firecracker")).unwrap();
    let jail = scene.jail("one");
    symlink(&outside, &jail).unwrap();
    refused(&scene, "not a directory");
    fs::remove_file(&jail).unwrap();
    fs::write(&jail, b"").unwrap();
    refused(&scene, "not a directory");
    fs::remove_file(&jail).unwrap();
    let root = left_jail(&scene);
    fs::remove_dir(&root).unwrap();
    for kind in ["link", "file"] {
        match kind {
            "link" => symlink(outside.join("root"), &root).unwrap(),
            _ => fs::write(&root, b"").unwrap(),
        }
        refused(&scene, "root is not a directory");
        fs::remove_file(&root).unwrap();
    }
    chown(&jail, Some(OWNER), None).unwrap();
    refused(&scene, "not root's alone");
    chown(&jail, Some(0), None).unwrap();
    set_mode(&jail, 0o777);
    refused(&scene, "not root's alone");
    set_mode(&jail, 0o711);
    assert_eq!(tree(&outside), before);
    scene.clean_up("one").unwrap();
    scene.assert_clean();
}

/// Whatever can be in a directory of the owner's, and what it leads to.
#[test]
fn a_hostile_jail_is_emptied_and_nothing_else() {
    let Some(scene) = scene() else { return };
    let outside = scene.fixture.state.join("outside");
    fs::create_dir_all(outside.join("deep")).unwrap();
    fs::write(outside.join("deep/precious"), b"keep").unwrap();
    let before = tree(&outside);
    let root = left_jail(&scene);
    symlink(&outside, root.join("link")).unwrap();
    symlink("/", root.join("to-root")).unwrap();
    symlink("link", root.join("chain")).unwrap();
    fs::hard_link(outside.join("deep/precious"), root.join("hard-link")).unwrap();
    rustix::fs::mknodat(CWD, root.join("fifo"), FileType::Fifo, Mode::RWXU, 0).unwrap();
    let null = rustix::fs::makedev(1, 3);
    rustix::fs::mknodat(CWD, root.join("null"), FileType::CharacterDevice, Mode::RWXU, null)
        .unwrap();
    let _socket = UnixListener::bind(root.join("socket")).unwrap();
    for name in [&b"\n"[..], b" ", b"\xff\xfe", b"-rf", b"\\040", b"moved-1", &[b'x'; 255]] {
        let directory = root.join(OsStr::from_bytes(name));
        make_owners(&directory);
        fs::write(directory.join("file"), b"x").unwrap();
        symlink(&outside, directory.join("link")).unwrap();
        set_mode(&directory, 0);
    }
    let many = root.join("many");
    make_owners(&many);
    for number in 0..3000 {
        fs::write(many.join(number.to_string()), b"").unwrap();
    }
    // Left by a clean-up that was cut off.
    fs::create_dir(scene.jail("one").join("moved-1")).unwrap();
    fs::write(scene.jail("one").join("moved-1/file"), b"").unwrap();
    // Deeper than there can be open files, and than a path can name.
    let flags = OFlags::PATH | OFlags::DIRECTORY;
    let mut at = rustix::fs::open(&root, flags, Mode::empty()).unwrap();
    for _ in 0..1100 {
        rustix::fs::mkdirat(&at, "deeper", Mode::RWXU).unwrap();
        at = rustix::fs::openat(&at, "deeper", flags, Mode::empty()).unwrap();
        let (uid, gid) = (Uid::from_raw(OWNER), Gid::from_raw(OWNER));
        rustix::fs::chownat(&at, "", Some(uid), Some(gid), AtFlags::EMPTY_PATH).unwrap();
    }
    drop(at);
    scene.clean_up("one").unwrap();
    // The hard link is gone: nothing of the file itself has changed but its count and times.
    assert_eq!(fs::read(outside.join("deep/precious")).unwrap(), b"keep");
    let names = |lines: Vec<String>| -> Vec<String> {
        lines.iter().map(|line| line.split(' ').take(4).collect::<Vec<_>>().join(" ")).collect()
    };
    assert_eq!(names(tree(&outside)), names(before));
    scene.assert_clean();
}

/// Where a machine's link was there may be another machine's by now, or whatever the owner put there.
#[test]
fn what_lies_in_the_place_of_a_machines_link_stays() {
    let Some(scene) = scene() else { return };
    let place = |name: &str| scene.fixture.runtime.join(name);
    let mut params = scene.params("one");
    params["vsock_path"] = json!(place("vsock-one.sock"));
    params["vsock_cid"] = json!(3);
    let end = |pid: i32| {
        scene.host().kill_process(&scene.pid(pid)).unwrap();
        wait_until_gone(pid);
    };
    let mut own = PathBuf::new();
    for target in ["/etc/passwd", "fc-other.sock", "x", "OWN/", "OWN-other", "jails"] {
        let pid = scene.launch(params.clone()).unwrap();
        own = fs::read_link(place("fc-one.sock")).unwrap();
        end(pid);
        let target = target.replace("OWN", own.to_str().unwrap());
        fs::remove_file(place("fc-one.sock")).unwrap();
        symlink(&target, place("fc-one.sock")).unwrap();
        scene.clean_up("one").unwrap();
        assert_eq!(fs::read_link(place("fc-one.sock")).unwrap(), Path::new(&target));
        assert!(!place("vsock-one.sock").is_symlink(), "the neighbour, which leads to the jail");
        fs::remove_file(place("fc-one.sock")).unwrap();
    }
    // A file that says what the link said.
    let pid = scene.launch(params.clone()).unwrap();
    end(pid);
    fs::remove_file(place("fc-one.sock")).unwrap();
    fs::write(place("fc-one.sock"), own.to_str().unwrap()).unwrap();
    scene.clean_up("one").unwrap();
    assert_eq!(fs::read(place("fc-one.sock")).unwrap(), own.to_str().unwrap().as_bytes());
    fs::remove_file(place("fc-one.sock")).unwrap();

    // The next machine with the same places, before the last one is cleaned up.
    let pid = scene.launch(params.clone()).unwrap();
    end(pid);
    params["vm_id"] = json!("two");
    params["log_path"] = json!(scene.fixture.state.join("two.log"));
    let second = scene.launch(params).unwrap();
    scene.clean_up("one").unwrap();
    std::os::unix::net::UnixStream::connect(place("fc-one.sock")).unwrap();
    let at = scene.runtime_path("fc-one.sock");
    assert_eq!(scene.host().find_firecracker_pid(&at).unwrap(), second.unsigned_abs());
    scene.end("two", second);
    scene.assert_clean();
}

/// Firecracker's "bind-mount propagation" and ours: whatever is mounted goes, whatever its name, and
/// what was mounted there stays.
#[test]
fn mounts_are_taken_down_and_their_contents_stay() {
    let Some(scene) = scene() else { return };
    let outside = scene.fixture.state.join("outside");
    fs::create_dir_all(outside.join("inner")).unwrap();
    fs::write(outside.join("inner/precious"), b"keep").unwrap();
    let before = tree(&outside);
    let root = left_jail(&scene);
    mount_bind(&root, &root).unwrap();
    for name in ["lib", "with space", "with\nline\ttab", "with\\040back", "deep"] {
        let place = root.join(name);
        fs::create_dir(&place).unwrap();
        mount_bind(&outside, &place).unwrap();
        // A second one upon it, and one within.
        mount_bind(&outside, &place).unwrap();
        mount("tmpfs", place.join("inner"), "tmpfs", MountFlags::empty(), None).unwrap();
    }
    let file = root.join("file");
    fs::write(&file, b"").unwrap();
    mount_bind(outside.join("inner/precious"), &file).unwrap();
    scene.clean_up("one").unwrap();
    scene.assert_clean();
    assert_eq!(tree(&outside), before);
}

/// A process that holds directories of the jail open goes on filling them.
#[test]
fn a_jail_that_is_filled_meanwhile_is_emptied() {
    let Some(scene) = scene() else { return };
    let is_over = AtomicBool::new(false);
    for _ in 0..5 {
        let root = left_jail(&scene);
        let flags = OFlags::PATH | OFlags::DIRECTORY;
        fs::create_dir(root.join("a")).unwrap();
        chown(root.join("a"), Some(OWNER), Some(OWNER)).unwrap();
        let held = [root.clone(), root.join("a")]
            .map(|path| rustix::fs::open(path, flags, Mode::empty()).unwrap());
        is_over.store(false, Ordering::Relaxed);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                banger_privileged_sys::as_file_user(OWNER, OWNER, || {
                    let mut number = 0_u64;
                    while !is_over.load(Ordering::Relaxed) {
                        number += 1;
                        for directory in &held {
                            let name = format!("x{number}");
                            let _ = rustix::fs::mkdirat(directory, &name, Mode::RWXU);
                            let below = format!("{name}/below");
                            let _ = rustix::fs::mkdirat(directory, below, Mode::RWXU);
                        }
                        // Slower than what removes: who is faster keeps the clean-up busy until its
                        // time is over, and hurts a jail of its own only.
                        std::thread::sleep(std::time::Duration::from_millis(20));
                    }
                });
            });
            std::thread::sleep(std::time::Duration::from_millis(20));
            let done = scene.clean_up("one");
            is_over.store(true, Ordering::Relaxed);
            done.unwrap();
        });
        assert!(!Path::new(&root).exists());
    }
    scene.assert_clean();
}
