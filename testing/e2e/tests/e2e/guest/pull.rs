//! The first use of all: nothing is here, two runs want the same image.

use std::time::Duration;

use banger_harness::{Contents, Environment, GUEST_DEADLINE, wait_for};
use rustix::process::Signal;

const PULL: Duration = Duration::from_secs(1200);

#[test]
fn two_runs_share_one_pull_of_a_missing_image() {
    let environment = Environment::new(Contents::Kernel);
    // It pulls, and so is in the host's own network.
    environment.banger(["config", "set", "network.mode", "user"]).ok();
    let runs: Vec<_> = ["one", "two"]
        .map(|name| {
            environment
                .banger(["vm", "run", "--rm", "--name", name, "--", "hostname"])
                .deadline(PULL)
                .spawn()
        })
        .into();
    let pulls = wait_for("the pull", GUEST_DEADLINE, || {
        let count = environment
            .processes()
            .iter()
            .filter(|process| process.command.contains("mmdebstrap"))
            .count();
        (count > 0).then_some(count)
    });
    assert!(pulls > 0);
    let finished: Vec<_> = runs.into_iter().map(|run| run.finish().code(0)).collect();
    assert_eq!(finished[0].out(), "one\n");
    assert_eq!(finished[1].out(), "two\n");
    assert!(finished.iter().any(|run| !run.err().is_empty()), "a pull shows its progress");
    let images = environment.banger(["image", "list", "--json"]).ok().json();
    assert_eq!(images.as_array().unwrap().len(), 1, "{images}");
    environment.finish();
}

#[test]
fn an_interrupted_pull_leaves_nothing() {
    let environment = Environment::new(Contents::Kernel);
    let pull = environment.banger(["image", "pull", banger_harness::DEFAULT_IMAGE]).spawn();
    wait_for("mmdebstrap", GUEST_DEADLINE, || {
        environment
            .processes()
            .iter()
            .any(|process| process.command.contains("mmdebstrap"))
            .then_some(())
    });
    std::thread::sleep(Duration::from_secs(4));
    pull.signal(Signal::INT);
    let _ = pull.finish().code(130);
    assert_eq!(
        environment.banger(["image", "list", "--json"]).ok().json().as_array().unwrap().len(),
        0
    );
    environment.finish();
}

#[test]
fn a_killed_pull_leaves_nothing() {
    let environment = Environment::new(Contents::Kernel);
    let pull = environment.banger(["image", "pull", banger_harness::DEFAULT_IMAGE]).spawn();
    wait_for("mmdebstrap", GUEST_DEADLINE, || {
        let found = environment.processes();
        found.iter().any(|process| process.command.contains("mmdebstrap")).then_some(())
    });
    std::thread::sleep(Duration::from_secs(2));
    pull.signal(Signal::KILL);
    let _ = pull.finish().signal(9);
    // The child notices the end of its reader or of its parent.
    wait_for("mmdebstrap's end", GUEST_DEADLINE, || {
        let found = environment.processes();
        (!found.iter().any(|process| process.command.contains("mmdebstrap"))).then_some(())
    });
    let images = environment.banger(["image", "list", "--json"]).ok().json();
    assert_eq!(images.as_array().map(Vec::len), Some(0), "{images}");
    environment.finish();
}

#[test]
fn a_mirror_that_is_not_there_is_named() {
    let environment = Environment::new(Contents::Empty);
    let arguments = ["image", "pull", "debian-bookworm", "--mirror", "http://127.0.0.1:9/debian"];
    let failed = environment.banger(arguments).run();
    failed.code(1).is_a_clear_error().says(&["127.0.0.1:9"]);
    environment.finish();
}
