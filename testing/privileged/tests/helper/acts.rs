//! All that the helper and what it starts execute, unmount and give away, seen by strace while every
//! method is driven.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

use banger_helper_api::Method;
use banger_privileged_tests::running::RunningHelper;
use banger_privileged_tests::trace::{self, Trace};
use banger_privileged_tests::{OWNER, vmm};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use serde_json::{Value, json};

use crate::enter_own_world;

/// The table of docs/privileges.md: program, purpose, user.
fn documented() -> Vec<[String; 3]> {
    let page = include_str!("../../../../docs/privileges.md");
    let (_, section) = page.split_once("### Programs that the helper runs\n").unwrap();
    let rows = section.lines().skip_while(|line| !line.starts_with('|')).skip(2);
    rows.take_while(|line| line.starts_with('|'))
        .map(|line| {
            let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
            <[&str; 3]>::try_from(cells).unwrap().map(str::to_owned)
        })
        .collect()
}

/// The programs that the table names, and as whom they run; `jailer` and `firecracker` are without a
/// folder.
fn documented_programs() -> BTreeMap<String, String> {
    let mut programs = BTreeMap::new();
    for [cell, _, user] in documented() {
        for name in cell.split('`').skip(1).step_by(2) {
            programs.insert(name.to_owned(), user.clone());
        }
    }
    programs
}

fn run(program: &str, arguments: &[&str]) {
    let output = Command::new(program).args(arguments).output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?}: {error}");
}

/// An image of the owner's with a file whose replacement makes the helper check the image.
fn image(path: &Path) {
    let text = path.to_str().unwrap();
    std::fs::File::create(path).unwrap().set_len(16 << 20).unwrap();
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("file"), "content").unwrap();
    std::fs::write(folder.path().join("value"), vec![b'v'; 700]).unwrap();
    let tree = folder.path().to_str().unwrap();
    run("/usr/sbin/mke2fs", &["-q", "-F", "-t", "ext4", "-d", tree, text]);
    let attribute = format!("ea_set -f {tree}/value /file user.big");
    run("/usr/sbin/debugfs", &["-w", "-R", &attribute, text]);
    std::os::unix::fs::chown(path, Some(OWNER), Some(OWNER)).unwrap();
}

/// Puts programs that do nothing where resolvectl and firewall-cmd are on other hosts, and says that
/// their services run: what they would answer is not asked for here, only how they are called.
fn place_stand_ins() {
    let own = tempfile::tempdir().unwrap();
    mount("tmpfs", own.path(), "tmpfs", MountFlags::empty(), None).unwrap();
    let (upper, work) = (own.path().join("upper"), own.path().join("work"));
    for folder in [&upper, &work] {
        std::fs::create_dir(folder).unwrap();
        vmm::set_mode(folder, 0o755);
    }
    let (upper, work) = (upper.display(), work.display());
    let options = format!("lowerdir=/usr/bin,upperdir={upper},workdir={work}");
    let options = std::ffi::CString::new(options).unwrap();
    mount("overlay", "/usr/bin", "overlay", MountFlags::empty(), options.as_c_str()).unwrap();
    // The overlay holds it; without its name the folder can be removed.
    unmount(own.path(), UnmountFlags::DETACH).unwrap();
    // mov eax, 60; xor edi, edi; syscall
    let program = vmm::elf(&[0xb8, 60, 0, 0, 0, 0x31, 0xff, 0x0f, 0x05]);
    for name in ["resolvectl", "firewall-cmd"] {
        let path = Path::new("/usr/bin").join(name);
        let _ = std::fs::remove_file(&path);
        std::fs::write(&path, &program).unwrap();
        vmm::set_mode(path, 0o755);
    }
    mount("tmpfs", "/run", "tmpfs", MountFlags::empty(), None).unwrap();
    std::fs::create_dir_all("/run/systemd/resolve").unwrap();
    for file in ["/run/systemd/resolve/io.systemd.Resolve", "/run/firewalld.pid"] {
        std::fs::write(file, "").unwrap();
    }
}

/// Has every method done, with each of its tools; what this machine lacks devices for fails.
fn drive(helper: &RunningHelper) {
    let directories = &helper.directories;
    let done = |method, params: Value| {
        let outcome = helper.call(method, &params);
        outcome.unwrap_or_else(|error| panic!("{method} {params}: {error:?}\n{}", helper.log()))
    };
    let bridge = json!({"bridge_name": "br-fc", "bridge_ip": "172.16.0.1", "cidr": "24"});
    done(Method::EnsureBridge, bridge.clone());
    let mut tap = bridge;
    tap["tap_name"] = "tap-fc-a".into();
    done(Method::CreateTap, tap);
    let nat = json!({"guest_ip": "172.16.0.2", "tap": "tap-fc-a", "enable": true});
    done(Method::EnsureNat, nat);
    let server = json!({"bridge_name": "br-fc", "server_addr": "127.0.0.1:42069"});
    done(Method::SyncResolverRouting, server);
    done(Method::ClearResolverRouting, json!({"bridge_name": "br-fc"}));

    let state = |name: &str| directories.state.join(name);
    for name in ["image", "cow"] {
        image(&state(name));
    }
    done(Method::ReadExt4File, json!({"image_path": state("image"), "guest_path": "/file"}));
    let files = json!([{"guest_path": "/file", "data": "aGVsbG8="}]);
    done(Method::WriteExt4Files, json!({"image_path": state("image"), "files": files}));
    let name = "fc-rootfs-acts";
    let parts = json!({"rootfs_path": state("image"), "cow_path": state("cow"), "dm_name": name});
    let handles = helper.call(Method::CreateDmSnapshot, &parts);
    let _ = helper.call(Method::FsckSnapshot, &json!({"dm_dev": format!("/dev/mapper/{name}")}));
    let _ = helper.call(Method::RemoveDmSnapshot, &json!({"target": name}));
    let blank = json!({"base_loop": "", "cow_loop": "", "dm_name": name, "dm_dev": ""});
    let _ = helper.call(Method::CleanupDmSnapshot, &handles.unwrap_or(blank));

    machine(helper, "one");
    done(Method::DeleteTap, json!({"tap_name": "tap-fc-a"}));
}

/// Launches a machine and ends it, with every method that such a machine knows.
fn machine(helper: &RunningHelper, id: &str) {
    let directories = &helper.directories;
    let done = |method, params: Value| {
        let outcome = helper.call(method, &params);
        outcome.unwrap_or_else(|error| panic!("{method} {params}: {error:?}\n{}", helper.log()))
    };
    done(Method::ResolveFirecrackerBinary, json!({}));
    let kernel = directories.state.join("kernel");
    std::fs::write(&kernel, vmm::tiny_kernel(b"here\n")).unwrap();
    std::os::unix::fs::chown(&kernel, Some(OWNER), Some(OWNER)).unwrap();
    let pid = done(Method::LaunchFirecracker, vmm::launch_params(directories, id))["pid"].clone();
    let socket = directories.runtime.join(format!("fc-{id}.sock"));
    assert_eq!(done(Method::FindFirecrackerPid, json!({"api_sock": socket}))["pid"], pid);
    let running = json!({"pid": pid, "api_sock": socket});
    assert_eq!(done(Method::ProcessRunning, running.clone())["running"], true);
    let other = directories.runtime.join("other.sock");
    let listener = std::os::unix::net::UnixListener::bind(&other).unwrap();
    done(Method::EnsureSocketAccess, json!({"socket_path": other, "label": "other"}));
    drop(listener);
    std::fs::remove_file(&other).unwrap();
    // A first process of a pid namespace that does not know a signal is not ended by it.
    done(Method::SignalProcess, json!({"pid": pid, "signal": "TERM"}));
    done(Method::KillProcess, json!({"pid": pid}));
    let has_ended = || {
        let running = helper.call(Method::ProcessRunning, &running).unwrap();
        (running["running"] == false).then_some(())
    };
    banger_harness::wait_for("the machine's end", banger_harness::GUEST_DEADLINE, has_ended);
    let root = directories.jails.join(format!("firecracker/{id}/root"));
    done(Method::CleanupJailerChroot, json!({"chroot_root": root}));
}

/// A traced helper in a world of its own with the real firecracker and jailer, or a word why not.
fn traced_helper() -> Option<RunningHelper> {
    let programs = vmm::programs()?;
    for (capability, path) in [("strace", "strace"), ("nft", "nft"), ("e2fsprogs", "debugfs")] {
        if banger_harness::find_program(path).is_none() {
            banger_harness::skip(capability, "the helper's calls are written down by strace");
            return None;
        }
    }
    enter_own_world();
    vmm::put_programs(&programs);
    Some(trace::start_helper(&banger_harness::find_program("strace")?))
}

/// Fails unless each execution is one of the table's, as the page says; which they were.
fn assert_documented(trace: &Trace) -> BTreeSet<String> {
    let documented = documented_programs();
    let mut seen = BTreeSet::new();
    let executions = trace.executions();
    let [helper, executions @ ..] = &executions[..] else { panic!("nothing was executed") };
    assert!(helper.path.ends_with("bangerd-root"), "{helper:?}");
    assert!(helper.environment.iter().any(|entry| entry == "BANGER_TRACED=1"), "{helper:?}");
    let folders = banger_gates::Policy::VMM_DIRECTORIES.map(Path::new);
    for execution in executions {
        let path = execution.path.to_str().unwrap();
        let name = execution.path.file_name().unwrap().to_str().unwrap();
        assert!(execution.environment.is_empty(), "an environment: {execution:?}");
        let is_helper = execution.by.ends_with("bangerd-root");
        let of_owner = (Some(OWNER), Some(OWNER));
        let is_user =
            match documented.get(path).or_else(|| documented.get(name)).map(String::as_str) {
                Some("root") => execution.user == (None, None),
                Some("the owner") => execution.user == of_owner,
                // The jailer and, when it has given that up, firecracker.
                Some("root, then the owner") if name == "jailer" => execution.user == (None, None),
                Some("root, then the owner") => execution.user == of_owner,
                _ => panic!("not in docs/privileges.md: {execution:?}"),
            };
        assert!(is_user, "as another user: {execution:?}");
        match name {
            "jailer" => {
                let folder = execution.path.parent().unwrap();
                assert!(is_helper && folders.contains(&folder), "{execution:?}");
                assert_eq!(execution.words[0], "jailer");
                seen.insert(name.to_owned());
            }
            // In the jail, which is its root directory then.
            "firecracker" => {
                assert_eq!(path, "/firecracker", "{execution:?}");
                assert!(execution.by.ends_with("jailer"), "{execution:?}");
                seen.insert(name.to_owned());
            }
            _ => {
                assert!(is_helper, "{execution:?}");
                assert!(documented.contains_key(path), "not in docs/privileges.md: {execution:?}");
                assert_eq!(execution.words[0], path, "{execution:?}");
                seen.insert(path.to_owned());
            }
        }
    }
    seen
}

#[test]
fn only_documented_programs_are_executed_with_nothing_in_their_environment() {
    let Some(mut helper) = traced_helper() else { return };
    drive(&helper);
    let note = "nothing done: systemd-resolved does not run";
    let has_resolved = Path::new("/run/systemd/resolve/io.systemd.Resolve").exists();
    assert_eq!(helper.log().matches(note).count(), if has_resolved { 0 } else { 2 });
    // The two that this machine may lack.
    place_stand_ins();
    drive(&helper);
    let all: BTreeSet<String> = Method::ALL.iter().map(|method| method.name().to_owned()).collect();
    let log = helper.log();
    assert!(all.iter().all(|method| log.contains(&format!("\"method\":\"{method}\""))), "{log}");
    let trace = trace::end_helper(&mut helper);
    assert_eq!(
        assert_documented(&trace),
        documented_programs().into_keys().collect::<BTreeSet<String>>(),
        "each program of the table is run"
    );
    assert_nothing_follows_a_name(&trace, &helper);
}

/// What is given away or opened to others is named by an open file, or is no link, or lies where
/// root alone can put anything.
fn assert_nothing_follows_a_name(trace: &Trace, helper: &RunningHelper) {
    let mut count = 0;
    let names = ["chown", "lchown", "fchown", "fchownat", "chmod", "fchmod", "fchmodat"];
    for (at, call) in trace.calls_of("bangerd-root", &names) {
        count += 1;
        let keeps = ["AT_SYMLINK_NOFOLLOW", "AT_EMPTY_PATH"];
        match call.name.as_str() {
            "fchown" | "fchmod" | "lchown" => {}
            "fchownat" => {
                assert!(keeps.iter().any(|flag| call.arguments.contains(flag)), "{call:?}")
            }
            "chmod" | "fchmodat" => {
                let is_open_file = call.arguments.contains("\"/proc/self/fd/");
                let path = trace.path(at);
                let roots = [&helper.directories.own, &helper.directories.jails];
                let is_roots = roots.iter().any(|root| path.starts_with(root));
                assert!(is_open_file || is_roots, "{call:?}");
            }
            _ => panic!("it follows links: {call:?}"),
        }
    }
    assert!(count > 5, "{count} calls");
}

/// Where a jail has mounts in mounts, and several at one place.
#[test]
fn mounts_of_a_jail_are_taken_down_the_deepest_first() {
    let Some(mut helper) = traced_helper() else { return };
    let jail = helper.directories.jails.join("firecracker/left");
    let root = jail.join("root");
    std::fs::create_dir_all(&root).unwrap();
    for folder in [jail.parent().unwrap(), &jail] {
        vmm::set_mode(folder, 0o711);
    }
    let mut made = Vec::new();
    // The order in which they are made is no order of depth.
    for names in ["b", "b", "a", "a/a", "b/a", "a/a/a", "a/a/b", "b/c", "a/a/a/a", "d e"] {
        let place = root.join(names);
        std::fs::create_dir_all(&place).unwrap();
        mount("tmpfs", &place, "tmpfs", MountFlags::empty(), c"size=1m,mode=755").unwrap();
        made.push(place);
    }
    let root = json!({"chroot_root": root});
    helper.call(Method::CleanupJailerChroot, &root).unwrap();
    assert!(!jail.exists());
    let trace = trace::end_helper(&mut helper);
    let mut unmounted: Vec<PathBuf> = Vec::new();
    for (at, call) in trace.calls_of("bangerd-root", &["umount2"]) {
        assert!(call.arguments.ends_with(", MNT_DETACH|UMOUNT_NOFOLLOW"), "{call:?}");
        assert!(call.arguments.starts_with("\"/proc/self/fd/"), "{call:?}");
        assert_eq!(call.result, "0", "{call:?}");
        unmounted.push(trace.path(at));
    }
    let depths: Vec<usize> = unmounted.iter().map(|path| path.components().count()).collect();
    assert!(depths.is_sorted_by(|one, next| one >= next), "{unmounted:#?}");
    made.sort();
    unmounted.sort();
    assert_eq!(unmounted, made);
}
