//! Repositories of an unpacked archive that lead to another one of the user's, or to a file of theirs.

use std::fs;
use std::os::unix::fs::{chown, symlink};
use std::path::{Path, PathBuf};

use banger_workspace::{Options, Workspace, WorkspaceError};

use crate::support::{Guest, Repository, git};

fn open(path: &Path) -> Result<Workspace, WorkspaceError> {
    Workspace::open(path, &Options::default())
}

fn refused(path: &Path) -> WorkspaceError {
    open(path).expect_err("it leads elsewhere")
}

/// The user's own, which no archive may lead to.
fn private() -> Repository {
    let private = Repository::new();
    private.write("secret", "s3cret");
    private.commit();
    private
}

fn archive() -> Repository {
    let archive = Repository::new();
    archive.write("a", "a");
    archive.commit();
    archive
}

fn dot_git(repository: &Repository) -> PathBuf {
    repository.path().join(".git")
}

#[test]
fn a_common_directory_elsewhere_is_refused() {
    let private = private();
    let bait = archive();
    let lead = format!("{}\n", dot_git(&private).display());
    fs::write(dot_git(&bait).join("commondir"), &lead).unwrap();
    let error = refused(&bait.path());
    assert!(matches!(error, WorkspaceError::ForeignGit { .. }), "{error:?}");

    // As a linked working tree of the archive's own making.
    let bait = tempfile::tempdir().unwrap();
    let top = bait.path().canonicalize().unwrap();
    for meta in ["meta", "meta/worktrees/w"] {
        let meta = top.join(meta);
        fs::create_dir_all(&meta).unwrap();
        fs::write(top.join(".git"), format!("gitdir: {}\n", meta.display())).unwrap();
        fs::write(meta.join("gitdir"), format!("{}\n", top.join(".git").display())).unwrap();
        fs::write(meta.join("commondir"), &lead).unwrap();
        fs::write(meta.join("HEAD"), "ref: refs/heads/main\n").unwrap();
        let error = refused(&top);
        assert!(matches!(error, WorkspaceError::ForeignGit { .. }), "{error:?}");
    }

    // As a submodule's.
    let bait = tempfile::tempdir().unwrap();
    let top = bait.path().canonicalize().unwrap();
    git(&top, &["init", "--quiet", "--bare", "meta"]);
    git(&top.join("meta"), &["config", "core.bare", "false"]);
    git(&top.join("meta"), &["config", "core.worktree", ".."]);
    fs::write(top.join(".git"), "gitdir: meta\n").unwrap();
    open(&top).unwrap();
    // What its common directory would lead on to is followed by nobody.
    fs::write(top.join("meta/commondir"), &lead).unwrap();
    let error = refused(&top);
    assert!(matches!(error, WorkspaceError::ForeignGit { .. }), "{error:?}");
}

#[test]
fn links_and_alternates_to_another_repository_are_refused() {
    let private = private();
    let own = |name: &str| dot_git(&private).join(name);
    private.git(&["pack-refs", "--all"]);
    for name in ["HEAD", "packed-refs", "objects", "index", "info", "refs", "config"] {
        let bait = archive();
        let path = dot_git(&bait).join(name);
        match path.symlink_metadata() {
            Ok(metadata) if metadata.is_dir() => fs::remove_dir_all(&path).unwrap(),
            Ok(_) => fs::remove_file(&path).unwrap(),
            Err(_) => {}
        }
        symlink(own(name), &path).unwrap();
        let error = refused(&bait.path());
        assert!(matches!(error, WorkspaceError::OddGit { .. }), "{name}: {error:?}");
    }
    private.git(&["branch", "loose"]);
    for (name, target) in
        [("refs/heads/main", "refs/heads/loose"), ("objects/pack", "objects/pack")]
    {
        let bait = archive();
        let path = dot_git(&bait).join(name);
        let _ = fs::remove_file(&path);
        let _ = fs::remove_dir_all(&path);
        symlink(own(target), &path).unwrap();
        let error = refused(&bait.path());
        assert!(matches!(error, WorkspaceError::OddGit { .. }), "{name}: {error:?}");
    }
    let bait = archive();
    let alternates = dot_git(&bait).join("objects/info/alternates");
    fs::write(&alternates, format!("{}\n", own("objects").display())).unwrap();
    let error = refused(&bait.path());
    assert!(
        matches!(&error, WorkspaceError::Alternates { path } if *path == alternates),
        "{error:?}"
    );
    // As the hint says.
    bait.git(&["repack", "-a", "-d", "--quiet"]);
    fs::remove_file(&alternates).unwrap();
    open(&bait.path()).unwrap();
}

#[test]
fn a_repository_inside_of_the_repository_is_not_served_in_its_place() {
    let private = private();
    let bait = archive();
    let lead = format!("gitdir: {}\n", dot_git(&private).display());
    fs::write(dot_git(&bait).join(".git"), lead).unwrap();
    let Some(mut guest) = Guest::new() else { return };
    guest.prepare(open(&bait.path()).unwrap());
    assert_eq!(
        git(&guest.path(), &["rev-parse", "HEAD"]).stdout,
        git(&bait.path(), &["rev-parse", "HEAD"]).stdout
    );
}

#[test]
fn a_repository_of_another_user_is_as_little_used_as_git_does() {
    let bait = archive();
    let Some(mut guest) = Guest::new() else { return };
    for path in [bait.path(), dot_git(&bait)] {
        chown(&path, Some(65_534), Some(65_534)).unwrap();
        let error = refused(&bait.path());
        assert!(matches!(error, WorkspaceError::OthersGit { .. }), "{error:?}");
        chown(&path, Some(0), Some(0)).unwrap();
    }
    guest.prepare(open(&bait.path()).unwrap());
}

#[test]
fn a_path_that_a_shell_would_take_apart_is_served() {
    let directory = tempfile::tempdir().unwrap();
    let top = directory.path().canonicalize().unwrap().join("it's \"$HOME\" `x` \\ here");
    fs::create_dir(&top).unwrap();
    git(&top, &["init", "--quiet", "--initial-branch=main"]);
    git(&top, &["commit", "--quiet", "--allow-empty", "-m", "x"]);
    let Some(mut guest) = Guest::new() else { return };
    guest.prepare(open(&top).unwrap());
    git(&guest.path(), &["fsck", "--strict"]);
}

#[test]
fn rules_are_read_from_no_file_that_the_repository_chose() {
    let outside = tempfile::tempdir().unwrap();
    let key = outside.path().join("id_rsa");
    fs::write(&key, "s3cret").unwrap();
    let Some(mut guest) = Guest::new() else { return };
    let bait = archive();
    bait.git(&["config", "core.excludesFile", key.to_str().unwrap()]);
    fs::create_dir_all(dot_git(&bait).join("info")).unwrap();
    fs::write(dot_git(&bait).join("info/exclude"), "mine\n").unwrap();
    bait.write("mine", "x");
    bait.write("s3cret", "x");
    let workspace = open(&bait.path()).unwrap();
    assert_eq!(workspace.skipped_untracked, 1, "the rule of the other file counts for nothing");
    guest.prepare(workspace);
    let rules = fs::read_to_string(guest.path().join(".git/info/exclude")).unwrap();
    assert!(rules.contains("mine\n") && !rules.contains("s3cret"), "{rules}");
    // A fifo there would be waited for.
    let fifo = outside.path().join("fifo");
    rustix::fs::mkfifoat(rustix::fs::CWD, &fifo, rustix::fs::Mode::RWXU).unwrap();
    bait.git(&["config", "core.excludesFile", fifo.to_str().unwrap()]);
    open(&bait.path()).unwrap();

    for target in [key.as_path(), Path::new("/dev/zero"), fifo.as_path()] {
        for name in ["info/exclude", "index", "sharedindex.0"] {
            let bait = archive();
            let path = dot_git(&bait).join(name);
            let _ = fs::remove_file(&path);
            symlink(target, &path).unwrap();
            let error = refused(&bait.path());
            assert!(matches!(error, WorkspaceError::OddGit { .. }), "{name}: {error:?}");
        }
    }
    let bait = archive();
    fs::write(dot_git(&bait).join("info/exclude"), "x\n".repeat(1 << 20)).unwrap();
    let error = guest.try_prepare(open(&bait.path()).unwrap(), true).unwrap_err();
    assert!(matches!(error, WorkspaceError::Path { .. }), "{error:?}");
}

#[test]
fn names_that_git_lets_nobody_make_are_refused() {
    for (made, crafted) in [("xgit/config", ".GIT/config"), ("d/xx/a", "d/../a")] {
        let bait = Repository::new();
        // Without its checksum the index can be changed (git-config(1), index.skipHash).
        bait.git(&["config", "index.skipHash", "true"]);
        bait.add(made, "x");
        let index = dot_git(&bait).join("index");
        let mut bytes = fs::read(&index).unwrap();
        let place = bytes.windows(made.len()).position(|part| part == made.as_bytes()).unwrap();
        bytes[place..place + made.len()].copy_from_slice(crafted.as_bytes());
        fs::write(&index, bytes).unwrap();
        let error = refused(&bait.path());
        assert!(
            matches!(&error, WorkspaceError::OddName { name, .. } if name == crafted),
            "{error:?}"
        );
    }
}
