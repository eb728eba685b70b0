//! `bangerd` on demand: who it runs as, how many there are, what survives it.

use std::os::unix::fs::MetadataExt;
use std::time::Duration;

use banger_harness::{Contents, Environment, User, is_root, skip, wait_for};
use rustix::process::Signal;

#[test]
fn it_starts_on_demand_and_never_as_root() {
    let environment = Environment::new(Contents::Empty);
    assert!(environment.daemon().is_none());
    environment.banger(["vm", "list"]).ok();
    let daemon = environment.daemon().expect("a verb starts the daemon");
    let uids = daemon.status("Uid").unwrap();
    for uid in uids.split_whitespace() {
        assert_ne!(uid, "0", "bangerd runs as {uids}");
    }
    assert_eq!(daemon.status("CapEff").as_deref(), Some("0000000000000000"));
    assert_eq!(daemon.status("NoNewPrivs").as_deref(), Some("1"));
    if is_root() {
        let groups = daemon.status("Groups").unwrap();
        assert!(
            !groups.split_whitespace().any(|group| group == "0"),
            "bangerd keeps root's group: {groups}"
        );
    }
    for folder in [environment.state(), environment.cache(), environment.runtime()] {
        let found = folder.metadata().unwrap();
        assert_eq!(found.mode() & 0o077, 0, "{} is private", folder.display());
        assert_ne!(found.uid(), 0, "{} is not root's", folder.display());
    }
    environment.finish();
}

#[test]
fn many_first_commands_share_one_daemon() {
    let environment = Environment::new(Contents::Empty);
    let running: Vec<_> = (0..8).map(|_| environment.banger(["vm", "list"]).spawn()).collect();
    for one in running {
        let _ = one.finish().code(0);
    }
    let count = |word: &str| {
        let processes = environment.processes().into_iter();
        processes.filter(|process| process.command.contains(word)).count()
    };
    assert_eq!(count("--cache-dir"), 1, "daemons");
    assert_eq!(count("--owner-uid"), usize::from(is_root()), "root helpers");
    environment.finish();
}

#[test]
fn status_and_stop_tell_the_truth() {
    let environment = Environment::new(Contents::Empty);
    environment.banger(["vm", "list"]).ok();
    let status = environment.banger(["daemon", "status"]).ok().out();
    let pid = environment.daemon().unwrap().pid.to_string();
    assert!(status.contains(&pid), "{status}");
    environment.banger(["daemon", "stop"]).ok();
    wait_for("the daemon's end", Duration::from_secs(20), || {
        environment.daemon().is_none().then_some(())
    });
    environment.banger(["daemon", "stop"]).ok();
    environment.finish();
}

#[test]
fn a_killed_daemon_is_replaced_by_the_next_command() {
    let environment = Environment::new(Contents::Empty);
    environment.banger(["vm", "list"]).ok();
    let first = environment.daemon().unwrap();
    first.signal(Signal::KILL);
    wait_for("the daemon's death", Duration::from_secs(20), || (!first.is_alive()).then_some(()));
    assert!(environment.runtime().join("bangerd.sock").exists(), "kill -9 leaves the socket");
    environment.banger(["vm", "list"]).ok();
    assert_ne!(environment.daemon().unwrap().pid, first.pid);
    environment.finish();
}

#[test]
fn a_corrupt_store_loses_no_image_and_is_reported() {
    let environment = Environment::new(Contents::Busybox);
    environment.banger(["image", "list"]).ok();
    environment.stop_daemon();
    let store = environment.state().join("banger.db");
    for damage in
        [b"this is no database at all, not even nearly one".to_vec(), Vec::new(), vec![0; 8192]]
    {
        let owner = store.metadata().unwrap();
        std::fs::write(&store, &damage).unwrap();
        std::os::unix::fs::chown(&store, Some(owner.uid()), Some(owner.gid())).unwrap();
        let images = environment.banger(["image", "list", "--json"]).ok().json();
        assert_eq!(images[0]["name"], "busybox");
        if !damage.is_empty() {
            let report = environment.banger(["doctor"]).run().out();
            assert!(
                report.contains("WARN") && report.to_lowercase().contains("corrupt"),
                "{report}"
            );
        }
        environment.stop_daemon();
    }
    environment.finish();
}

#[test]
fn a_store_of_a_newer_version_is_refused_untouched() {
    let environment = Environment::new(Contents::Empty);
    environment.banger(["vm", "list"]).ok();
    environment.stop_daemon();
    let store = environment.state().join("banger.db");
    let mut content = std::fs::read(&store).unwrap();
    // user_version, SQLite's "Database File Format" section 1.3, offset 60.
    content[60..64].copy_from_slice(&9999_u32.to_be_bytes());
    let owner = store.metadata().unwrap();
    for suffix in ["-wal", "-shm"] {
        let _ = std::fs::remove_file(environment.state().join(format!("banger.db{suffix}")));
    }
    std::fs::write(&store, &content).unwrap();
    std::os::unix::fs::chown(&store, Some(owner.uid()), Some(owner.gid())).unwrap();
    environment.banger(["vm", "list"]).run().code(1).is_a_clear_error().says(&["newer"]);
    assert_eq!(std::fs::read(&store).unwrap(), content);
    // Nothing is wrong with the rest: without that file the daemon starts.
    std::fs::remove_file(&store).unwrap();
    environment.finish();
}

#[test]
fn another_user_cannot_talk_to_it() {
    if !is_root() {
        return skip("root", "makes another user");
    }
    let environment = Environment::new(Contents::Empty);
    environment.banger(["vm", "list"]).ok();
    let other = User::create(&environment.base().join("u"));
    let socket = environment.runtime().join("bangerd.sock");
    // Opening the way to the socket must not be enough.
    for path in [environment.runtime(), socket.clone()] {
        std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o777))
            .unwrap();
    }
    // perl-base is essential in Debian.
    let script = "my $s = IO::Socket::UNIX->new(Peer => $ARGV[0]) or exit 0;
        print $s qq{GET /v1/vms HTTP/1.1\r\nhost: banger\r\nconnection: close\r\n\r\n};
        print while <$s>;";
    let prefix = other.prefix();
    let mut arguments: Vec<&str> = prefix.iter().skip(1).map(String::as_str).collect();
    arguments.extend([
        "/usr/bin/perl",
        "-MIO::Socket::UNIX",
        "-e",
        script,
        socket.to_str().unwrap(),
    ]);
    let answer = environment.host("setpriv", &arguments).out();
    assert!(answer.is_empty() || answer.contains(" 403 "), "{answer}");
    drop(other);
    std::fs::set_permissions(
        environment.runtime(),
        std::os::unix::fs::PermissionsExt::from_mode(0o700),
    )
    .unwrap();
    environment.finish();
}
