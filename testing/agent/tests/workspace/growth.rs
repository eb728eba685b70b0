//! What is kept on the host, and what goes into a machine's repository, stays within bounds.

use std::fs;
use std::path::Path;

use banger_workspace::{Mirror, Options, Round};

use crate::support::{Guest, Repository, apply, files, git};

const MEBIBYTE: u64 = 1 << 20;

fn untracked() -> Options {
    Options { include_untracked: true, ..Options::default() }
}

/// Content of a mebibyte that no two numbers share and that nothing makes smaller (xorshift).
fn noise(number: u64) -> Vec<u8> {
    let mut state = number.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(1 << 20);
    while bytes.len() < 1 << 20 {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes
}

/// How many bytes the files below a directory have.
fn size(directory: &Path) -> u64 {
    let entries = fs::read_dir(directory).unwrap().map(Result::unwrap);
    let sizes = entries.map(|entry| match entry.metadata().unwrap() {
        metadata if metadata.is_dir() => size(&entry.path()),
        metadata => metadata.len(),
    });
    sizes.sum()
}

fn whole(sync: &mut Mirror) -> Round {
    let opened = sync.open().unwrap();
    sync.whole(opened).unwrap()
}

#[test]
fn versions_of_a_file_that_are_gone_are_neither_kept_nor_sent() {
    let repository = Repository::new();
    repository.write("large", noise(0));
    repository.write("small", "1\n");
    repository.commit();
    let Some(mut guest) = Guest::new() else { return };
    let mut sync = guest.sync(&repository, untracked(), false);
    whole(&mut sync);
    let (base, history) = (guest.kept_file("base.git"), guest.kept_file("history.git"));
    let (history_first, guest_first) = (size(&history), size(&guest.path().join(".git")));
    let mut largest = 0;
    for number in 1..=30 {
        repository.write("large", noise(number));
        let round = sync.some(&["large".into()].into_iter().collect()).unwrap();
        assert_eq!(round.expect("no whole look").prepared.bytes, MEBIBYTE);
        largest = largest.max(size(&base));
    }
    // Twice what is needed and 4 MiB, of which one version is needed.
    assert!(largest < 6 * MEBIBYTE + MEBIBYTE / 4, "{largest} bytes of 30 versions");
    assert_eq!(size(&history), history_first);
    // The next look at all of it sends what git needs there, and no version of a file.
    repository.write("small", "2\n");
    repository.git(&["add", "small"]);
    let sent = whole(&mut sync).prepared.bytes;
    assert!(sent < MEBIBYTE / 4, "{sent} bytes");
    let grown = size(&guest.path().join(".git")) - guest_first;
    assert!(grown < MEBIBYTE / 4, "the machine's repository has {grown} bytes more");
    assert_eq!(files(&repository.path()), files(&guest.path()));
    git(&base, &["fsck", "--strict"]);
    git(&guest.path(), &["fsck", "--strict"]);
    sync.finish().unwrap();
    guest.write("large", "the guest's\n");
    apply(&repository.path(), &guest.patch());
    assert_eq!(files(&repository.path()), files(&guest.path()));
}

#[test]
fn what_was_staged_once_is_not_kept_and_what_was_carried_is() {
    let repository = Repository::new();
    repository.write("small", "1\n");
    repository.commit();
    let Some(guest) = Guest::new() else { return };
    let mut sync = guest.sync(&repository, untracked(), false);
    // In the index for one look only: what was carried borrows it from there.
    repository.write("borrowed", noise(0));
    repository.git(&["add", "borrowed"]);
    whole(&mut sync);
    repository.git(&["reset", "--quiet", "--", "borrowed"]);
    let (base, history) = (guest.kept_file("base.git"), guest.kept_file("history.git"));
    assert!(size(&base) < MEBIBYTE / 4);
    let (mut largest, mut sent) = (0, 0);
    for number in 1..=14 {
        repository.write("staged", noise(number));
        repository.git(&["add", "staged"]);
        sent += whole(&mut sync).prepared.bytes;
        largest = largest.max(size(&history));
        git(&base, &["fsck", "--strict"]);
        git(&guest.path(), &["fsck", "--strict"]);
    }
    assert!(largest < 7 * MEBIBYTE, "{largest} bytes of 14 versions");
    assert!(size(&base) > MEBIBYTE, "it has its own by now");
    // Each as a file and as an object, and what is needed once more when the packs were made one.
    assert!(sent < 2 * 14 * MEBIBYTE + 6 * MEBIBYTE, "{sent} bytes");
    assert_eq!(files(&repository.path()), files(&guest.path()));
}
