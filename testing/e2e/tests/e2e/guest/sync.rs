//! A machine's repository follows the host's.

use std::fs;

use banger_harness::{Contents, Environment};
use rustix::process::Signal;

#[test]
fn a_machine_follows_the_host_and_keeps_its_own_work() {
    let environment = Environment::new(Contents::Busybox);
    let repository = environment.home().join("repo");
    let path = repository.to_str().unwrap();
    fs::create_dir_all(repository.join("src")).unwrap();
    fs::write(repository.join("src/main"), "1\n").unwrap();
    fs::write(repository.join("note"), "1\n").unwrap();
    for arguments in
        [&["init", "-q", "-b", "main"][..], &["add", "-A"], &["commit", "-q", "-m", "x"]]
    {
        let identity = ["-C", path, "-c", "user.name=t", "-c", "user.email=t@example.org"];
        environment.host("git", &[&identity, arguments].concat());
    }
    let vm = |arguments: &[&str]| environment.banger([&["vm"], arguments].concat());
    let inside =
        |script: &str| vm(&["exec", "box", "--timeout", "60", "--", "sh", "-c", script]).ok().out();
    let wait_for = |condition: &str| inside(&format!("until {condition}; do sleep 0.1; done"));
    environment.start_busybox("box");

    vm(&["sync", "box"]).run().code(1).is_a_clear_error().says(&["has no workspace"]);
    vm(&["sync", "box", path]).ok().says(&["2 files sent"]);
    let mut following = vm(&["sync", "box", "--watch", "--include-untracked"]).spawn();
    following.wait_for_error("VM box follows");
    following.wait_for_error("Ctrl-C ends it");
    fs::write(repository.join("src/main"), "2\n").unwrap();
    wait_for("grep -q 2 src/main");
    fs::create_dir_all(repository.join("new/deep")).unwrap();
    fs::write(repository.join("new/deep/file"), "x\n").unwrap();
    wait_for("[ -e new/deep/file ]");
    fs::rename(repository.join("new"), repository.join("moved")).unwrap();
    wait_for("[ -e moved/deep/file ] && [ ! -e new ]");
    // What the machine has changed is its own; the others go on.
    inside("echo guest > note");
    fs::write(repository.join("note"), "2\n").unwrap();
    following.wait_for_error("VM box has changed note; left alone");
    fs::write(repository.join("src/main"), "3\n").unwrap();
    wait_for("grep -q 3 src/main");
    assert_eq!(inside("cat note"), "guest\n");
    // Others can look meanwhile.
    assert!(vm(&["workspace", "status", "box"]).ok().out().contains("modified  note"));
    following.signal(Signal::INT);
    let ended = following.finish().code(0);
    assert_eq!(ended.err().matches("left alone").count(), 1, "{}", ended.err());
    vm(&["workspace", "prepare", "box"]).run().code(1).says(&["note"]);
    vm(&["sync", "box", "--force"]).ok();
    assert_eq!(inside("cat note"), "2\n");

    // It ends with the machine, and says so.
    let mut following = vm(&["sync", "box", "--watch"]).spawn();
    following.wait_for_error("VM box follows");
    vm(&["stop", "box"]).ok();
    following.finish().code(1).is_a_clear_error().says(&["VM box is stop"]);
    vm(&["sync", "box", "--watch"]).run().code(1).is_a_clear_error().says(&["vm start box"]);
    environment.finish();
}
