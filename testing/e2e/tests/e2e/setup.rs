//! `scripts/setup`: what it installs, and what it says where it may not.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use banger_harness::{
    Contents, Environment, Finished, Invocation, User, is_root, repository, skip,
};

/// Puts a program into a folder of the test's own.
fn program(folder: &Path, name: &str, script: &str) {
    std::fs::create_dir_all(folder).unwrap();
    let path = folder.join(name);
    std::fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).unwrap();
}

/// Runs a copy of the script, with the test's own programs before the system's.
fn setup(environment: &Environment, prefix: &[String], programs: &Path) -> Finished {
    let clone = environment.base().join("clone");
    std::fs::create_dir_all(clone.join("scripts")).unwrap();
    std::fs::copy(repository().join("scripts/setup"), clone.join("scripts/setup")).unwrap();
    std::fs::copy(repository().join("Cargo.toml"), clone.join("Cargo.toml")).unwrap();
    let mut words = prefix.to_vec();
    words.extend([clone.join("scripts/setup").display().to_string(), "run".to_owned()]);
    let mut command = Command::new(&words[0]);
    command.args(&words[1..]).env_clear().current_dir(&clone);
    command.env("PATH", format!("{}:/usr/sbin:/usr/bin:/sbin:/bin", programs.display()));
    command.env("HOME", environment.home()).env("BANGER_SETUP_NO_SUDO", "1");
    Invocation::new(command).run()
}

const NOT_INSTALLED: &str = "echo not-installed";
const CARGO: &str = "echo cargo 9.9.9";

#[test]
fn without_root_the_line_to_run_is_shown() {
    let environment = Environment::new(Contents::Empty);
    let programs = environment.base().join("programs");
    program(&programs, "dpkg-query", NOT_INSTALLED);
    program(&programs, "cargo", CARGO);
    let user = is_root().then(|| User::create(&environment.base().join("u")));
    let prefix = user.as_ref().map(User::prefix).unwrap_or_default();
    let finished = setup(&environment, &prefix, &programs).code(1);
    let line = finished.err();
    let line = line
        .lines()
        .find(|line| line.trim_start().starts_with("apt-get install -y"))
        .expect("the line");
    assert!(line.contains("libc6-dev") && !line.contains("git"), "only what is missing: {line}");
    drop(user);
    environment.finish();
}

#[test]
fn root_installs_only_what_is_missing_and_removes_nothing() {
    if !is_root() {
        return skip("root", "installs as root");
    }
    let environment = Environment::new(Contents::Empty);
    let programs = environment.base().join("programs");
    let log = environment.base().join("apt.log");
    program(&programs, "dpkg-query", NOT_INSTALLED);
    program(&programs, "cargo", CARGO);
    program(&programs, "apt-get", &format!("echo \"$@\" >> {}", log.display()));
    let _ = setup(&environment, &[], &programs).code(0);
    let log = std::fs::read_to_string(&log).unwrap();
    let install = log.lines().last().unwrap();
    assert!(install.contains("--no-remove") && install.contains("libc6-dev"), "{log}");
    assert!(!install.contains("mmdebstrap"), "mmdebstrap is there already: {log}");
    assert!(!log.contains("update"), "the lists are fresh enough: {log}");
    environment.finish();
}

#[test]
fn an_old_or_missing_cargo_is_named() {
    let environment = Environment::new(Contents::Empty);
    let programs = environment.base().join("programs");
    program(&programs, "dpkg-query", "echo installed");
    program(&programs, "cargo", "echo cargo 1.63.0");
    let user = is_root().then(|| User::create(&environment.base().join("u")));
    let prefix = user.as_ref().map(User::prefix).unwrap_or_default();
    let finished = setup(&environment, &prefix, &programs).code(1);
    assert!(finished.err().contains("1.63.0") && finished.err().contains("1.95"), "{finished}");
    std::fs::remove_file(programs.join("cargo")).unwrap();
    if !Path::new("/usr/bin/cargo").exists() {
        let finished = setup(&environment, &prefix, &programs).code(1);
        assert!(finished.err().contains("cargo is missing"), "{finished}");
    }
    drop(user);
    environment.finish();
}
