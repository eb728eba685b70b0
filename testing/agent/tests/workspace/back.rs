//! From the guest back to the host.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};

use banger_workspace::{ChangeKind, WorkspaceError};

use crate::support::{Guest, Repository, apply, files, git};

#[test]
fn a_patch_brings_everything_that_git_can_tell() {
    let repository = Repository::new();
    let long: String = (0..100).map(|line| format!("line {line}\n")).collect();
    repository.write("text", &long);
    repository.write("binary", [0, 1, 2, 255].repeat(1000));
    repository.write("moved", long.replace("line", "other"));
    repository.write("deleted", "this goes\n");
    repository.write("script", "#!/bin/sh\n");
    repository.write("becomes-link", "x\n");
    repository.write("becomes-directory", "x\n");
    repository.write("crlf", "a\r\nb\r\n");
    repository.write("no-end", "no end of line");
    repository.write("lfs", "content that is no pointer");
    repository.write(".gitattributes", "lfs filter=lfs\n");
    repository.write(".gitignore", "target\n");
    repository.commit();
    // Dirty on the host, and carried so.
    repository.write("text", long.replace("line 7\n", "line seven\n"));
    let Some(mut guest) = Guest::new() else { return };
    guest.prepare(repository.open());
    assert!(guest.work().changes().is_empty(), "{:?}", guest.work().changes());
    assert!(guest.patch().is_empty());

    let here = |name: &str| guest.path().join(name);
    fs::write(
        here("text"),
        long.replace("line 90\n", "line ninety\n").replace("line 7\n", "line seven\n"),
    )
    .unwrap();
    fs::write(here("binary"), [9, 0, 7].repeat(3000)).unwrap();
    fs::rename(here("moved"), here("renamed")).unwrap();
    fs::remove_file(here("deleted")).unwrap();
    fs::set_permissions(here("script"), fs::Permissions::from_mode(0o755)).unwrap();
    fs::remove_file(here("becomes-link")).unwrap();
    symlink("text", here("becomes-link")).unwrap();
    fs::remove_file(here("becomes-directory")).unwrap();
    guest.write("becomes-directory/file", "x\n");
    fs::write(here("crlf"), "a\r\nB\r\n").unwrap();
    fs::write(here("no-end"), "still no end").unwrap();
    guest.write("new/with space", "x\n");
    guest.write("new/empty", "");
    guest.write("target/ignored", "x\n");
    guest.write("nested/.gitignore", "*.o\n");
    guest.write("nested/a.o", "x");
    guest.write("nested/a.c", "x\n");
    let before = files(&guest.path().join(".git"));
    let work = guest.work();
    let kind = |name: &str| {
        let found = work.changes().iter().find(|change| change.name == name.as_bytes());
        found.map(|change| change.kind)
    };
    assert_eq!(kind("text"), Some(ChangeKind::Modified));
    assert_eq!(kind("renamed"), Some(ChangeKind::Renamed));
    assert_eq!(kind("deleted"), Some(ChangeKind::Deleted));
    assert_eq!(kind("new/empty"), Some(ChangeKind::Added));
    assert_eq!(kind("becomes-link"), Some(ChangeKind::Retyped));
    for ignored in ["target/ignored", "nested/a.o", "lfs"] {
        assert_eq!(kind(ignored), None, "{ignored}");
    }
    let patch = guest.patch();
    assert_eq!(files(&guest.path().join(".git")), before, "the guest's repository is as it was");
    apply(&repository.path(), &patch);
    let mut expected = files(&guest.path());
    expected.retain(|name, _| !matches!(&name[..], b"target/ignored" | b"nested/a.o"));
    assert_eq!(files(&repository.path()), expected);
}

#[test]
fn commits_of_the_guest_are_in_the_patch_too() {
    let repository = Repository::new();
    repository.write("a", "1\n");
    repository.commit();
    let Some(mut guest) = Guest::new() else { return };
    guest.prepare(repository.open());
    guest.write("a", "2\n");
    git(&guest.path(), &["commit", "--quiet", "--all", "-m", "guest"]);
    guest.write("b", "1\n");
    assert_eq!(guest.work().moved_branches(), ["main"]);
    apply(&repository.path(), &guest.patch());
    assert_eq!(files(&repository.path()), files(&guest.path()));
}

#[test]
fn a_base_commit_is_what_is_compared_with() {
    let repository = Repository::new();
    repository.write("a", "1\n");
    repository.commit();
    repository.write("a", "2\n");
    repository.commit();
    repository.write("b", "dirty\n");
    repository.git(&["add", "b"]);
    let Some(mut guest) = Guest::new() else { return };
    guest.prepare(repository.open());
    guest.write("c", "guest\n");
    let mut work = guest.work();
    work.compare_with(&repository.open(), "HEAD~1").unwrap();
    let names: Vec<&[u8]> = work.changes().iter().map(|change| &change.name[..]).collect();
    assert_eq!(names, [b"a", b"b", b"c"]);
    let mut patch = Vec::new();
    work.write_patch(&mut patch).unwrap();
    repository.git(&["reset", "--quiet", "--hard", "HEAD~1"]);
    apply(&repository.path(), &patch);
    assert_eq!(files(&repository.path()), files(&guest.path()));
    let result = guest.work().compare_with(&repository.open(), "nothing");
    assert!(matches!(result, Err(WorkspaceError::NoCommit { .. })), "{result:?}");
}

#[test]
fn without_what_was_carried_there_is_nothing_to_compare_with() {
    let repository = Repository::new();
    repository.write("a", "1\n");
    repository.commit();
    let Some(mut guest) = Guest::new() else { return };
    guest.prepare(repository.open());
    guest.keeping().remove("0123").unwrap();
    assert!(guest.keeping().known().is_empty());
    let refused = guest.try_prepare(repository.open(), false).unwrap_err();
    assert!(matches!(refused, WorkspaceError::Occupied { .. }), "{refused:?}");
}

#[test]
fn a_new_file_of_a_core_dumps_size_is_left_out_and_named() {
    let repository = Repository::new();
    repository.write("a", "1\n");
    repository.commit();
    let Some(mut guest) = Guest::new() else { return };
    guest.prepare(repository.open());
    guest.write("core", "");
    let core = fs::OpenOptions::new().write(true).open(guest.path().join("core")).unwrap();
    core.set_len((256 << 20) + 1).unwrap();
    guest.write("b", "1\n");
    let work = guest.work();
    assert_eq!(work.too_large(), [b"core".to_vec()]);
    let names: Vec<&[u8]> = work.changes().iter().map(|change| &change.name[..]).collect();
    assert_eq!(names, [b"b"]);
    // Nor is it overwritten by one of the host's.
    repository.add("core", "host");
    let refused = guest.try_prepare(repository.open(), false).unwrap_err();
    assert!(
        matches!(&refused, WorkspaceError::NewerWork { what } if what == "core"),
        "{refused:?}"
    );
    guest.try_prepare(repository.open(), true).unwrap();
    assert_eq!(fs::read(guest.path().join("core")).unwrap(), b"host");
}

#[test]
fn rules_in_too_many_or_too_deep_directories_are_bounded() {
    let repository = Repository::new();
    repository.write("a", "1\n");
    repository.commit();
    let Some(mut guest) = Guest::new() else { return };
    guest.prepare(repository.open());
    let deep = "d/".repeat(150);
    guest.write(&format!("{deep}.gitignore"), "*\n");
    guest.write(&format!("{deep}x"), "1\n");
    let work = guest.work();
    // The rule there counts for nothing, so that both files are new.
    assert_eq!(work.changes().len(), 2, "{:?}", work.changes());
}
