//! Preparing again: what the guest has is not what was made for it.

use std::fs;

use banger_workspace::WorkspaceError;

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
