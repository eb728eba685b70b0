//! Real repositories, tame and hostile.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::process::Command;

use super::*;

struct Repository {
    directory: tempfile::TempDir,
}

impl Repository {
    fn new() -> Self {
        let repository = Self { directory: tempfile::tempdir().unwrap() };
        repository.git(&["init", "--quiet"]);
        repository
    }

    fn path(&self) -> PathBuf {
        self.directory.path().canonicalize().unwrap()
    }

    fn git(&self, arguments: &[&str]) {
        let output = Command::new("git")
            .arg("-C")
            .arg(self.directory.path())
            .args(["-c", "user.name=t", "-c", "user.email=t@t", "-c", "protocol.file.allow=always"])
            .args(arguments)
            .env("GIT_CONFIG_GLOBAL", "/dev/null")
            .output()
            .unwrap();
        assert!(output.status.success(), "{arguments:?}: {output:?}");
    }

    fn write(&self, name: &str, content: &str) {
        let path = self.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }

    fn add(&self, name: &str, content: &str) {
        self.write(name, content);
        self.git(&["add", "--", name]);
    }

    fn open(&self) -> Workspace {
        Workspace::open(&self.path(), false).unwrap()
    }
}

/// Returns name → (kind and mode, content or target).
fn packed(workspace: &Workspace) -> BTreeMap<Vec<u8>, (String, Vec<u8>)> {
    let mut tar = Vec::new();
    workspace.write_tar(&mut tar).unwrap();
    let mut archive = tar::Archive::new(&tar[..]);
    let mut found = BTreeMap::new();
    for entry in archive.entries().unwrap() {
        let mut entry = entry.unwrap();
        let kind =
            format!("{:?} {:o}", entry.header().entry_type(), entry.header().mode().unwrap());
        let mut content = Vec::new();
        match entry.link_name_bytes() {
            Some(target) => content.extend_from_slice(&target),
            None => {
                entry.read_to_end(&mut content).unwrap();
            }
        }
        assert_eq!((entry.header().uid().unwrap(), entry.header().gid().unwrap()), (0, 0));
        let before = found.insert(entry.path_bytes().into_owned(), (kind, content));
        assert!(before.is_none(), "twice in the archive");
    }
    found
}

fn names(workspace: &Workspace) -> Vec<String> {
    packed(workspace).into_keys().map(|name| String::from_utf8(name).unwrap()).collect()
}

#[test]
fn what_is_no_repository_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let missing = directory.path().join("none");
    assert!(matches!(Workspace::open(&missing, false), Err(WorkspaceError::Path { .. })));
    let file = directory.path().join("file");
    fs::write(&file, "").unwrap();
    assert!(matches!(Workspace::open(&file, false), Err(WorkspaceError::Path { .. })));
    let result = Workspace::open(directory.path(), false);
    assert!(matches!(result, Err(WorkspaceError::NotARepository { .. })), "{result:?}");
}

#[test]
fn a_directory_that_the_guest_would_not_have_is_refused() {
    let repository = Repository::new();
    repository.write("src/a", "a");
    repository.git(&["add", "src/a"]);
    repository.write("build/b", "b");
    for inside in ["build", ".git"] {
        let result = Workspace::open(&repository.path().join(inside), false);
        assert!(matches!(result, Err(WorkspaceError::NothingTracked { .. })), "{result:?}");
    }
    Workspace::open(&repository.path().join("build"), true).unwrap();
    Workspace::open(&repository.path().join("src"), false).unwrap();
}

#[test]
fn a_bare_repository_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let made =
        Command::new("git").args(["init", "--quiet", "--bare"]).arg(directory.path()).status();
    assert!(made.unwrap().success());
    assert!(Workspace::open(directory.path(), false).is_err());
}

#[test]
fn tracked_files_are_carried_as_they_are_in_the_working_tree() {
    let repository = Repository::new();
    repository.add("a.txt", "committed");
    repository.add("src/deep/run.sh", "#!/bin/sh");
    repository.add("gone.txt", "x");
    fs::set_permissions(
        repository.path().join("src/deep/run.sh"),
        fs::Permissions::from_mode(0o700),
    )
    .unwrap();
    symlink("/etc/passwd", repository.path().join("link")).unwrap();
    repository.git(&["add", "link"]);
    repository.git(&["commit", "--quiet", "-m", "x"]);
    repository.write("a.txt", "changed");
    repository.write("untracked", "x");
    fs::remove_file(repository.path().join("gone.txt")).unwrap();

    let workspace = repository.open();
    assert_eq!(workspace.skipped_untracked, 1);
    assert_eq!(workspace.head.as_ref().map(String::len), Some(40));
    let found = packed(&workspace);
    assert_eq!(found[&b"a.txt"[..]], ("Regular 644".to_owned(), b"changed".to_vec()));
    assert_eq!(found[&b"src/deep/run.sh"[..]].0, "Regular 755");
    assert_eq!(found[&b"link"[..]], ("Symlink 777".to_owned(), b"/etc/passwd".to_vec()));
    let names: Vec<_> = found.keys().map(|name| String::from_utf8_lossy(name)).collect();
    assert_eq!(names, ["a.txt", "link", "src", "src/deep", "src/deep/run.sh"]);
}

#[test]
fn untracked_files_come_only_when_asked_for_and_ignored_ones_never() {
    let repository = Repository::new();
    repository.add(".gitignore", "secret*\n");
    repository.write("secret.key", "x");
    repository.write("new.txt", "x");
    assert_eq!(names(&repository.open()), [".gitignore"]);
    let workspace = Workspace::open(&repository.path(), true).unwrap();
    assert_eq!(names(&workspace), [".gitignore", "new.txt"]);
    assert_eq!(workspace.skipped_untracked, 0);
}

#[test]
fn an_empty_repository_without_a_commit_works() {
    let repository = Repository::new();
    let workspace = repository.open();
    assert_eq!((workspace.len(), workspace.head.clone()), (0, None));
    assert!(packed(&workspace).is_empty());
}

#[test]
fn a_directory_inside_brings_the_whole_repository_and_is_remembered() {
    let repository = Repository::new();
    repository.add("a", "x");
    repository.add("sub/dir/b", "x");
    let workspace = Workspace::open(&repository.path().join("sub/dir"), false).unwrap();
    assert_eq!(names(&workspace), ["a", "sub", "sub/dir", "sub/dir/b"]);
    assert_eq!(workspace.guest_directory(), b"/root/repo/sub/dir");
    assert_eq!(repository.open().guest_directory(), b"/root/repo");
}

#[test]
fn odd_names_arrive_unchanged() {
    let repository = Repository::new();
    let long = format!("{}/{}", "d".repeat(120), "f".repeat(200));
    for name in ["with\nnewline", "with space", "\"quoted\"", "ü", "-n", ":(glob)*", &long] {
        repository.add(&format!("./{name}"), name);
    }
    let raw = OsStr::from_bytes(b"raw-\xff");
    fs::write(repository.path().join(raw), "raw").unwrap();
    repository.git(&["add", "--all"]);
    let found = packed(&repository.open());
    for name in ["with\nnewline", "with space", "\"quoted\"", "ü", "-n", ":(glob)*", &long] {
        assert_eq!(found[name.as_bytes()].1, name.as_bytes(), "{name:?}");
    }
    assert_eq!(found[&b"raw-\xff"[..]].1, b"raw");
}

#[test]
fn submodules_are_refused_by_name() {
    let inner = Repository::new();
    inner.add("x", "x");
    inner.git(&["commit", "--quiet", "-m", "x"]);
    let outer = Repository::new();
    outer.git(&["submodule", "--quiet", "add", inner.path().to_str().unwrap(), "library"]);
    match Workspace::open(&outer.path(), false) {
        Err(WorkspaceError::Submodules { example, .. }) => {
            assert_eq!(example, Path::new("library"));
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_hostile_configuration_runs_nothing() {
    let repository = Repository::new();
    repository.add("a", "x");
    repository.git(&["commit", "--quiet", "-m", "x"]);
    let marker = repository.path().join("pwned");
    let command = format!("touch '{}'; false", marker.display());
    for (key, value) in [
        ("core.fsmonitor", command.as_str()),
        ("core.pager", &command),
        ("core.sshCommand", &command),
        ("core.editor", &command),
        ("diff.external", &command),
        ("filter.evil.clean", &command),
        ("filter.evil.smudge", &command),
        ("filter.evil.process", &command),
        ("credential.helper", &command),
        ("alias.ls-files", &format!("!{command}")),
        ("uploadpack.packObjectsHook", &command),
    ] {
        repository.git(&["config", key, value]);
    }
    let hooks = repository.path().join(".git/hooks");
    fs::create_dir_all(&hooks).unwrap();
    for hook in
        ["post-index-change", "post-checkout", "reference-transaction", "fsmonitor-watchman"]
    {
        let path = hooks.join(hook);
        fs::write(&path, format!("#!/bin/sh\n{command}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    }
    fs::write(repository.path().join(".gitattributes"), "* filter=evil\n").unwrap();
    fs::write(repository.path().join("a"), "changed").unwrap();
    let workspace = repository.open();
    assert_eq!(names(&workspace), ["a"]);
    assert!(!marker.exists());
}

#[test]
fn a_working_tree_elsewhere_is_refused() {
    let outside = tempfile::tempdir().unwrap();
    fs::write(outside.path().join("secret"), "s3cret").unwrap();
    let repository = Repository::new();
    repository.add("secret", "");
    repository.git(&["config", "core.worktree", outside.path().to_str().unwrap()]);
    let result = Workspace::open(&repository.path(), false);
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
    let workspace = repository.open();
    let mut tar = Vec::new();
    let packed = workspace.write_tar(&mut tar).unwrap();
    assert_eq!(packed, Packed { missing: 1, ..Packed::default() });
    assert!(!tar.windows(6).any(|window| window == b"s3cret"));
}

#[test]
fn a_fifo_in_place_of_a_file_does_not_hang() {
    let repository = Repository::new();
    repository.add("pipe", "x");
    fs::remove_file(repository.path().join("pipe")).unwrap();
    nix::unistd::mkfifo(&repository.path().join("pipe"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    assert!(names(&repository.open()).is_empty());
}
