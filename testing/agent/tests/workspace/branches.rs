//! Branches whose names exclude each other: one is a file where the other needs a directory.

use std::fs;

use banger_workspace::{Options, WorkspaceError};

use crate::support::{Guest, Repository, files, git};

fn head(guest: &Guest) -> String {
    let head = git(&guest.path(), &["symbolic-ref", "--short", "HEAD"]);
    String::from_utf8(head.stdout).unwrap().trim().to_owned()
}

fn branches(guest: &Guest) -> Vec<String> {
    let branches = git(&guest.path(), &["for-each-ref", "--format=%(refname:short)", "refs/heads"]);
    String::from_utf8(branches.stdout).unwrap().lines().map(str::to_owned).collect()
}

#[test]
fn a_branch_that_the_host_renamed_gives_way_in_the_machine() {
    for (before, after) in [("x/y", "x"), ("x", "x/y"), ("x/y/z", "x/y")] {
        let repository = Repository::new();
        repository.write("a", "1\n");
        repository.commit();
        repository.git(&["branch", "-m", before]);
        let Some(mut guest) = Guest::new() else { return };
        guest.prepare(repository.open());
        // It writes a record of the branch, which is in the way, too.
        git(&guest.path(), &["reset", "--quiet", "--soft", "HEAD"]);
        git(&guest.path(), &["update-ref", "-m", "same", "--create-reflog", "HEAD", "HEAD"]);
        repository.git(&["branch", "-m", after]);
        repository.write("a", "2\n");
        repository.commit();
        guest.prepare(repository.open());
        assert_eq!((head(&guest), branches(&guest)), (after.to_owned(), vec![after.to_owned()]));
        git(&guest.path(), &["fsck", "--strict"]);
        // And git can go on with it.
        git(&guest.path(), &["commit", "--quiet", "--allow-empty", "-m", "the machine's"]);
        assert_eq!(guest.work().moved_branches(), [after]);
    }
}

#[test]
fn a_branch_of_the_machines_own_is_told_and_stays() {
    for (carried, own, is_packed) in [("x", "x/y", false), ("x", "x/y", true), ("x/y", "x", false)]
    {
        let repository = Repository::new();
        repository.write("a", "1\n");
        repository.commit();
        let Some(mut guest) = Guest::new() else { return };
        let mut sync = guest.sync(&repository, Options::default(), false);
        sync.whole(repository.open()).unwrap();
        git(&guest.path(), &["checkout", "--quiet", "-b", own]);
        git(&guest.path(), &["commit", "--quiet", "--allow-empty", "-m", "the machine's"]);
        let commit = git(&guest.path(), &["rev-parse", "HEAD"]).stdout;
        if is_packed {
            git(&guest.path(), &["pack-refs", "--all"]);
        }
        repository.git(&["checkout", "--quiet", "-b", carried]);
        repository.write("a", "2\n");
        repository.commit();

        let refused = guest.try_prepare(repository.open(), false).unwrap_err();
        assert!(matches!(&refused, WorkspaceError::NewerWork { what } if what.contains(own)));
        // Nor is it overwritten: it holds commits that are nowhere else.
        let refused = guest.try_prepare(repository.open(), true).unwrap_err();
        let WorkspaceError::BranchInTheWay { branch, theirs } = &refused else {
            panic!("{refused:?}")
        };
        assert_eq!((&branch[..], &theirs[..]), (carried, own));
        assert_eq!(fs::read(guest.path().join("a")).unwrap(), b"1\n", "nothing was touched");
        // What follows the host leaves the repository alone and carries the files.
        let round = sync.whole(repository.open()).unwrap();
        assert_eq!(round.branches_anew, ["HEAD", own]);
        assert_eq!(files(&guest.path()), files(&repository.path()));
        assert_eq!(
            (head(&guest), git(&guest.path(), &["rev-parse", own]).stdout),
            (own.to_owned(), commit)
        );

        git(&guest.path(), &["branch", "-m", "elsewhere"]);
        guest.try_prepare(repository.open(), true).unwrap();
        assert_eq!(head(&guest), carried);
        assert!(branches(&guest).contains(&"elsewhere".to_owned()));
        git(&guest.path(), &["fsck", "--strict"]);
    }
}

#[test]
fn a_directory_without_a_branch_gives_way() {
    let repository = Repository::new();
    repository.write("a", "1\n");
    repository.commit();
    let Some(mut guest) = Guest::new() else { return };
    guest.prepare(repository.open());
    fs::create_dir_all(guest.path().join(".git/refs/heads/x/y/z")).unwrap();
    repository.git(&["checkout", "--quiet", "-b", "x"]);
    guest.prepare(repository.open());
    assert_eq!((head(&guest), branches(&guest)), ("x".to_owned(), vec!["main".into(), "x".into()]));
}
