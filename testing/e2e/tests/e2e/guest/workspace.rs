//! Workspaces: an agent's day, in a guest that has no git.

use std::fs;
use std::path::{Path, PathBuf};

use banger_harness::{Contents, Environment};

/// Runs git in a folder with an identity of its own.
fn git(environment: &Environment, folder: &Path, arguments: &[&str]) -> String {
    let mut all =
        vec!["-C", folder.to_str().unwrap(), "-c", "user.name=t", "-c", "user.email=t@example.org"];
    all.extend(arguments);
    environment.host("git", &all).out()
}

fn clone(environment: &Environment) -> PathBuf {
    let origin = environment.home().join("origin");
    fs::create_dir_all(origin.join("src")).unwrap();
    fs::write(origin.join("src/add.sh"), "echo $(($1 - $2))\n").unwrap();
    fs::write(origin.join("test.sh"), "test $(sh src/add.sh 2 3) = 5 && touch built\n").unwrap();
    fs::write(origin.join("picture"), [0, 1, 2, 255].repeat(500)).unwrap();
    fs::write(origin.join("README"), "old\n").unwrap();
    fs::write(origin.join(".gitignore"), "built\n").unwrap();
    git(environment, &origin, &["init", "-q", "--initial-branch=main"]);
    git(environment, &origin, &["add", "-A"]);
    git(environment, &origin, &["commit", "-q", "-m", "one"]);
    let repository = environment.home().join("repo");
    let (from, to) = (origin.to_str().unwrap(), repository.to_str().unwrap());
    environment.host("git", &["clone", "-q", from, to]);
    repository
}

#[test]
fn an_agents_day() {
    let environment = Environment::new(Contents::Busybox);
    let repository = clone(&environment);
    let path = repository.to_str().unwrap();
    // Dirty, and it is carried so.
    fs::write(repository.join("README"), "being written\n").unwrap();
    fs::write(repository.join("note"), "untracked\n").unwrap();

    let dry = environment.banger(["vm", "run", path, "--dry-run"]).ok();
    assert_eq!(dry.out(), ".gitignore\nREADME\npicture\nsrc/add.sh\ntest.sh\n");
    assert!(environment.vms().is_empty());

    let arguments = ["vm", "run", "--image", "busybox", "--name", "day", "--branch", "fix", path];
    let run = environment.banger(arguments.into_iter().chain(["--", "sh", "test.sh"])).run();
    run.code(1).says(&["1 untracked file stays here"]);
    let vm = |arguments: &[&str]| environment.banger([&["vm"], arguments].concat());
    let inside = |script: &str| vm(&["exec", "day", "--", "sh", "-c", script]).ok().out();
    assert_eq!(
        inside("pwd; cat .git/HEAD README; ls -A"),
        "/root/repo\nref: refs/heads/fix\nbeing written\n.git\n.gitignore\nREADME\npicture\nsrc\ntest.sh\n"
    );
    assert!(vm(&["workspace", "status", "day"]).ok().out().contains("no file is different"));
    let shown = environment.show("day")["workspace"].clone();
    assert_eq!((&shown["branch"], &shown["source_path"]), (&"fix".into(), &path.into()));
    assert_eq!(shown["head_commit"], git(&environment, &repository, &["rev-parse", "HEAD"]).trim());

    // Edit, test, look, export, apply.
    inside(
        "sed -i 's/-/+/' src/add.sh && sh test.sh && mv picture image && rm README && \
         chmod +x test.sh && ln -s src/add.sh link && printf 'new\\n' > 'with space'",
    );
    let status = vm(&["workspace", "status", "day"]).ok().out();
    for line in
        ["renamed   picture -> image", "deleted   README", "added     link", "modified  src/add.sh"]
    {
        assert!(status.lines().any(|found| found == line), "{line}: {status}");
    }
    assert!(!status.contains("built"), "{status}");
    let diff = vm(&["workspace", "diff", "day"]).ok().out();
    assert!(diff.contains("+echo $(($1 + $2))"), "{diff}");
    let patch = environment.home().join("work.patch");
    vm(&["workspace", "export", "day", "-o", patch.to_str().unwrap()]).ok();
    git(&environment, &repository, &["apply", patch.to_str().unwrap()]);
    environment.host("sh", &["-c", &format!("cd {path} && ./test.sh; sh test.sh && rm built")]);
    assert!(!repository.join("README").exists() && repository.join("image").exists());
    assert_eq!(fs::read_link(repository.join("link")).unwrap(), Path::new("src/add.sh"));

    // The host goes on; the guest follows, and keeps what it has built.
    git(&environment, &repository, &["add", "-A"]);
    git(&environment, &repository, &["commit", "-q", "-m", "two"]);
    vm(&["exec", "day", "--", "true"]).ok().says(&["has other commits than VM day"]);
    let exec = ["exec", "--auto-prepare", "day", "--", "sh", "-c", "ls; cat note"];
    let listed = vm(&exec).ok().out();
    assert_eq!(listed, "built\nimage\nlink\nnote\nsrc\ntest.sh\nwith space\nuntracked\n");
    fs::remove_file(repository.join("link")).unwrap();
    vm(&["workspace", "prepare", "day"]).ok();
    assert_eq!(inside("ls"), "built\nimage\nnote\nsrc\ntest.sh\nwith space\n");
    assert_eq!(inside("cat .git/HEAD"), "ref: refs/heads/fix\n");
    let quiet = vm(&["exec", "day", "--", "true"]).ok();
    assert_eq!(quiet.err(), "");

    // Both sides: nothing is overwritten unless told.
    inside("echo guest > note");
    fs::write(repository.join("note"), "host\n").unwrap();
    vm(&["workspace", "prepare", "day"])
        .run()
        .code(1)
        .is_a_clear_error()
        .says(&["note", "--force"]);
    assert_eq!(inside("cat note"), "guest\n");
    vm(&["workspace", "prepare", "day", "--force"]).ok();
    assert_eq!(inside("cat note"), "host\n");

    // It is all there after a restart, and gone with the machine.
    vm(&["restart", "day"]).ok();
    inside("echo later > later");
    let again = vm(&["workspace", "export", "day", "--base-commit", "HEAD"]).ok().out();
    assert!(
        again.contains("+later") && again.contains("+host") && !again.contains("image"),
        "{again}"
    );
    vm(&["delete", "day"]).ok();
    let kept = environment.home().join(".local/state/banger/workspaces");
    assert_eq!(fs::read_dir(&kept).unwrap().count(), 1);
    vm(&["run", "--rm", "--image", "busybox", path, "--", "true"]).ok();
    assert_eq!(fs::read_dir(&kept).unwrap().count(), 0, "what is gone is not kept");
    environment.finish();
}
