//! Preparing again: what the guest has is not what was made for it.

use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use banger_workspace::{Options, WorkspaceError};

use crate::support::{Guest, Repository, files, git};

#[test]
fn what_was_made_for_a_refused_prepare_comes_with_the_next() {
    let repository = Repository::new();
    repository.write("a", "1");
    repository.commit();
    let Some(mut guest) = Guest::new() else { return };
    guest.prepare(repository.open());
    guest.write("a", "guest");
    repository.write("a", "2");
    repository.write("b", "only in the new commit");
    repository.commit();
    let refused = guest.try_prepare(repository.open(), false).unwrap_err();
    assert!(matches!(refused, WorkspaceError::NewerWork { .. }), "{refused:?}");
    guest.try_prepare(repository.open(), true).unwrap();
    git(&guest.path(), &["fsck", "--strict"]);
    assert_eq!(
        git(&guest.path(), &["rev-parse", "HEAD"]).stdout,
        git(&repository.path(), &["rev-parse", "HEAD"]).stdout
    );
    assert_eq!(git(&guest.path(), &["status", "--porcelain"]).stdout, b"");
}

#[test]
fn what_is_staged_after_it_was_carried_is_an_object_of_the_guests() {
    let repository = Repository::new();
    repository.write("a", "1");
    repository.commit();
    let Some(mut guest) = Guest::new() else { return };
    guest.prepare(repository.open());
    repository.write("a", "edited");
    guest.prepare(repository.open());
    repository.git(&["add", "a"]);
    guest.prepare(repository.open());
    assert_eq!(git(&guest.path(), &["show", ":a"]).stdout, b"edited");
    git(&guest.path(), &["fsck", "--strict"]);
}

#[test]
fn a_guest_that_packed_anew_gets_what_it_lacks_and_nothing_twice() {
    let repository = Repository::new();
    let noise: Vec<u8> =
        (0..200_000_u32).flat_map(|n| n.wrapping_mul(2_654_435_761).to_be_bytes()).collect();
    repository.write("big", &noise);
    repository.commit();
    let Some(mut guest) = Guest::new() else { return };
    let first = guest.prepare(repository.open());
    repository.write("small", "x");
    repository.commit();
    let second = guest.prepare(repository.open());
    assert!(second.bytes * 10 < first.bytes, "{} of {}", second.bytes, first.bytes);
    git(&guest.path(), &["repack", "-a", "-d", "--quiet"]);
    fs::write(guest.path().join("small"), "y").unwrap();
    repository.write("small", "y");
    repository.commit();
    guest.prepare(repository.open());
    git(&guest.path(), &["fsck", "--strict"]);
    assert_eq!(files(&guest.path()), files(&repository.path()));
}

#[test]
fn what_the_guest_changes_while_files_go_is_its_work() {
    let repository = Repository::new();
    repository.write("a", "1\n");
    repository.write("same", "1\n");
    repository.commit();
    let Some(mut guest) = Guest::new() else { return };
    guest.prepare(repository.open());
    repository.write("a", "2\n");
    repository.write("z", vec![0; 64 << 20]);
    repository.commit();
    let edited = AtomicBool::new(false);
    let top = guest.path();
    guest.prepare_while(repository.open(), &|_| {
        // Once it has landed, and the next one is on its way.
        let has_landed = fs::read(top.join("a")).is_ok_and(|content| content == b"2\n");
        if has_landed && !edited.swap(true, Ordering::Relaxed) {
            fs::write(top.join("a"), "3\n").unwrap();
            fs::write(top.join("same"), "3\n").unwrap();
        }
    });
    assert!(edited.into_inner());
    let work = guest.work();
    let names: Vec<&[u8]> = work.changes().iter().map(|change| &change.name[..]).collect();
    assert_eq!(names, [&b"a"[..], b"same"]);
    repository.write("a", "4\n");
    let refused = guest.try_prepare(repository.open(), false);
    assert!(matches!(refused, Err(WorkspaceError::NewerWork { .. })), "{refused:?}");
}

#[test]
fn ignored_files_of_the_guest_are_not_overwritten_untold() {
    let cases: [(&str, &str, &str); 5] = [
        ("build/out", "build/out", "ignored, and tracked now"),
        ("build", "build/out", "a file where a directory comes"),
        ("build/out", "build", "in a directory where a file comes"),
        ("own/file", "own/file", "in a repository of the guest's"),
        ("plain", "plain/file", "not ignored, where a directory comes"),
    ];
    for (in_guest, on_host, why) in cases {
        let repository = Repository::new();
        repository.write(".gitignore", "build\n");
        repository.commit();
        let Some(mut guest) = Guest::new() else { return };
        guest.prepare(repository.open());
        guest.write(in_guest, "by the guest");
        if in_guest.starts_with("own/") {
            git(&guest.path().join("own"), &["init", "--quiet"]);
        }
        assert!(guest.try_prepare(repository.open(), false).is_ok(), "{why}");
        repository.write(on_host, "by the host");
        repository.git(&["add", "--force", on_host]);
        let refused = guest.try_prepare(repository.open(), false);
        let error = refused.expect_err(why);
        assert!(
            matches!(&error, WorkspaceError::NewerWork { what } if what == in_guest),
            "{why}: {error:?}"
        );
        assert_eq!(fs::read_to_string(guest.path().join(in_guest)).unwrap(), "by the guest");
        guest.try_prepare(repository.open(), true).unwrap();
        assert_eq!(fs::read_to_string(guest.path().join(on_host)).unwrap(), "by the host");
    }
}

#[test]
fn a_directory_that_holds_nothing_gives_way_to_a_file() {
    let repository = Repository::new();
    repository.write("a", "1");
    repository.write("d/x", "1");
    repository.commit();
    let Some(mut guest) = Guest::new() else { return };
    guest.prepare(repository.open());
    for path in ["foo/inner/deep", "foo/other", "d/empty"] {
        fs::create_dir_all(guest.path().join(path)).unwrap();
    }
    fs::remove_dir_all(repository.path().join("d")).unwrap();
    for name in ["a", "d", "foo"] {
        repository.write(name, "2");
    }
    repository.commit();
    guest.prepare(repository.open());
    assert_eq!(files(&guest.path()), files(&repository.path()));

    let untracked = Options { include_untracked: true, ..Options::default() };
    let mut sync = guest.sync(&repository, untracked, false);
    let opened = sync.open().unwrap();
    sync.whole(opened).unwrap();
    fs::create_dir_all(guest.path().join("bar/empty")).unwrap();
    repository.write("bar", "3");
    let changed = ["bar".into()].into_iter().collect();
    assert!(sync.some(&changed).unwrap().is_none(), "a whole look can say what is in it");
    let opened = sync.open().unwrap();
    let round = sync.whole(opened).unwrap();
    assert!(round.prepared.left.is_empty(), "{round:?}");
    assert_eq!(files(&guest.path()), files(&repository.path()));
}

#[test]
fn what_is_in_the_way_of_a_file_is_told_and_goes_by_force_only() {
    let pipe = |path: &Path| {
        rustix::fs::mkfifoat(rustix::fs::CWD, path, rustix::fs::Mode::RWXU).unwrap();
    };
    let is_there = |guest: &Guest, name: &str| guest.path().join(name).symlink_metadata().is_ok();
    for what in ["foo", "foo/pipe", "foo/ignored.log", "foo/.git"] {
        let repository = Repository::new();
        repository.write(".gitignore", "*.log\n");
        repository.write("a", "1");
        repository.commit();
        let Some(mut guest) = Guest::new() else { return };
        guest.prepare(repository.open());
        let path = guest.path().join(what);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        match what {
            "foo/.git" => drop(git(&guest.path(), &["init", "--quiet", "foo"])),
            "foo/ignored.log" => fs::write(&path, "by the guest").unwrap(),
            _ => pipe(&path),
        }
        repository.write("a", "2");
        repository.write("foo", "2");
        repository.commit();
        let refused = guest.try_prepare(repository.open(), false);
        let error = refused.expect_err(what);
        assert!(
            matches!(&error, WorkspaceError::NewerWork { what: told } if told == what),
            "{error:?}"
        );
        assert!(!guest.kept_file("unfinished").exists() && is_there(&guest, what), "{what}");

        // A sync leaves it alone, tells what it could not carry, and carries everything else.
        let mut sync = guest.sync(&repository, Options::default(), false);
        let round = sync.whole(repository.open()).unwrap();
        assert_eq!(round.left_anew, [b"foo"], "{what}");
        repository.write("a", "3");
        let changed = ["a".into()].into_iter().collect();
        let round = sync.some(&changed).unwrap().expect("no whole look");
        assert_eq!((&round.prepared.left[..], round.left_anew.len()), (&[b"foo".to_vec()][..], 0));
        assert_eq!(fs::read(guest.path().join("a")).unwrap(), b"3");
        assert!(is_there(&guest, what), "{what}");

        guest.try_prepare(repository.open(), true).unwrap();
        assert_eq!(files(&guest.path()), files(&repository.path()), "{what}");
    }
}

#[test]
fn force_mends_what_was_cut_off_whatever_is_in_the_way() {
    let repository = Repository::new();
    repository.write("a", "1");
    repository.commit();
    let Some(mut guest) = Guest::new() else { return };
    // Before anything was carried.
    guest.write("a/full", "by the guest");
    let refused = guest.try_prepare(repository.open(), false);
    assert!(matches!(refused, Err(WorkspaceError::Occupied { .. })), "{refused:?}");
    guest.try_prepare(repository.open(), true).unwrap();
    assert_eq!(files(&guest.path()), files(&repository.path()));

    git(&guest.path(), &["init", "--quiet", "foo"]);
    guest.write("foo/deep/er", "by the guest");
    repository.write("foo", "2");
    repository.commit();
    guest.mark_unfinished();
    let refused = guest.try_prepare(repository.open(), false);
    assert!(matches!(refused, Err(WorkspaceError::CutOff)), "{refused:?}");
    guest.try_prepare(repository.open(), true).unwrap();
    assert_eq!(files(&guest.path()), files(&repository.path()));
    guest.prepare(repository.open());
}

#[test]
fn a_branch_of_any_name_is_seen() {
    let repository = Repository::new();
    repository.write("a", "1");
    repository.commit();
    let Some(mut guest) = Guest::new() else { return };
    guest.prepare(repository.open());
    for name in ["hooks/fix", "info/x", "objects", "topic/logs/y"] {
        git(&guest.path(), &["branch", name]);
    }
    assert_eq!(guest.work().moved_branches(), ["hooks/fix", "info/x", "objects", "topic/logs/y"]);
    fs::remove_dir_all(guest.path().join(".git")).unwrap();
    assert!(guest.work().moved_branches().is_empty());
}
