//! Sockets whose paths are swapped while they are asked about or given away.

use std::fs;
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixListener;
use std::path::Path;

use banger_gates::request::Running;
use banger_host::Host;
use banger_privileged_tests::race::{PLAIN, race_until_seen, rounds};
use banger_privileged_tests::vmm::{Idle, idle_program, scene, set_mode, tree};
use banger_privileged_tests::{Fixture, OWNER};
use serde_json::json;

fn remove(path: &Path) {
    let _ = fs::remove_file(path);
    let _ = fs::remove_dir_all(path);
}

#[test]
fn a_socket_path_that_is_swapped_changes_nothing_outside() {
    if !banger_harness::is_root() {
        banger_harness::skip("root", "files are given away");
        return;
    }
    let fixture = Fixture::new();
    let outside = fixture.runtime.parent().unwrap().join("outside");
    fs::create_dir(&outside).unwrap();
    set_mode(&outside, 0o755);
    let listener = UnixListener::bind(outside.join("x.sock")).unwrap();
    // All but the count of names and the time of its last change, which another name changes.
    let stable = || -> Vec<String> {
        let line = |line: &String| line.split(' ').take(3).collect::<Vec<_>>().join(" ");
        tree(&outside).iter().map(line).collect()
    };
    let before = stable();
    let parent = fixture.runtime.join("parent");
    let leaf = parent.join("x.sock");
    let path = banger_gates::ManagedPath::parse("p", leaf.to_str().unwrap(), fixture.policy());
    let path = path.unwrap();
    let swap = |step: usize| {
        remove(&parent);
        match step % 8 {
            0 => symlink(&outside, &parent).unwrap(),
            1 => fs::write(&parent, b"").unwrap(),
            7 => fs::hard_link(outside.join("x.sock"), &parent).unwrap(),
            kind => {
                fs::create_dir(&parent).unwrap();
                match kind {
                    2 => symlink(outside.join("x.sock"), &leaf).unwrap(),
                    3 => fs::write(&leaf, b"").unwrap(),
                    4 => fs::hard_link(outside.join("x.sock"), &leaf).unwrap(),
                    5 => fs::create_dir(&leaf).unwrap(),
                    _ => drop(UnixListener::bind(&leaf).unwrap()),
                }
            }
        }
        // Each state is there long enough to be met.
        std::thread::sleep(std::time::Duration::from_micros(50));
    };
    let mut given = 0_usize;
    race_until_seen(rounds(PLAIN), swap, |_| {
        given += usize::from(fixture.host.ensure_socket_access(&path).is_ok());
        given > 0
    });
    assert!(given > 0, "the allowed neighbour was never met");
    assert_eq!(stable(), before);
    drop(listener);
}

/// A question about a socket is answered with the machine of that link, or with none.
#[test]
fn questions_about_a_swapped_socket_find_nobody_else() {
    let Some(scene) = scene() else { return };
    let runtime = &scene.fixture.runtime;
    let (folder, outside) = (runtime.join("vm"), scene.fixture.outside.clone());
    fs::create_dir(&folder).unwrap();
    std::os::unix::fs::chown(&folder, Some(OWNER), Some(OWNER)).unwrap();
    let leaf = folder.join("x.sock");
    let mut params = scene.params("one");
    params["socket_path"] = json!(leaf);
    let pid = scene.launch(params).unwrap();
    let other = scene.launch(scene.params("other")).unwrap();
    // The owner's, said to be a Firecracker with that socket.
    let program = scene.write("firecracker", &idle_program());
    set_mode(&program, 0o755);
    set_mode(program.parent().unwrap(), 0o711);
    let decoy = Idle::start(&program, &["--api-sock", leaf.to_str().unwrap()], OWNER);
    let good = fs::read_link(&leaf).unwrap();
    let others = fs::read_link(runtime.join("fc-other.sock")).unwrap();
    symlink(&others, outside.join("x.sock")).unwrap();
    fs::write(outside.join("file"), b"").unwrap();
    let before = tree(&outside);
    let aside = runtime.join("aside");
    let swap = |step: usize| {
        match step % 11 {
            0 => fs::remove_file(&leaf).unwrap(),
            1 => symlink(&program, &leaf).unwrap(),
            2 => {
                fs::remove_file(&leaf).unwrap();
                fs::hard_link(&program, &leaf).unwrap();
            }
            3 => {
                fs::remove_file(&leaf).unwrap();
                fs::create_dir(&leaf).unwrap();
            }
            4 => {
                fs::remove_dir(&leaf).unwrap();
                fs::write(&leaf, b"").unwrap();
            }
            5 => {
                fs::remove_file(&leaf).unwrap();
                symlink(&good, &leaf).unwrap();
            }
            6 => {
                fs::rename(&folder, &aside).unwrap();
                symlink(&outside, &folder).unwrap();
            }
            7 => {
                fs::remove_file(&folder).unwrap();
                fs::hard_link(&program, &folder).unwrap();
            }
            8 => {
                fs::remove_file(&folder).unwrap();
                fs::write(&folder, b"").unwrap();
            }
            9 => {
                fs::remove_file(&folder).unwrap();
                fs::create_dir(&folder).unwrap();
                std::os::unix::fs::chown(&folder, Some(OWNER), Some(OWNER)).unwrap();
                symlink(&others, &leaf).unwrap();
            }
            _ => {
                fs::remove_dir_all(&folder).unwrap();
                fs::rename(&aside, &folder).unwrap();
            }
        }
        std::thread::sleep(std::time::Duration::from_micros(20));
    };
    let at = scene.runtime_path("vm/x.sock");
    // The helper that launched it holds it and looks at no path; a later one does.
    let later = scene.next_helper();
    let is_running = |host: &Host, number| {
        let asked = Running { pid: scene.pid(number), api_socket: at.clone() };
        host.process_running(&asked)
    };
    let (mut found, mut none) = (0_usize, 0_usize);
    race_until_seen(rounds(PLAIN), swap, |_| {
        assert_eq!(scene.host().find_firecracker_pid(&at).unwrap(), pid.unsigned_abs());
        match later.find_firecracker_pid(&at) {
            Ok(number) => {
                assert_eq!(number, pid.unsigned_abs());
                found += 1;
            }
            Err(_) => none += 1,
        }
        for others in [other, decoy.pid()] {
            for host in [scene.host(), &later] {
                assert!(!is_running(host, others).unwrap_or(false), "{others}");
            }
        }
        assert!(is_running(scene.host(), pid).unwrap());
        let _ = is_running(&later, pid);
        found > 0 && none > 0
    });
    assert!(found > 0 && none > 0, "{found} found, {none} not");
    assert_eq!(tree(&outside), before);
    drop(decoy);
    remove(&folder);
    remove(&aside);
    scene.end("one", pid);
    scene.end("other", other);
    scene.assert_clean();
}
