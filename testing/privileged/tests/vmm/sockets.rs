//! Sockets that are given to the owner.

use std::fs;
use std::os::unix::fs::{MetadataExt, chown, symlink};
use std::os::unix::net::UnixListener;
use std::time::Duration;

use banger_helper_api::ErrorCode;
use banger_host::HostError;
use banger_privileged_tests::{Fixture, OWNER};

use banger_privileged_tests::vmm::tree;

fn ensure(fixture: &Fixture, name: &str) -> Result<(), HostError> {
    let path = fixture.runtime.join(name);
    let path = banger_gates::ManagedPath::parse("p", path.to_str().unwrap(), fixture.policy());
    fixture.host.ensure_socket_access(&path.unwrap())
}

#[test]
fn a_socket_becomes_the_owners_alone_and_nothing_else_does() {
    if !banger_harness::is_root() {
        banger_harness::skip("root", "files are given away");
        return;
    }
    let fixture = Fixture::new();
    let (state, runtime) = (&fixture.state, &fixture.runtime);
    let outside = UnixListener::bind(state.join("outside")).unwrap();
    let listeners: Vec<UnixListener> = ["good", "two-names", "foreign"]
        .iter()
        .map(|name| UnixListener::bind(runtime.join(name)).unwrap())
        .collect();
    fs::hard_link(runtime.join("two-names"), state.join("second-name")).unwrap();
    chown(runtime.join("foreign"), Some(OWNER + 1), None).unwrap();
    fs::write(runtime.join("file"), b"").unwrap();
    fs::create_dir(runtime.join("directory")).unwrap();
    symlink(state.join("outside"), runtime.join("link")).unwrap();
    symlink("good", runtime.join("link-to-good")).unwrap();
    symlink("itself", runtime.join("itself")).unwrap();
    symlink(state, runtime.join("middle")).unwrap();
    let root = state.parent().unwrap();
    let before = tree(root);
    for (name, rule) in [
        ("two-names", "more than one name"),
        ("foreign", "another user"),
        ("file", "not a socket"),
        ("directory", "not a socket"),
        ("link", "link"),
        ("link-to-good", "link"),
        ("itself", "link"),
        ("middle/outside", "link"),
    ] {
        let error = ensure(&fixture, name).unwrap_err();
        let HostError::Refused(refusal) = &error else { panic!("{name}: {error:?}") };
        assert_eq!(refusal.code, ErrorCode::InvalidPath, "{name}");
        assert!(error.to_string().contains(rule), "{name}: {error}");
    }
    let error = ensure(&fixture, "missing").unwrap_err();
    assert!(matches!(error, HostError::Failed { .. }), "{error:?}");
    assert_eq!(tree(root), before);
    for _ in 0..2 {
        ensure(&fixture, "good").unwrap();
        let metadata = runtime.join("good").metadata().unwrap();
        assert_eq!((metadata.uid(), metadata.gid()), (OWNER, OWNER));
        assert_eq!(metadata.mode() & 0o7777, 0o600);
    }
    drop((outside, listeners));
}

#[test]
fn a_socket_that_appears_a_moment_later_is_waited_for() {
    if !banger_harness::is_root() {
        banger_harness::skip("root", "files are given away");
        return;
    }
    let fixture = Fixture::new();
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| ensure(&fixture, "late"));
        std::thread::sleep(Duration::from_millis(100));
        let listener = UnixListener::bind(fixture.runtime.join("late")).unwrap();
        waiting.join().unwrap().unwrap();
        assert_eq!(fixture.runtime.join("late").metadata().unwrap().uid(), OWNER);
        drop(listener);
    });
}
