//! What needs a whole distribution.

use banger_harness::{Contents, Environment, repository};

#[test]
fn a_repository_is_built_and_tested_in_debian() {
    let environment = Environment::new(Contents::Debian);
    let sample = environment.home().join("sample");
    environment.host(
        "cp",
        &["-r", repository().join("examples/sample").to_str().unwrap(), sample.to_str().unwrap()],
    );
    let folder = sample.to_str().unwrap();
    environment.host("git", &["-C", folder, "init", "-q"]);
    environment.host("git", &["-C", folder, "add", "-A"]);
    let run = environment.banger(["vm", "run", "--name", "deb", folder, "--", "make", "test"]).ok();
    assert!(run.out().contains("all tests passed on Linux"), "{run}");

    // The command ran before the distribution's own boot had finished, and
    // commands go on working while it goes on booting.
    let out = |script: &str| environment.exec("deb", ["sh", "-c", script]).run().out();
    assert!(out("cat /etc/os-release").contains("VERSION_CODENAME=bookworm"));
    assert_eq!(out("cat /proc/1/comm"), "systemd\n");
    for tool in
        ["git", "make", "gcc", "curl", "ip", "ps", "less", "vim.tiny", "sshd", "sudo", "python3"]
    {
        environment
            .exec("deb", ["sh", "-c", &format!("PATH=$PATH:/usr/sbin command -v {tool}")])
            .ok();
    }
    let state = banger_harness::wait_for("systemd", banger_harness::GUEST_DEADLINE, || {
        let state = out("systemctl is-system-running");
        (!["starting\n", "initializing\n", ""].contains(&state.as_str())
            && !state.contains("offline"))
        .then_some(state)
    });
    assert_eq!(state, "running\n", "{}", out("systemctl --failed; cat /proc/mounts"));
    assert_eq!(out("hostname"), "deb\n");
    assert_eq!(out("findmnt -no FSTYPE /root"), "ext4\n");
    environment.exec("deb", ["systemctl", "daemon-reexec"]).ok();
    environment.exec("deb", ["true"]).ok();
    environment.banger(["vm", "stop", "deb"]).ok();
    super::disks::disks_are_clean(&environment, "deb");
    environment.finish();
}

#[test]
fn exec_answers_before_systemd_has_finished_booting() {
    let environment = Environment::new(Contents::Debian);
    let script = "systemctl is-system-running; cat /proc/1/comm";
    let early = environment.banger(["vm", "run", "--rm", "--", "sh", "-c", script]).run().out();
    let state = early.lines().next().unwrap_or_default();
    assert!(
        state != "running" && state != "degraded",
        "the first command ran after the boot: {early}"
    );
    environment.finish();
}
