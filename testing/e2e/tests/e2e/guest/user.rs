//! The same as an ordinary user.

use banger_harness::{Contents, Environment, User, is_root, repository, skip};

#[test]
fn an_ordinary_user_runs_machines_without_root() {
    if !is_root() {
        return skip("root", "makes another user; the other guest tests ran as an ordinary one");
    }
    let home = tempfile_home();
    let user = User::create(&home);
    let environment = Environment::for_user(&user, Contents::Busybox);
    let run = environment
        .banger(["vm", "run", "--name", "mine", "--image", "busybox", "--", "id", "-u"])
        .ok();
    assert_eq!(run.out(), "0\n");
    let (uid, _) = user.ids();
    for process in [environment.daemon().unwrap(), environment.vmm("mine")] {
        let uids = process.status("Uid").unwrap();
        assert!(
            uids.split_whitespace().all(|found| found == uid.to_string()),
            "{} runs as {uids}",
            process.command
        );
    }
    environment.banger(["vm", "stop", "mine"]).ok();
    environment.banger(["vm", "start", "mine"]).ok();
    environment.exec("mine", ["true"]).ok();
    environment.finish();
}

#[test]
fn an_ordinary_user_pulls_the_default_image() {
    if !is_root() {
        return skip("root", "makes another user");
    }
    let user = User::create(&tempfile_home());
    let environment = Environment::for_user(&user, Contents::Kernel);
    let run = environment.banger(["vm", "run", "--rm", "--", "cat", "/etc/os-release"]);
    let run = run.deadline(std::time::Duration::from_secs(1200)).ok();
    assert!(run.out().contains("bookworm"), "{run}");
    environment.finish();
}

/// A path for a home directory that is not there yet.
fn tempfile_home() -> std::path::PathBuf {
    std::path::PathBuf::from(format!("/var/tmp/bgr-home-{}", std::process::id()))
}

#[test]
#[ignore = "long: builds everything in a clone of the user's own; make test-long runs it"]
fn a_clone_of_an_ordinary_user_runs_the_demo() {
    if !is_root() {
        return skip("root", "makes another user");
    }
    let environment = Environment::new(Contents::Empty);
    let user = User::create(&environment.base().join("u"));
    let clone = user.home().join("banger");
    let (from, to) = (repository(), clone.display().to_string());
    environment
        .host("git", &["-c", "safe.directory=*", "clone", "-q", from.to_str().unwrap(), &to]);
    // The toolchain of root, where the user can read it.
    let sysroot = environment.host("rustc", &["--print", "sysroot"]).out();
    let toolchain = environment.base().join("toolchain");
    environment.host("cp", &["-a", "--link", sysroot.trim(), toolchain.to_str().unwrap()]);
    let (uid, gid) = user.ids();
    environment.host("chown", &["-R", &format!("{uid}:{gid}"), &to]);

    let mut words = user.prefix();
    words.extend(["make", "-C", &to, "demo"].map(str::to_owned));
    let mut command = std::process::Command::new(&words[0]);
    command.args(&words[1..]).env_clear().env("HOME", user.home()).env("LANG", "C.UTF-8");
    command.env("PATH", format!("{}/bin:/usr/sbin:/usr/bin:/sbin:/bin", toolchain.display()));
    let hour = std::time::Duration::from_secs(3600);
    let demo = banger_harness::Invocation::new(command).deadline(hour).ok();
    assert!(demo.out().contains("all tests passed on Linux"), "{demo}");
    assert!(demo.out().contains("VERSION_CODENAME=bookworm"), "{demo}");
    drop(user);
    environment.finish();
}
