//! The same as an ordinary user.

use banger_harness::{Contents, Environment, User, is_root, skip};

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
#[ignore = "long: pulls the default image in a user namespace; make test-long runs it"]
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
