//! Repositories and guests that mean harm.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};

use banger_workspace::{Options, Workspace, WorkspaceError};

use crate::support::{Guest, Repository, files, git};

fn open(path: &std::path::Path) -> Result<Workspace, WorkspaceError> {
    Workspace::open(path, &Options::default())
}

#[test]
fn what_is_no_repository_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let missing = directory.path().join("none");
    assert!(matches!(open(&missing), Err(WorkspaceError::Path { .. })));
    let file = directory.path().join("file");
    fs::write(&file, "").unwrap();
    assert!(matches!(open(&file), Err(WorkspaceError::Path { .. })));
    let result = open(directory.path());
    assert!(matches!(result, Err(WorkspaceError::NotARepository { .. })), "{result:?}");
    git(directory.path(), &["init", "--quiet", "--bare", "."]);
    assert!(open(directory.path()).is_err());
}

#[test]
fn a_directory_that_the_guest_would_not_have_is_refused() {
    let repository = Repository::new();
    repository.add("src/a", "a");
    repository.write("build/b", "b");
    for inside in ["build", ".git"] {
        let result = open(&repository.path().join(inside));
        assert!(matches!(result, Err(WorkspaceError::NothingTracked { .. })), "{result:?}");
    }
    let options = Options { include_untracked: true, ..Options::default() };
    Workspace::open(&repository.path().join("build"), &options).unwrap();
    let inside = open(&repository.path().join("src")).unwrap();
    assert_eq!(inside.guest_directory(), b"/root/repo/src");
}

/// Has everything that a repository's configuration can name run a program that leaves a mark.
fn arm(repository: &Repository) -> std::path::PathBuf {
    let marker = repository.path().join("pwned");
    let command = format!("touch '{}'; false", marker.display());
    for (key, value) in [
        ("core.fsmonitor", command.as_str()),
        ("core.pager", &command),
        ("core.sshCommand", &command),
        ("core.editor", &command),
        ("core.alternateRefsCommand", &command),
        ("diff.external", &command),
        ("diff.evil.textconv", &command),
        ("diff.evil.command", &command),
        ("filter.evil.clean", &command),
        ("filter.evil.smudge", &command),
        ("filter.evil.process", &command),
        ("filter.evil.required", "true"),
        ("credential.helper", &command),
        ("alias.ls-files", &format!("!{command}")),
        ("alias.upload-pack", &format!("!{command}")),
        ("uploadpack.packObjectsHook", &command),
        ("remote.origin.url", &format!("ext::{command}")),
        ("remote.origin.uploadpack", &command),
        ("remote.origin.promisor", "true"),
        ("gpg.program", &command),
        ("user.name", "N"),
    ] {
        repository.git(&["config", key, value]);
    }
    let hooks = repository.path().join(".git/hooks");
    fs::create_dir_all(&hooks).unwrap();
    for hook in [
        "post-index-change",
        "post-checkout",
        "reference-transaction",
        "fsmonitor-watchman",
        "pre-auto-gc",
    ] {
        let path = hooks.join(hook);
        fs::write(&path, format!("#!/bin/sh\n{command}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    }
    marker
}

#[test]
fn a_hostile_repository_runs_nothing() {
    let repository = Repository::new();
    repository.write("a", "x");
    repository.commit();
    fs::write(repository.path().join(".gitattributes"), "* filter=evil diff=evil\n").unwrap();
    repository.git(&["add", ".gitattributes"]);
    let marker = arm(&repository);
    repository.write("a", "changed");
    let Some(mut guest) = Guest::new() else { return };
    guest.prepare(open(&repository.path()).unwrap());
    assert!(!marker.exists());
    guest.write("a", "guest");
    let mut work = guest.work();
    work.compare_with(&open(&repository.path()).unwrap(), "HEAD").unwrap();
    assert!(!marker.exists());
    let configuration = fs::read_to_string(guest.path().join(".git/config")).unwrap();
    for key in ["touch", "evil", "promisor", "hooks"] {
        assert!(!configuration.contains(key), "{configuration}");
    }
    assert!(!guest.path().join(".git/hooks").exists());
}

#[test]
fn a_hostile_guest_runs_nothing_either() {
    let repository = Repository::new();
    repository.write("a", "x");
    repository.commit();
    let Some(mut guest) = Guest::new() else { return };
    guest.prepare(repository.open());
    let marker = guest.path().join("pwned");
    let command = format!("touch '{}'; false", marker.display());
    for key in ["core.fsmonitor", "diff.external", "diff.evil.textconv", "filter.evil.clean"] {
        git(&guest.path(), &["config", key, &command]);
    }
    guest.write(".gitattributes", "* filter=evil diff=evil\n");
    guest.write(".git/hooks/post-index-change", format!("#!/bin/sh\n{command}\n"));
    guest.write("a", "guest");
    // Names that git would take for its own, or that lead elsewhere.
    guest.write("sub/.GIT/config", "[core]\n\tfsmonitor = touch x\n");
    guest.write("other/.git/HEAD", "ref: refs/heads/main\n");
    guest.write("other/file", "of a repository of its own");
    symlink("/etc", guest.path().join("etc")).unwrap();
    symlink("/etc/passwd", guest.path().join(".gitignore")).unwrap();
    let work = guest.work();
    assert_eq!(work.repositories(), [b"other".to_vec()]);
    let names: Vec<String> = work
        .changes()
        .iter()
        .map(|change| String::from_utf8_lossy(&change.name).into_owned())
        .collect();
    assert_eq!(names, [".gitattributes", ".gitignore", "a", "etc"]);
    let mut patch = Vec::new();
    work.write_patch(&mut patch).unwrap();
    assert!(!marker.exists());
    // Links are carried as links.
    assert!(String::from_utf8(patch).unwrap().contains("new file mode 120000"));
}

#[test]
fn a_git_file_that_leads_to_another_repository_is_refused() {
    let private = Repository::new();
    private.write("secret", "s3cret");
    private.commit();
    let bait = tempfile::tempdir().unwrap();
    let leads_to = format!("gitdir: {}\n", private.path().join(".git").display());
    fs::write(bait.path().join(".git"), &leads_to).unwrap();
    let result = open(bait.path());
    assert!(matches!(result, Err(WorkspaceError::ForeignGit { .. })), "{result:?}");
    fs::remove_file(bait.path().join(".git")).unwrap();
    symlink(private.path().join(".git"), bait.path().join(".git")).unwrap();
    let result = open(bait.path());
    assert!(matches!(result, Err(WorkspaceError::ForeignGit { .. })), "{result:?}");
    // In the place of a submodule, too.
    let outer = Repository::new();
    outer.write("own", "x");
    outer.git(&["submodule", "--quiet", "add", private.path().to_str().unwrap(), "lib"]);
    outer.commit();
    fs::write(outer.path().join("lib/.git"), leads_to).unwrap();
    assert!(matches!(open(&outer.path()), Err(WorkspaceError::ForeignGit { .. })));
}

#[test]
fn a_working_tree_elsewhere_is_refused() {
    let outside = tempfile::tempdir().unwrap();
    fs::write(outside.path().join("secret"), "s3cret").unwrap();
    let repository = Repository::new();
    repository.add("secret", "");
    repository.git(&["config", "core.worktree", outside.path().to_str().unwrap()]);
    let result = open(&repository.path());
    assert!(matches!(result, Err(WorkspaceError::Elsewhere { .. })), "{result:?}");
}

#[test]
fn nothing_is_read_through_a_link_that_leads_out() {
    let outside = tempfile::tempdir().unwrap();
    fs::write(outside.path().join("secret"), "s3cret").unwrap();
    let repository = Repository::new();
    repository.add("sub/secret", "tame");
    fs::remove_dir_all(repository.path().join("sub")).unwrap();
    symlink(outside.path(), repository.path().join("sub")).unwrap();
    let Some(mut guest) = Guest::new() else { return };
    let prepared = guest.prepare(repository.open());
    assert_eq!((prepared.sent, prepared.missing), (0, 1));
    assert!(files(&guest.path()).is_empty());
}

#[test]
fn a_fifo_in_place_of_a_file_does_not_hang() {
    let repository = Repository::new();
    repository.add("pipe", "x");
    let pipe = repository.path().join("pipe");
    fs::remove_file(&pipe).unwrap();
    rustix::fs::mkfifoat(rustix::fs::CWD, &pipe, rustix::fs::Mode::RWXU).unwrap();
    let Some(mut guest) = Guest::new() else { return };
    guest.prepare(repository.open());
    assert!(files(&guest.path()).is_empty());
}
