//! The command line without a daemon: what it prints and how it ends, in an empty environment.
#![forbid(unsafe_code)]
#![expect(clippy::unwrap_used, reason = "a broken precondition fails the test")]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;

use assert_cmd::Command;

/// A place of its own for every file that `banger` would touch.
struct Place {
    directory: tempfile::TempDir,
}

/// What a run printed, and its exit code.
struct Outcome {
    stdout: String,
    stderr: String,
    code: Option<i32>,
}

impl Place {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        // Where the tests run as root, bangerd's own uid must pass through.
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).unwrap();
        Self { directory }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn banger(&self, arguments: &[&str]) -> Command {
        let mut command = Command::cargo_bin("banger").unwrap();
        command
            .args(arguments)
            .env_clear()
            .env("PATH", "/usr/bin:/bin")
            .env("HOME", self.directory.path())
            .env("BANGER_STATE_DIR", self.path("state"))
            .env("BANGER_CACHE_DIR", self.path("cache"))
            .env("BANGER_RUNTIME_DIR", self.path("run"))
            .env("BANGER_BANGERD", self.path("no-bangerd"));
        command
    }

    fn run(&self, arguments: &[&str]) -> Outcome {
        self.outcome(&mut self.banger(arguments))
    }

    fn outcome(&self, command: &mut Command) -> Outcome {
        let output = command.output().unwrap();
        let place = self.directory.path().to_string_lossy().into_owned();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).replace(&place, "PLACE");
        Outcome {
            stdout: text(&output.stdout),
            stderr: text(&output.stderr),
            code: output.status.code(),
        }
    }
}

/// Takes out what differs from host to host.
fn without_defaults(text: &str) -> String {
    text.lines()
        .map(|line| match line.find("[default: ") {
            Some(start) if line.contains("CPUs") || line.contains("Memory") => {
                format!("{}[default: HOST]", &line[..start])
            }
            _ => line.to_owned(),
        })
        .collect::<Vec<_>>()
        .join("\n")
}

#[test]
fn the_short_help_lists_the_verbs() {
    let outcome = Place::new().run(&["-h"]);
    assert_eq!(outcome.code, Some(0));
    insta::assert_snapshot!(outcome.stdout);
}

#[test]
fn the_long_help_documents_exit_codes_and_environment() {
    let outcome = Place::new().run(&["--help"]);
    assert_eq!(outcome.code, Some(0));
    insta::assert_snapshot!(outcome.stdout);
}

#[test]
fn the_help_of_run_has_examples_and_defaults() {
    let outcome = Place::new().run(&["vm", "run", "--help"]);
    assert_eq!(outcome.code, Some(0));
    insta::assert_snapshot!(without_defaults(&outcome.stdout));
}

#[test]
fn every_verb_has_a_help() {
    let place = Place::new();
    for verb in [
        &["vm", "exec"][..],
        &["vm", "create"],
        &["vm", "start"],
        &["vm", "stop"],
        &["vm", "restart"],
        &["vm", "kill"],
        &["vm", "delete"],
        &["vm", "list"],
        &["vm", "show"],
        &["vm", "logs"],
        &["vm", "set"],
        &["config", "get"],
        &["config", "set"],
        &["config", "list"],
        &["ps"],
        &["image", "list"],
        &["image", "show"],
        &["image", "pull"],
        &["image", "import"],
        &["image", "delete"],
        &["kernel", "list"],
        &["kernel", "show"],
        &["kernel", "pull"],
        &["kernel", "import"],
        &["kernel", "delete"],
        &["doctor"],
        &["version"],
        &["completion"],
        &["daemon", "status"],
        &["daemon", "stop"],
    ] {
        let outcome = place.run(&[verb, &["--help"]].concat());
        assert_eq!(outcome.code, Some(0), "{verb:?}: {}", outcome.stderr);
        assert!(outcome.stdout.contains("Usage: banger"), "{verb:?}");
    }
}

#[test]
fn a_wrong_command_line_ends_with_2_and_starts_nothing() {
    let place = Place::new();
    for arguments in [
        &[][..],
        &["fly"],
        &["vm", "run", "--vcpu", "0", "--", "true"],
        &["vm", "run", "--memory", "1K"],
        &["vm", "run", "--name", "Not_A_Name"],
        &["vm", "run", "--detach", "--rm"],
        &["vm", "run", "--include-untracked"],
        &["vm", "exec"],
        &["vm", "exec", "../x", "--", "true"],
        &["vm", "exec", "box", "--env", "=x", "--", "true"],
        &["vm", "exec", "box", "--workdir", "relative", "--", "true"],
        &["vm", "exec", "box", "--user", "a b", "--", "true"],
        &["vm", "run", "--allow-lan"],
        &["vm", "run", "--group", "-x"],
        &["vm", "set", "box"],
        &["vm", "set", "box", "--nat", "--no-nat"],
        &["config", "get", "network"],
        &["config", "set", "network.subnet", "8.8.8.1/24"],
        &["vm", "stop"],
        &["vm", "stop", "box", "--force", "--grace", "1"],
        &["vm", "kill", "box", "--signal", "STOP"],
        &["image", "show", "a/b"],
        &["completion", "tcsh"],
    ] {
        let outcome = place.run(arguments);
        assert_eq!(outcome.code, Some(2), "{arguments:?}: {}", outcome.stderr);
        assert!(outcome.stdout.is_empty(), "{arguments:?}");
    }
    assert_eq!(fs::read_dir(place.directory.path()).unwrap().count(), 0);
}

#[test]
fn a_missing_daemon_is_said_with_the_verbs_own_code() {
    let place = Place::new();
    let list = place.run(&["vm", "list"]);
    insta::assert_snapshot!(list.stderr, @r"
    banger: error: cannot use PLACE/no-bangerd
      caused by: No such file or directory (os error 2)
    hint: BANGER_BANGERD must name the bangerd executable
    ");
    assert_eq!(list.code, Some(1));
    for arguments in [&["vm", "run", "--", "true"][..], &["vm", "exec", "box", "--", "true"]] {
        assert_eq!(place.run(arguments).code, Some(125), "{arguments:?}");
    }
}

#[test]
fn a_daemon_that_ends_at_once_is_told_from_one_that_babbles() {
    let place = Place::new();
    let ended = place.outcome(place.banger(&["vm", "list"]).env("BANGER_BANGERD", "/bin/false"));
    insta::assert_snapshot!(ended.stderr, @r"
    banger: error: bangerd did not start
      caused by: it ended before it was ready
    hint: its log is PLACE/state/bangerd.log
    ");
    let babbles = place.outcome(place.banger(&["vm", "list"]).env("BANGER_BANGERD", "/bin/echo"));
    assert!(babbles.stderr.contains("does not understand"), "{}", babbles.stderr);
    assert_eq!((ended.code, babbles.code), (Some(1), Some(1)));
}

#[test]
fn the_daemon_gets_private_directories_of_its_own() {
    let place = Place::new();
    place.outcome(place.banger(&["vm", "list"]).env("BANGER_BANGERD", "/bin/false"));
    for name in ["state", "cache", "run"] {
        let metadata = fs::metadata(place.path(name)).unwrap();
        assert_eq!(metadata.permissions().mode() & 0o7777, 0o700, "{name}");
        let expected = if rustix::process::geteuid().is_root() {
            60907
        } else {
            rustix::process::geteuid().as_raw()
        };
        assert_eq!(std::os::unix::fs::MetadataExt::uid(&metadata), expected, "{name}");
    }
}

#[test]
fn a_stranger_on_the_socket_is_not_talked_to() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("SKIP: root: the expected uid differs from ours only for root");
        return;
    }
    let place = Place::new();
    fs::create_dir(place.path("run")).unwrap();
    let listener = UnixListener::bind(place.path("run/bangerd.sock")).unwrap();
    let outcome = place.run(&["daemon", "status"]);
    assert_eq!(outcome.code, Some(1));
    assert!(outcome.stderr.contains("runs as uid 0, not as 60907"), "{}", outcome.stderr);
    listener.set_nonblocking(true).unwrap();
    let (mut stream, _) = listener.accept().unwrap();
    let mut sent = Vec::new();
    std::io::Read::read_to_end(&mut stream, &mut sent).unwrap();
    assert!(sent.is_empty());
}

#[test]
fn a_stale_socket_is_not_a_running_daemon() {
    let place = Place::new();
    fs::create_dir(place.path("run")).unwrap();
    drop(UnixListener::bind(place.path("run/bangerd.sock")).unwrap());
    let outcome = place.run(&["daemon", "status"]);
    assert_eq!(outcome.stdout, "bangerd is not running\n");
    assert_eq!(outcome.code, Some(0));
    let outcome = place.run(&["daemon", "status", "--json"]);
    assert_eq!(outcome.stdout, "{\n  \"running\": false\n}\n");
    assert_eq!(place.run(&["daemon", "stop"]).code, Some(0));
}

#[test]
fn a_runtime_directory_too_long_for_a_socket_is_said() {
    let place = Place::new();
    let long = place.path(&"x".repeat(120));
    let outcome =
        place.outcome(place.banger(&["daemon", "status"]).env("BANGER_RUNTIME_DIR", long));
    assert!(outcome.stderr.contains("longer than a socket's path may be"), "{}", outcome.stderr);
}

#[test]
fn a_bad_environment_is_a_usage_error() {
    let place = Place::new();
    for (name, value) in [("BANGER_STATE_DIR", "relative"), ("BANGER_MODE", "sideways")] {
        let outcome = place.outcome(place.banger(&["vm", "list"]).env(name, value));
        assert_eq!(outcome.code, Some(2), "{name}");
        assert!(outcome.stderr.contains(name), "{}", outcome.stderr);
    }
}

#[test]
fn a_bad_workspace_is_refused_before_anything_is_started() {
    let place = Place::new();
    let missing = place.path("none");
    let outcome = place.run(&["vm", "run", missing.to_str().unwrap(), "--", "true"]);
    insta::assert_snapshot!(outcome.stderr, @r"
    banger: error: cannot use PLACE/none as a workspace
      caused by: No such file or directory (os error 2)
    hint: a command goes after --: banger vm run [PATH] -- COMMAND
    ");
    assert_eq!(outcome.code, Some(125));
    let plain = place.path("plain");
    fs::create_dir(&plain).unwrap();
    let outcome = place.run(&["vm", "run", plain.to_str().unwrap(), "--", "true"]);
    assert!(outcome.stderr.contains("not in the working tree of a git repository"));
    assert!(!place.path("run").exists());
}

#[test]
fn git_variables_of_the_caller_do_not_lead_elsewhere() {
    let place = Place::new();
    let repository = place.path("repository");
    let made = std::process::Command::new("git").args(["init", "-q"]).arg(&repository).status();
    assert!(made.unwrap().success());
    let outcome = place.outcome(
        place
            .banger(&["-v", "vm", "run", repository.to_str().unwrap(), "--", "true"])
            .env("GIT_DIR", "/nonexistent")
            .env("GIT_WORK_TREE", "/etc")
            .env("GIT_INDEX_FILE", "/nonexistent"),
    );
    assert!(outcome.stderr.contains("0 files of PLACE/repository"), "{}", outcome.stderr);
}

#[test]
fn version_and_completion_need_no_daemon() {
    let place = Place::new();
    let version = place.run(&["version"]);
    assert!(version.stdout.starts_with("banger "), "{}", version.stdout);
    let json: serde_json::Value =
        serde_json::from_str(&place.run(&["version", "--json"]).stdout).unwrap();
    assert_eq!(json["version"], env!("CARGO_PKG_VERSION"));
    for shell in ["bash", "elvish", "fish", "powershell", "zsh"] {
        let outcome = place.run(&["completion", shell]);
        assert_eq!(outcome.code, Some(0), "{shell}");
        assert!(outcome.stdout.contains("banger"), "{shell}");
    }
    assert!(!place.path("run").exists());
}

#[test]
fn completion_offers_verbs_without_a_daemon() {
    let place = Place::new();
    let outcome = place.outcome(
        place
            .banger(&["--", "banger", "vm", "st"])
            .env("COMPLETE", "bash")
            .env("_CLAP_COMPLETE_INDEX", "2")
            .env("_CLAP_IFS", "\n"),
    );
    let offered: Vec<&str> = outcome.stdout.lines().collect();
    assert_eq!(offered, ["start", "stop", "stats"], "{}", outcome.stderr);
    let outcome = place.outcome(
        place
            .banger(&["--", "banger", "vm", "show", ""])
            .env("COMPLETE", "bash")
            .env("_CLAP_COMPLETE_INDEX", "3")
            .env("_CLAP_IFS", "\n"),
    );
    assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
    let outcome = place.outcome(
        place
            .banger(&["--", "banger", "config", "get", "network.s"])
            .env("COMPLETE", "bash")
            .env("_CLAP_COMPLETE_INDEX", "3")
            .env("_CLAP_IFS", "\n"),
    );
    assert_eq!(outcome.stdout.trim(), "network.subnet", "{}", outcome.stderr);
    assert!(!place.path("run").exists());
}

#[test]
fn man_pages_are_written_for_every_verb() {
    let place = Place::new();
    let outcome = place.run(&["internal", "man", place.directory.path().to_str().unwrap()]);
    assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
    for page in ["banger.1", "banger-vm-run.1", "banger-image-pull.1"] {
        assert!(place.path(page).exists(), "{page}");
    }
    assert!(!place.path("banger-internal.1").exists());
}

#[test]
fn a_closed_output_ends_quietly() {
    let place = Place::new();
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let mut child = std::process::Command::new(Command::cargo_bin("banger").unwrap().get_program())
        .args(["version"])
        .env_clear()
        .env("HOME", place.directory.path())
        .stdout(writer)
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut stderr = String::new();
    std::io::Read::read_to_string(&mut child.stderr.take().unwrap(), &mut stderr).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(141));
    assert_eq!(stderr, "");
}

#[test]
fn colours_stay_out_of_pipes() {
    let place = Place::new();
    let outcome = place.outcome(place.banger(&["vm", "list"]).env("TERM", "xterm-256color"));
    assert!(!outcome.stderr.contains('\x1b'));
}

#[test]
fn a_machines_patch_does_not_go_to_a_terminal_unasked() {
    use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
    let place = Place::new();
    let run = |arguments: &[&str]| {
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let terminal = openpt(flags).unwrap();
        grantpt(&terminal).unwrap();
        unlockpt(&terminal).unwrap();
        let name = ptsname(&terminal, Vec::new()).unwrap();
        let name = PathBuf::from(name.into_string().unwrap());
        let stdout = fs::OpenOptions::new().read(true).write(true).open(name).unwrap();
        let output = std::process::Command::new(assert_cmd::cargo::cargo_bin("banger"))
            .args(["vm", "workspace", "export", "box"])
            .args(arguments)
            .env_clear()
            .env("PATH", "/usr/bin:/bin")
            .env("HOME", place.directory.path())
            .env("BANGER_STATE_DIR", place.path("state"))
            .env("BANGER_CACHE_DIR", place.path("cache"))
            .env("BANGER_RUNTIME_DIR", place.path("run"))
            .env("BANGER_BANGERD", place.path("no-bangerd"))
            .stdin(std::process::Stdio::null())
            .stdout(stdout)
            .output()
            .unwrap();
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    let (code, text) = run(&[]);
    assert!(code == Some(2) && text.contains("a terminal, which obeys"), "{code:?}: {text}");
    // These get as far as the daemon, which is not there.
    for arguments in [["--force"], ["--output=patch"]] {
        let (code, text) = run(&arguments);
        assert!(code == Some(1) && !text.contains("terminal"), "{code:?}: {text}");
    }
}
