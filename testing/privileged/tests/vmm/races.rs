//! Machines and jails whose paths are swapped while they are used.

use std::fs;
use std::os::unix::fs::{chown, lchown, symlink};
use std::path::Path;
use std::sync::atomic::Ordering;

use banger_privileged_tests::OWNER;
use banger_privileged_tests::race::{PLAIN, SPAWNING, race, race_until_seen, rounds};
use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use serde_json::json;

use banger_privileged_tests::vmm::{Scene, children, elf, scene, set_mode, tree, wait_until_gone};

/// The real jailer, through the launch, with one path parameter and each of its parents being
/// swapped.
fn swap_while_launching(swapped: &str) {
    let Some(scene) = scene() else { return };
    let base = scene.fixture.state.parent().unwrap().to_owned();
    let outside = base.join("outside");
    let names = ["kernel", "initrd", "disk", "shared", "log", "metrics", "x.sock", "v.sock"];
    assert!(names.contains(&swapped));
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
    // other name outside, another file and another directory.
    let (upper, upper_links) = (scene.fixture.state.join("up"), scene.fixture.runtime.join("up"));
    for directory in [&upper, &upper_links] {
        fill(directory, &[], b"");
    }
    let (folder, links) = (upper.join("vm"), upper_links.join("vm"));
    // What a parent that is a link leads to.
    symlink(".", outside.join("vm")).unwrap();
    let mut pairs = Vec::new();
    for (directory, names) in [(&folder, &names[..6]), (&links, &names[6..])] {
        let kernel = fs::read(scene.fixture.state.join("kernel")).unwrap();
        fill(directory, if directory == &folder { names } else { &[] }, &kernel);
        let parent = directory.parent().unwrap();
        let bad = parent.with_file_name("bad");
        fill(&bad, &[], b"");
        let kinds = ["link", "name", "file", "directory"];
        let mut add = |good: &Path, other: &Path| {
            let label = good.file_name().unwrap().to_str().unwrap();
            let others = kinds.map(|kind| bad.join(format!("{label}-{kind}")));
            symlink(other, &others[0]).unwrap();
            let named = if other.is_dir() { &outside.join("kernel") } else { other };
            fs::hard_link(named, &others[1]).unwrap();
            fs::write(&others[2], b"another").unwrap();
            fs::create_dir(&others[3]).unwrap();
            others[2..].iter().for_each(|own| chown(own, Some(OWNER), Some(OWNER)).unwrap());
            pairs.extend(others.map(|other| (good.to_owned(), other)));
        };
        if names.contains(&swapped) {
            add(parent, &outside);
            add(directory, &outside);
            add(&directory.join(swapped), &outside.join(swapped));
        }
    }
    let before = tree(&outside);
    // Told of what is done by way of this directory, and not of what is done by the other names.
    let watch = inotify::init(CreateFlags::NONBLOCK).unwrap();
    let changes = WatchFlags::CREATE | WatchFlags::DELETE | WatchFlags::MOVE;
    let flags = WatchFlags::OPEN | WatchFlags::MODIFY | changes;
    inotify::add_watch(&watch, &outside, flags).unwrap();
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
    params["initrd_path"] = json!(folder.join("initrd"));
    params["drives"] = json!([
        { "id": "disk", "path": folder.join("disk") },
        { "id": "shared", "path": folder.join("shared"), "read_only": true },
    ]);
    params["log_path"] = json!(folder.join("log"));
    params["metrics_path"] = json!(folder.join("metrics"));
    params["socket_path"] = json!(links.join("x.sock"));
    params["vsock_path"] = json!(links.join("v.sock"));
    params["vsock_cid"] = json!(3);
    let grant = scene.grant(params);
    let (mut launched, mut failed) = (0, std::collections::BTreeMap::<String, usize>::new());
    race_until_seen(rounds(SPAWNING), swap, |_| {
        match scene.host().launch_firecracker(&grant) {
            Ok(pid) => {
                let pid = i32::try_from(pid).unwrap();
                launched += 1;
                scene.host().kill_process(&scene.pid(pid)).unwrap();
                wait_until_gone(pid);
            }
            Err(error) => *failed.entry(error.to_string()).or_default() += 1,
        }
        scene.clean_up("one").unwrap();
        launched > 0 && !failed.is_empty()
    });
    assert!(launched > 0 && !failed.is_empty(), "{launched} launched, {failed:#?}");
    let mut events = [0; 4096];
    let events = rustix::io::read(&watch, &mut events[..]);
    assert_eq!(events, Err(rustix::io::Errno::AGAIN), "something outside was opened or made");
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

#[test]
fn launches_with_a_swapped_kernel_touch_nothing_outside() {
    swap_while_launching("kernel");
}

#[test]
fn launches_with_a_swapped_initrd_touch_nothing_outside() {
    swap_while_launching("initrd");
}

#[test]
fn launches_with_a_swapped_writable_disk_touch_nothing_outside() {
    swap_while_launching("disk");
}

#[test]
fn launches_with_a_swapped_shared_disk_touch_nothing_outside() {
    swap_while_launching("shared");
}

#[test]
fn launches_with_a_swapped_log_touch_nothing_outside() {
    swap_while_launching("log");
}

#[test]
fn launches_with_a_swapped_place_for_metrics_touch_nothing_outside() {
    swap_while_launching("metrics");
}

#[test]
fn launches_with_a_swapped_api_socket_touch_nothing_outside() {
    swap_while_launching("x.sock");
}

#[test]
fn launches_with_a_swapped_vsock_touch_nothing_outside() {
    swap_while_launching("v.sock");
}

/// What is mounted and made in a jail is swapped by its owner while the jail is cleaned up. Several
/// jails at once: most of the time of an unmounting is a wait of the kernel's.
#[test]
fn a_jail_that_is_swapped_while_it_is_cleaned_up_harms_nothing_outside() {
    const LANES: usize = 8;
    let Some(scene) = scene() else { return };
    let folder = scene.fixture.jails.join("firecracker");
    fs::create_dir(&folder).unwrap();
    set_mode(&folder, 0o711);
    std::thread::scope(|scope| {
        for lane in 0..LANES {
            let scene = &scene;
            scope.spawn(move || swap_while_cleaning_up(scene, lane, rounds(PLAIN) / LANES));
        }
    });
    scene.assert_clean();
}

fn swap_while_cleaning_up(scene: &Scene, lane: usize, rounds: usize) {
    let (id, outside) = (format!("jail-{lane}"), scene.fixture.state.join(format!("out-{lane}")));
    fs::create_dir_all(outside.join("a/b")).unwrap();
    fs::write(outside.join("a/b/precious"), b"keep").unwrap();
    rustix::mount::mount_bind(outside.join("a/b"), outside.join("a/b")).unwrap();
    let mounts = || {
        let text = fs::read_to_string("/proc/thread-self/mountinfo").unwrap();
        let points = text.lines().filter_map(|line| line.split(' ').nth(4));
        points.filter(|point| point.contains(&format!("/state/out-{lane}/a/b"))).count()
    };
    let root = scene.jail(&id).join("root");
    // As the VMM would: what is another's is not removed.
    let make = |path: &str| {
        if fs::create_dir_all(&root).is_ok() {
            let _ = lchown(&root, Some(OWNER), Some(OWNER));
        }
        let make = || drop(fs::create_dir_all(root.join(path)));
        banger_privileged_sys::as_file_user(OWNER, OWNER, make);
    };
    let swap = |step: usize| {
        let (plain, link) = (root.join("a"), root.join("link"));
        match step % 3 {
            0 => drop(symlink(outside.join("a"), &link)),
            1 => {
                let flags = rustix::fs::RenameFlags::EXCHANGE;
                let at = rustix::fs::CWD;
                let _ = rustix::fs::renameat_with(at, &plain, at, &link, flags);
            }
            _ => make("a/b/c"),
        }
    };
    race(rounds, swap, |_| {
        make("a/b");
        // This one follows links, so it adds to the mounts outside at times.
        let _ = rustix::mount::mount_bind(outside.join("a/b"), root.join("a/b"));
        let before = mounts();
        // The swapper is root here and may win; then the next call goes on.
        let _ = scene.clean_up(&id);
        assert_eq!(mounts(), before, "mounts outside");
    });
    while scene.clean_up(&id).is_err() {}
    assert!(mounts() >= 1);
    assert_eq!(fs::read(outside.join("a/b/precious")).unwrap(), b"keep");
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
                    let enters = || fs::read_dir(root.join("run")).is_ok();
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

/// The jail's own directories are root's alone; were they not, a clean-up would still stay in them.
#[test]
fn a_jail_whose_directories_are_swapped_is_cleaned_up_and_nothing_outside() {
    let Some(scene) = scene() else { return };
    let base = scene.fixture.jails.parent().unwrap().to_owned();
    let (outside, bad) = (base.join("outside"), base.join("bad"));
    fs::create_dir_all(outside.join("root")).unwrap();
    fs::create_dir(&bad).unwrap();
    for folder in [&outside, &bad] {
        set_mode(folder, 0o711);
    }
    fs::write(outside.join("root/precious"), b"keep").unwrap();
    symlink(&outside, bad.join("link")).unwrap();
    symlink(outside.join("root"), bad.join("root-link")).unwrap();
    fs::write(bad.join("file"), b"").unwrap();
    fs::hard_link(outside.join("root/precious"), bad.join("name")).unwrap();
    fs::create_dir(bad.join("folder")).unwrap();
    let jail = scene.jail("one");
    fs::create_dir(jail.parent().unwrap()).unwrap();
    set_mode(jail.parent().unwrap(), 0o711);
    let others = |good: &Path, link: &str| {
        [link, "file", "name", "folder"].map(|other| (good.to_owned(), bad.join(other)))
    };
    let pairs = [others(&jail, "link"), others(&jail.join("root"), "root-link")].concat();
    let swap = |step: usize| {
        let (good, bad) = &pairs[step % pairs.len()];
        let (at, flags) = (rustix::fs::CWD, rustix::fs::RenameFlags::EXCHANGE);
        if rustix::fs::renameat_with(at, good, at, bad, flags).is_ok() {
            std::thread::yield_now();
            // Back, whatever has been put there or taken away meanwhile.
            while rustix::fs::renameat_with(at, good, at, bad, flags).is_err() {
                let _ = fs::create_dir_all(good);
            }
        }
    };
    let (mut done, mut not_done) = (0_usize, 0_usize);
    race_until_seen(rounds(PLAIN), swap, |_| {
        // Some of it may come to lie outside, where these names are links.
        if fs::create_dir_all(jail.join("root")).is_ok() {
            let _ = fs::set_permissions(&jail, std::os::unix::fs::PermissionsExt::from_mode(0o711));
            let _ = fs::write(jail.join("root/file"), b"");
        }
        *if scene.clean_up("one").is_ok() { &mut done } else { &mut not_done } += 1;
        assert_eq!(fs::read(outside.join("root/precious")).unwrap(), b"keep");
        done > 0 && not_done > 0
    });
    assert!(done > 0 && not_done > 0, "{done} done, {not_done} not");
    while scene.clean_up("one").is_err() {}
    assert_eq!(fs::read(outside.join("root/precious")).unwrap(), b"keep");
    scene.assert_clean();
}

/// A program that ends with a status at once.
fn ends_with(status: u8) -> Vec<u8> {
    // mov eax, 60; mov edi, STATUS; syscall
    elf(&[0xb8, 60, 0, 0, 0, 0xbf, status, 0, 0, 0, 0x0f, 0x05])
}

/// What [`tells_of_root`] writes.
const AS_ROOT: &str = "as root\n";

/// A program that ends at once, and writes a word to its standard output if it is root.
fn tells_of_root() -> Vec<u8> {
    let mut code = vec![
        0xb8, 102, 0, 0, 0, 0x0f, 0x05, // getuid
        0x85, 0xc0, 0x75, 24, // test eax, eax; jnz to the exit
        0xb8, 1, 0, 0, 0, 0xbf, 1, 0, 0, 0, // write to 1
        0x48, 0x8d, 0x35, 19, 0, 0, 0, // lea rsi, [rip + 19]: the word
        0xba, 8, 0, 0, 0, 0x0f, 0x05, // its length
        0xb8, 60, 0, 0, 0, 0xbf, 77, 0, 0, 0, 0x0f, 0x05, // exit
    ];
    code.extend(AS_ROOT.as_bytes());
    elf(&code)
}

/// Puts programs of the owner's, links and folders in the places of these and of their folder.
fn swap_programs(names: &'static [&'static str]) -> impl Fn(usize) + Sync {
    let programs = Path::new(banger_privileged_tests::vmm::PROGRAMS);
    // On the same file system, so that they can be exchanged.
    let bad = programs.with_file_name("bad");
    fs::create_dir(&bad).unwrap();
    set_mode(&bad, 0o755);
    let mut pairs = Vec::new();
    let all = [("firecracker", tells_of_root()), ("jailer", ends_with(78))];
    for (name, program) in all.iter().filter(|(name, _)| names.contains(name)) {
        let of = |kind: &str| bad.join(format!("{name}-{kind}"));
        fs::write(of("file"), program).unwrap();
        chown(of("file"), Some(OWNER), Some(OWNER)).unwrap();
        set_mode(of("file"), 0o755);
        fs::hard_link(of("file"), of("hard-link")).unwrap();
        symlink(of("file"), of("link")).unwrap();
        fs::create_dir(of("folder")).unwrap();
        let kinds = ["file", "hard-link", "link", "folder"];
        pairs.extend(kinds.map(|kind| (programs.join(name), of(kind))));
    }
    // A folder with the same programs, but the owner's.
    let owners = bad.join("owners");
    fs::create_dir(&owners).unwrap();
    for (name, program) in all {
        fs::write(owners.join(name), program).unwrap();
        set_mode(owners.join(name), 0o755);
    }
    chown(&owners, Some(OWNER), Some(OWNER)).unwrap();
    symlink(&owners, bad.join("owners-link")).unwrap();
    fs::write(bad.join("no-folder"), b"").unwrap();
    fs::hard_link(bad.join("no-folder"), bad.join("no-folder-either")).unwrap();
    let others = ["owners", "owners-link", "no-folder", "no-folder-either"];
    pairs.extend(others.map(|other| (programs.to_owned(), bad.join(other))));
    move |step: usize| {
        let (good, bad) = &pairs[step % pairs.len()];
        let (at, flags) = (rustix::fs::CWD, rustix::fs::RenameFlags::EXCHANGE);
        let exchange = || rustix::fs::renameat_with(at, good, at, bad, flags).unwrap();
        let pause = |micros| std::thread::sleep(std::time::Duration::from_micros(micros));
        exchange();
        pause(u64::try_from(step % 7).unwrap() * 100);
        exchange();
        pause(300);
    }
}

#[test]
fn a_swapped_program_is_never_found() {
    let Some(scene) = scene() else { return };
    let path = format!("{}/firecracker", banger_privileged_tests::vmm::PROGRAMS);
    let kind = banger_gates::VmmKind::Firecracker;
    let places = [banger_privileged_tests::vmm::place(&path, kind, scene.policy())];
    let (mut found, mut refused) = (0_usize, 0_usize);
    let swap = swap_programs(&["firecracker", "jailer"]);
    race_until_seen(rounds(PLAIN), swap, |_| {
        match scene.host().resolve_firecracker_binary(&places) {
            Ok(place) => {
                assert_eq!(place, Path::new(&path));
                found += 1;
            }
            Err(banger_host::HostError::Refused(_)) => refused += 1,
            Err(error) => panic!("{error:?}"),
        }
        found > 0 && refused > 0
    });
    assert!(found > 0 && refused > 0, "{found} found, {refused} refused");
}

/// Only root could swap it: its folder is root's alone. It is run as it was opened, so that even then
/// no other program runs as root.
#[test]
fn a_swapped_jailer_is_never_executed() {
    launch_swapped(&["jailer"], |_, error| {
        assert!(!error.contains("exit status: 78"), "another jailer ran: {error}");
    });
}

/// Firecracker is named to the jailer, which copies and runs it: whatever that is runs as the owner,
/// in the jail.
#[test]
fn a_swapped_firecracker_never_runs_as_root() {
    launch_swapped(&["firecracker"], |scene, error| {
        assert!(!scene.log("one").contains(AS_ROOT.trim_end()), "{error}");
    });
}

/// Launches over and over while one of the programs is swapped; `check` sees each failure.
fn launch_swapped(names: &'static [&'static str], check: impl Fn(&Scene, &str)) {
    let Some(scene) = scene() else { return };
    let grant = scene.grant(scene.params("one"));
    let (mut launched, mut failed) = (0_usize, std::collections::BTreeMap::<String, usize>::new());
    race_until_seen(rounds(SPAWNING), swap_programs(names), |_| {
        match scene.host().launch_firecracker(&grant) {
            Ok(pid) => {
                launched += 1;
                let pid = i32::try_from(pid).unwrap();
                let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
                assert!(status.contains(&format!("Uid:\t{OWNER}\t{OWNER}\t{OWNER}")), "{status}");
                scene.host().kill_process(&scene.pid(pid)).unwrap();
                wait_until_gone(pid);
            }
            Err(error) => {
                let error = banger_host::chain(&error);
                check(&scene, &error);
                *failed.entry(error.chars().take(60).collect()).or_default() += 1;
            }
        }
        scene.clean_up("one").unwrap();
        launched > 0 && !failed.is_empty()
    });
    assert!(launched > 0 && !failed.is_empty(), "{launched} launched, {failed:#?}");
    scene.assert_clean();
}
