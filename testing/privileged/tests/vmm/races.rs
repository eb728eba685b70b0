//! Paths that are swapped while they are used. `BANGER_RACE_ROUNDS` has the number of rounds.

use std::fs;
use std::os::unix::fs::{chown, symlink};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use banger_privileged_tests::{Fixture, OWNER};
use serde_json::json;

use banger_privileged_tests::vmm::{children, scene, set_mode, tree, wait_until_gone};

/// A tenth of the full number, unless told otherwise; launches spawn a tool.
fn rounds(full: usize) -> usize {
    let text = std::env::var("BANGER_RACE_ROUNDS").ok();
    text.and_then(|text| text.parse().ok()).map_or(full / 10, |rounds: usize| rounds.min(full))
}

/// Runs `act` some times while another thread swaps things as fast as it can.
fn race(rounds: usize, swap: impl Fn(usize) + Sync, mut act: impl FnMut(usize)) {
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut step = 0;
            while !is_over.load(Ordering::Relaxed) {
                swap(step);
                step += 1;
            }
        });
        let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            (0..rounds).for_each(&mut act);
        }));
        is_over.store(true, Ordering::Relaxed);
        if let Err(panic) = done {
            std::panic::resume_unwind(panic);
        }
    });
}

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
    let before = tree(&outside);
    let parent = fixture.runtime.join("parent");
    let leaf = parent.join("x.sock");
    let path = banger_gates::ManagedPath::parse("p", leaf.to_str().unwrap(), fixture.policy());
    let path = path.unwrap();
    let swap = |step: usize| {
        remove(&parent);
        match step % 4 {
            0 => symlink(&outside, &parent).unwrap(),
            kind => {
                fs::create_dir(&parent).unwrap();
                match kind {
                    1 => symlink(outside.join("x.sock"), &leaf).unwrap(),
                    2 => fs::write(&leaf, b"").unwrap(),
                    _ => {
                        drop(UnixListener::bind(&leaf).unwrap());
                        std::thread::yield_now();
                        std::thread::sleep(std::time::Duration::from_micros(50));
                    }
                }
            }
        }
    };
    let mut given = 0_usize;
    // Under load the two may run one after the other; then there was no race yet.
    for _ in 0..20 {
        let act = |_| given += usize::from(fixture.host.ensure_socket_access(&path).is_ok());
        race(rounds(10_000), swap, act);
        if given > 0 {
            break;
        }
    }
    assert!(given > 0, "the allowed neighbour was never met");
    assert_eq!(tree(&outside), before);
    drop(listener);
}

/// The real jailer, through the launch, with every path parameter and its parent being swapped.
#[test]
fn launches_with_swapped_paths_touch_nothing_outside() {
    let Some(scene) = scene() else { return };
    let base = scene.fixture.state.parent().unwrap().to_owned();
    let outside = base.join("outside");
    let names = ["kernel", "disk", "log", "x.sock", "v.sock"];
    let fill = |directory: &Path, names: &[&str], bytes: &[u8]| {
        fs::create_dir(directory).unwrap();
        for name in names {
            fs::write(directory.join(name), bytes).unwrap();
            chown(directory.join(name), Some(OWNER), Some(OWNER)).unwrap();
        }
        chown(directory, Some(OWNER), Some(OWNER)).unwrap();
    };
    fill(&outside, &names, b"outside");
    // What is exchanged with what: each parent and each leaf with a link out, a file that has its
    // other name outside, and a directory.
    let (folder, links) = (scene.fixture.state.join("vm"), scene.fixture.runtime.join("vm"));
    let mut pairs = Vec::new();
    for (directory, names) in [(&folder, &names[..3]), (&links, &names[3..])] {
        let kernel = fs::read(scene.fixture.state.join("kernel")).unwrap();
        fill(directory, if directory == &folder { names } else { &[] }, &kernel);
        let bad = directory.with_file_name("bad");
        fill(&bad, &[], b"");
        symlink(&outside, bad.join("parent-link")).unwrap();
        fs::create_dir(bad.join("parent-directory")).unwrap();
        pairs.extend(["parent-link", "parent-directory"].map(|b| (directory.clone(), bad.join(b))));
        for name in names {
            let others =
                ["link", "name", "directory"].map(|kind| bad.join(format!("{name}-{kind}")));
            symlink(outside.join(name), &others[0]).unwrap();
            fs::hard_link(outside.join(name), &others[1]).unwrap();
            fs::create_dir(&others[2]).unwrap();
            pairs.extend(others.map(|other| (directory.join(name), other)));
        }
    }
    let before = tree(&outside);
    let swap = |step: usize| {
        let (good, bad) = &pairs[step % pairs.len()];
        let pause = |micros| std::thread::sleep(std::time::Duration::from_micros(micros));
        let (at, flags) = (rustix::fs::CWD, rustix::fs::RenameFlags::EXCHANGE);
        if rustix::fs::renameat_with(at, good, at, bad, flags).is_ok() {
            pause(u64::try_from(step % 7).unwrap() * 100);
            // Back, whatever has been put there meanwhile.
            while rustix::fs::renameat_with(at, good, at, bad, flags).is_err() {
                fs::write(good, b"").unwrap();
            }
        }
        pause(300);
    };
    let mut params = scene.params("one");
    params["kernel_image_path"] = json!(folder.join("kernel"));
    params["drives"] = json!([{ "id": "disk", "path": folder.join("disk") }]);
    params["log_path"] = json!(folder.join("log"));
    params["socket_path"] = json!(links.join("x.sock"));
    params["vsock_path"] = json!(links.join("v.sock"));
    params["vsock_cid"] = json!(3);
    let grant = scene.grant(params);
    let (mut launched, mut failed) = (0, std::collections::BTreeMap::<String, usize>::new());
    race(rounds(500), swap, |_| {
        match scene.host().launch_firecracker(&grant) {
            Ok(pid) => {
                let pid = i32::try_from(pid).unwrap();
                launched += 1;
                scene.host().kill_process(scene.pid(pid)).unwrap();
                wait_until_gone(pid);
            }
            Err(error) => *failed.entry(error.to_string()).or_default() += 1,
        }
        scene.clean_up("one").unwrap();
    });
    assert!(launched > 0 && !failed.is_empty(), "{launched} launched, {failed:#?}");
    assert_eq!(tree(&outside).len(), before.len());
    for (line, was) in tree(&outside).iter().zip(&before) {
        // All but the count of names and the time of its last change, which jails change.
        let stable = |line: &str| line.split(' ').take(3).collect::<Vec<_>>().join(" ");
        assert_eq!(stable(line), stable(was));
    }
    for name in names {
        assert_eq!(fs::read(outside.join(name)).unwrap(), b"outside");
    }
    assert!(children().is_empty());
    scene.assert_clean();
}

/// What is mounted and made in a jail is swapped by its owner while the jail is cleaned up.
#[test]
fn a_jail_that_is_swapped_while_it_is_cleaned_up_harms_nothing_outside() {
    let Some(scene) = scene() else { return };
    let outside = scene.fixture.state.join("outside");
    fs::create_dir_all(outside.join("a/b")).unwrap();
    fs::write(outside.join("a/b/precious"), b"keep").unwrap();
    rustix::mount::mount_bind(outside.join("a/b"), outside.join("a/b")).unwrap();
    let mounts = || {
        let text = fs::read_to_string("/proc/thread-self/mountinfo").unwrap();
        let points = text.lines().filter_map(|line| line.split(' ').nth(4));
        points.filter(|point| point.contains("/state/outside/a/b")).count()
    };
    let root = scene.jail("one").join("root");
    let swap = |step: usize| {
        let (plain, link) = (root.join("a"), root.join("link"));
        match step % 3 {
            0 => drop(symlink(outside.join("a"), &link)),
            1 => {
                let flags = rustix::fs::RenameFlags::EXCHANGE;
                let at = rustix::fs::CWD;
                let _ = rustix::fs::renameat_with(at, &plain, at, &link, flags);
            }
            _ => drop(fs::create_dir_all(root.join("a/b/c"))),
        }
    };
    race(rounds(10_000) / 4, swap, |_| {
        let _ = fs::create_dir_all(root.join("a/b"));
        // This one follows links, so it adds to the mounts outside at times.
        let _ = rustix::mount::mount_bind(outside.join("a/b"), root.join("a/b"));
        let before = mounts();
        // The swapper is root here and may win; then the next call goes on.
        let _ = scene.clean_up("one");
        assert_eq!(mounts(), before, "mounts outside");
    });
    while scene.clean_up("one").is_err() {}
    assert!(mounts() >= 1);
    assert_eq!(fs::read(outside.join("a/b/precious")).unwrap(), b"keep");
    scene.assert_clean();
}

/// The jailer, which is root, works by name in directories that it gives to the owner: until it is
/// done the owner cannot get there (CVE-2026-1386).
#[test]
fn the_owner_enters_a_jail_only_when_the_jailer_is_done() {
    let Some(scene) = scene() else { return };
    let round = std::sync::atomic::AtomicUsize::new(0);
    let rounds = rounds(100);
    let id = |round: usize| format!("round-{round}");
    let entered = std::thread::scope(|scope| {
        let watcher = scope.spawn(|| {
            banger_privileged_sys::as_file_user(OWNER, OWNER, || {
                let mut entered = 0;
                while round.load(Ordering::Relaxed) < rounds {
                    let root = scene.jail(&id(round.load(Ordering::Relaxed))).join("root");
                    let enters = || fs::read_dir(&root).is_ok();
                    // A clean-up closes the jail before it removes anything, and for ever.
                    if enters() {
                        let is_done = root.join("firecracker.pid").exists();
                        assert!(is_done || !enters(), "before the jailer's last act");
                        entered += 1;
                    }
                }
                entered
            })
        });
        let run = std::panic::AssertUnwindSafe(|| {
            for number in 0..rounds {
                let id = id(number);
                let pid = scene.launch(scene.params(&id)).unwrap();
                scene.end(&id, pid);
                round.store(number + 1, Ordering::Relaxed);
            }
        });
        let done = std::panic::catch_unwind(run);
        round.store(rounds, Ordering::Relaxed);
        let entered = watcher.join().unwrap();
        done.unwrap();
        entered
    });
    assert!(entered > 0, "the owner never got in");
    scene.assert_clean();
}
