//! From the host into the guest.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, symlink};

use banger_workspace::{Options, Start, Wanted, Workspace, WorkspaceError};

use crate::support::{Guest, Repository, apply, files, git, try_git};

/// What git says of a working tree, byte for byte.
fn status(top: &std::path::Path) -> String {
    let output = git(top, &["status", "--porcelain=v2", "--branch", "--untracked-files=all"]);
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn git_in_the_guest_says_what_it_says_on_the_host() {
    let repository = Repository::new();
    repository.add("a.txt", "committed\n");
    repository.add("src/deep/run.sh", "#!/bin/sh");
    repository.add("gone.txt", "x");
    repository.add("old-name", "a file that gets another name\n");
    let script = repository.path().join("src/deep/run.sh");
    fs::set_permissions(&script, fs::Permissions::from_mode(0o700)).unwrap();
    symlink("/etc/passwd", repository.path().join("link")).unwrap();
    repository.write(".gitignore", "ignored\n");
    for _ in 0..15 {
        repository.commit();
    }
    repository.write("a.txt", "changed\n");
    repository.add("staged", "1\n");
    repository.write("staged", "2\n");
    repository.git(&["mv", "old-name", "new-name"]);
    repository.write("ignored", "x");
    repository.write("untracked", "x");
    fs::remove_file(repository.path().join("gone.txt")).unwrap();
    fs::set_permissions(&script, fs::Permissions::from_mode(0o600)).unwrap();
    repository.git(&["remote", "add", "origin", "https://example.org/a.git"]);

    let workspace = repository.open();
    assert_eq!(workspace.skipped_untracked, 1);
    let Some(mut guest) = Guest::new() else { return };
    let prepared = guest.prepare(workspace);
    assert_eq!((prepared.missing, prepared.changed_meanwhile.len()), (1, 0));
    let host = status(&repository.path()).replace("? untracked\n", "");
    assert_eq!(status(&guest.path()), host);
    let mut expected = files(&repository.path());
    expected.retain(|name, _| !matches!(&name[..], b"ignored" | b"untracked"));
    assert_eq!(files(&guest.path()), expected);
    let log = git(&guest.path(), &["log", "--oneline"]);
    assert_eq!(log.stdout.split(|&byte| byte == b'\n').count() - 1, 10);
    let staged = git(&guest.path(), &["show", ":staged"]);
    assert_eq!(staged.stdout, b"1\n");
    let url = git(&guest.path(), &["remote", "get-url", "origin"]);
    assert_eq!(url.stdout, b"https://example.org/a.git\n");
    git(&guest.path(), &["fsck", "--strict"]);
    git(&guest.path(), &["commit", "--quiet", "--all", "-m", "work in the guest"]);
}

#[test]
fn untracked_files_come_only_when_asked_for_and_ignored_ones_never() {
    let repository = Repository::new();
    repository.add(".gitignore", "secret*\n");
    repository.write("secret.key", "x");
    repository.write("new.txt", "x");
    let options = Options { include_untracked: true, ..Options::default() };
    let workspace = Workspace::open(&repository.path(), &options).unwrap();
    assert_eq!(workspace.skipped_untracked, 0);
    let Some(mut guest) = Guest::new() else { return };
    guest.prepare(workspace);
    let names: Vec<Vec<u8>> = files(&guest.path()).into_keys().collect();
    assert_eq!(names, [b".gitignore".to_vec(), b"new.txt".to_vec()]);
}

#[test]
fn an_empty_repository_without_a_commit_works() {
    let repository = Repository::new();
    let Some(mut guest) = Guest::new() else { return };
    guest.prepare(repository.open());
    assert_eq!(status(&guest.path()), status(&repository.path()));
    guest.write("first", "x");
    assert!(String::from_utf8(guest.patch()).unwrap().contains("+++ b/first"));
    // With files that were never committed.
    repository.add("staged", "x");
    let Some(mut guest) = Guest::new() else { return };
    guest.prepare(repository.open());
    assert_eq!(status(&guest.path()), status(&repository.path()));
}

#[test]
fn detached_linked_and_shallow_repositories_are_carried() {
    let repository = Repository::new();
    for number in 0..5 {
        repository.write("a", number.to_string());
        repository.commit();
    }
    repository.git(&["checkout", "--quiet", "--detach", "HEAD~1"]);
    let Some(mut guest) = Guest::new() else { return };
    guest.prepare(repository.open());
    assert_eq!(status(&guest.path()), status(&repository.path()));

    let place = tempfile::tempdir().unwrap();
    let linked = place.path().canonicalize().unwrap().join("linked");
    repository.git(&["worktree", "add", "--quiet", "-b", "other", linked.to_str().unwrap()]);
    fs::write(linked.join("a"), "dirty").unwrap();
    let Some(mut guest) = Guest::new() else { return };
    guest.prepare(Workspace::open(&linked, &Options::default()).unwrap());
    assert_eq!(status(&guest.path()), status(&linked));

    let shallow = place.path().canonicalize().unwrap().join("shallow");
    let from = format!("file://{}", repository.path().display());
    git(place.path(), &["clone", "--quiet", "--depth=2", "--branch=main", &from, "shallow"]);
    let Some(mut guest) = Guest::new() else { return };
    guest.prepare(Workspace::open(&shallow, &Options::default()).unwrap());
    let log = git(&guest.path(), &["log", "--oneline"]);
    assert_eq!(log.stdout.split(|&byte| byte == b'\n').count() - 1, 2);
}

#[test]
fn other_hashes_and_kinds_of_index_are_carried() {
    let directory = tempfile::tempdir().unwrap();
    let top = directory.path().canonicalize().unwrap();
    git(&top, &["init", "--quiet", "--object-format=sha256"]);
    fs::write(top.join("a"), "x").unwrap();
    git(&top, &["add", "a"]);
    git(&top, &["commit", "--quiet", "-m", "x"]);
    let Some(mut guest) = Guest::new() else { return };
    guest.prepare(Workspace::open(&top, &Options::default()).unwrap());
    assert_eq!(status(&guest.path()), status(&top));

    let repository = Repository::new();
    repository.write("a", "x");
    repository.write("b/c", "x");
    repository.commit();
    repository.git(&["update-index", "--split-index", "--untracked-cache"]);
    repository.add("d", "x");
    let Some(mut guest) = Guest::new() else { return };
    guest.prepare(repository.open());
    assert_eq!(status(&guest.path()), status(&repository.path()));

    repository.commit();
    repository.git(&["sparse-checkout", "set", "b"]);
    let Some(mut guest) = Guest::new() else { return };
    guest.prepare(repository.open());
    assert_eq!(status(&guest.path()), status(&repository.path()));
}

#[test]
fn submodules_come_along_with_their_own_repositories() {
    let inner = Repository::new();
    inner.write("x", "x");
    inner.commit();
    let outer = Repository::new();
    outer.write("own", "x");
    outer.git(&["submodule", "--quiet", "add", inner.path().to_str().unwrap(), "lib/inner"]);
    outer.git(&["submodule", "--quiet", "add", inner.path().to_str().unwrap(), "absent"]);
    outer.commit();
    outer.git(&["submodule", "--quiet", "deinit", "--force", "absent"]);
    outer.write("lib/inner/x", "dirty");
    let Some(mut guest) = Guest::new() else { return };
    guest.prepare(outer.open());
    assert_eq!(status(&guest.path()), status(&outer.path()));
    assert_eq!(files(&guest.path()), files(&outer.path()));
    assert!(guest.path().join("absent").is_dir());
    git(&guest.path().join("lib/inner"), &["log"]);
    // What is changed in it comes back as a patch of its files.
    guest.write("lib/inner/new", "from the guest");
    crate::support::apply(&outer.path(), &guest.patch());
    assert_eq!(files(&guest.path()), files(&outer.path()));
}

#[test]
fn a_machine_that_was_made_meanwhile_gets_the_history() {
    let repository = Repository::new();
    repository.write("a", "1");
    repository.commit();
    repository.write("a", "2");
    let Some(mut guest) = Guest::new() else { return };
    guest.prepare_new(repository.open());
    git(&guest.path(), &["fsck", "--strict"]);
    assert_eq!(status(&guest.path()), status(&repository.path()));
    assert_eq!(git(&guest.path(), &["show", "HEAD:a"]).stdout, b"1");
    guest.write("a", "3");
    apply(&repository.path(), &guest.patch());
    assert_eq!(files(&repository.path()), files(&guest.path()));
}

#[test]
fn a_branch_begins_where_it_is_asked_to() {
    let repository = Repository::new();
    repository.write("a", "old");
    repository.write("only-old", "x");
    repository.commit();
    repository.git(&["tag", "v1"]);
    repository.git(&["rm", "--quiet", "only-old"]);
    repository.write("a", "new");
    repository.commit();
    repository.write("a", "dirty");
    let open = |branch: &str, from: Option<&str>| {
        let start = Start { branch: branch.to_owned(), from: from.map(str::to_owned) };
        let options = Options { start: Some(start), ..Options::default() };
        Workspace::open(&repository.path(), &options)
    };
    let Some(mut guest) = Guest::new() else { return };
    guest.prepare(open("topic/one", None).unwrap());
    let here = status(&repository.path()).replace("branch.head main", "branch.head topic/one");
    assert_eq!(status(&guest.path()), here);

    let Some(mut guest) = Guest::new() else { return };
    let workspace = open("topic", Some("v1")).unwrap();
    assert!(workspace.leaves_changes());
    guest.prepare(workspace);
    assert_eq!(fs::read_to_string(guest.path().join("a")).unwrap(), "old");
    assert!(guest.path().join("only-old").exists());
    assert!(!status(&guest.path()).lines().any(|line| !line.starts_with('#')));
    assert!(guest.work().changes().is_empty());

    for bad in ["-x", "a b", "HEAD", "a..b", "refs/heads/../x"] {
        assert!(matches!(open(bad, None), Err(WorkspaceError::BranchName { .. })), "{bad}");
    }
    for bad in ["nothing", "--help", "v1:a", ""] {
        let result = open("topic", Some(bad));
        assert!(matches!(result, Err(WorkspaceError::NoCommit { .. })), "{bad}: {result:?}");
    }
}

#[test]
fn odd_names_arrive_unchanged() {
    let repository = Repository::new();
    let long = format!("{}/{}", "d".repeat(120), "f".repeat(200));
    for name in
        ["with\nnewline", "with space", "\"quoted\"", "ü", "-n", ":(glob)*", "back\\slash", &long]
    {
        repository.add(&format!("./{name}"), name);
    }
    fs::write(repository.path().join(OsStr::from_bytes(b"raw-\xff")), "raw").unwrap();
    repository.commit();
    let Some(mut guest) = Guest::new() else { return };
    guest.prepare(repository.open());
    assert_eq!(files(&guest.path()), files(&repository.path()));
    assert_eq!(status(&guest.path()), status(&repository.path()));
}

#[test]
fn preparing_again_brings_what_is_new_and_keeps_what_is_the_guests() {
    let repository = Repository::new();
    repository.write(".gitignore", "target\n");
    repository.write("a", "1");
    repository.write("d/e/f", "1");
    repository.write("same", "x");
    repository.commit();
    let Some(mut guest) = Guest::new() else { return };
    guest.prepare(repository.open());
    guest.write("target/built", "by the guest");
    fs::remove_dir_all(repository.path().join("d")).unwrap();
    repository.write("a", "2");
    repository.write("new", "1");
    repository.commit();
    let again = guest.prepare(repository.open());
    assert_eq!((again.sent, again.removed), (2, 3));
    assert!(!guest.path().join("d").exists());
    assert!(guest.path().join("target/built").exists());
    assert_eq!(status(&guest.path()), status(&repository.path()));
    let nothing = guest.prepare(repository.open());
    assert_eq!((nothing.sent, nothing.removed), (0, 0));

    // Work that is on the host by now is nothing to lose, and a new file of the guest's stays.
    guest.write("a", "by the guest");
    crate::support::apply(&repository.path(), &guest.patch());
    guest.write("only-guest", "x");
    repository.commit();
    guest.prepare(repository.open());
    assert!(guest.path().join("only-guest").exists());
    assert_eq!(guest.work().changes().len(), 1);
    fs::remove_file(guest.path().join("only-guest")).unwrap();

    // The guest's work is in the way.
    guest.write("a", "guest");
    repository.write("a", "3");
    let refused = guest.try_prepare(repository.open(), false).unwrap_err();
    assert!(matches!(&refused, WorkspaceError::NewerWork { what } if what == "a"), "{refused:?}");
    assert_eq!(fs::read_to_string(guest.path().join("a")).unwrap(), "guest");
    guest.try_prepare(repository.open(), true).unwrap();
    assert_eq!(fs::read_to_string(guest.path().join("a")).unwrap(), "3");
    guest.prepare(repository.open());

    // So is a commit, even where no file is different any more.
    git(&guest.path(), &["commit", "--quiet", "--all", "-m", "guest"]);
    let refused = guest.try_prepare(repository.open(), false).unwrap_err();
    assert!(
        matches!(&refused, WorkspaceError::NewerWork { what } if what == "branch main"),
        "{refused:?}"
    );
    git(&guest.path(), &["gc", "--quiet"]);
    assert!(guest.try_prepare(repository.open(), false).is_err());
    guest.try_prepare(repository.open(), true).unwrap();
    git(&guest.path(), &["gc", "--quiet"]);
    guest.prepare(repository.open());
}

#[test]
fn a_directory_that_somebody_else_filled_is_left_alone() {
    let repository = Repository::new();
    repository.write("a", "x");
    repository.commit();
    let Some(mut guest) = Guest::new() else { return };
    guest.write("a", "guest");
    let refused = guest.try_prepare(repository.open(), false).unwrap_err();
    assert!(matches!(refused, WorkspaceError::Occupied { .. }), "{refused:?}");
    assert!(!guest.path().join(".git").exists());
    guest.try_prepare(repository.open(), true).unwrap();
    assert_eq!(files(&guest.path()), files(&repository.path()));
}

#[test]
fn what_was_cut_off_is_said_and_made_good() {
    let repository = Repository::new();
    repository.write("a", "x");
    repository.commit();
    let Some(mut guest) = Guest::new() else { return };
    guest.prepare(repository.open());
    drop(guest.kept());
    let kept = guest.keeping().known();
    assert_eq!(kept, ["0123"]);
    // As after a crash between the first file and the last.
    guest.mark_unfinished();
    repository.write("b", "x");
    let refused = guest.try_prepare(repository.open(), false);
    assert!(refused.is_err());
    assert!(guest.work().is_cut_off());
    guest.try_prepare(repository.open(), true).unwrap();
    guest.prepare(repository.open());
    assert!(!guest.work().is_cut_off());
    let _ = try_git(&guest.path(), &["status"]);
}

#[test]
fn what_was_wanted_and_what_was_left_behind_is_known_the_next_time() {
    let repository = Repository::new();
    repository.write("a", "x");
    repository.commit();
    repository.git(&["tag", "v1"]);
    repository.write("untracked", "x");
    let Some(mut guest) = Guest::new() else { return };
    assert_eq!(guest.keeping().wanted("0123"), Wanted::default());
    let start = Start { branch: "topic".to_owned(), from: Some("v1".to_owned()) };
    let options = Options { include_untracked: true, start: Some(start) };
    guest.prepare(Workspace::open(&repository.path(), &options).unwrap());
    let wanted = Wanted { include_untracked: true, from: Some("v1".to_owned()) };
    assert_eq!(guest.keeping().wanted("0123"), wanted);
    guest.try_prepare(repository.open(), true).unwrap();
    assert_eq!(guest.keeping().wanted("0123"), Wanted::default());

    // As after a Ctrl-C while a machine was looked at.
    let left = guest.kept_file("work-left/objects");
    fs::create_dir_all(&left).unwrap();
    drop(guest.kept());
    assert!(!left.parent().unwrap().exists());
    guest.prepare(repository.open());
}
