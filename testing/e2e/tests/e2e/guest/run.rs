//! `vm run`: one command from nothing to an exit code.

use banger_harness::{Contents, Environment};

/// Runs git in a folder with an identity of its own.
fn git(environment: &Environment, folder: &std::path::Path, arguments: &[&str]) {
    let mut all =
        vec!["-C", folder.to_str().unwrap(), "-c", "user.name=t", "-c", "user.email=t@example.org"];
    all.extend(arguments);
    environment.host("git", &all);
}

#[test]
fn the_guest_is_another_machine() {
    let environment = Environment::new(Contents::Busybox);
    let script = "cat /proc/sys/kernel/random/boot_id; uname -r; hostname; cat /etc/os-release";
    let run = environment
        .banger(["vm", "run", "--image", "busybox", "--name", "other", "--", "sh", "-c", script])
        .ok()
        .out();
    let mut lines = run.lines();
    let host = |path: &str| std::fs::read_to_string(path).unwrap().trim().to_owned();
    let boot_id = lines.next().unwrap();
    assert_eq!(boot_id.len(), 36);
    assert_ne!(boot_id, host("/proc/sys/kernel/random/boot_id"));
    let release = lines.next().unwrap();
    assert_eq!(release, environment.kernel_manifest()["version"], "{run}");
    assert_ne!(release, host("/proc/sys/kernel/osrelease"));
    assert_eq!(lines.next(), Some("other"));
    assert!(run.contains("ID=busybox"));
    // Without --rm the VM stays, as the same one.
    let shown = environment.show("other");
    assert_eq!(shown["state"], "running");
    assert_eq!(shown["runtime"]["boot_id"], boot_id);
    assert_eq!(shown["runtime"]["kernel_release"], release);
    environment.finish();
}

#[test]
fn a_repository_arrives_with_its_tracked_files_only() {
    let environment = Environment::new(Contents::Busybox);
    let repository = environment.home().join("repo");
    std::fs::create_dir_all(repository.join("deep/er")).unwrap();
    let write = |path: &str, text: &str| std::fs::write(repository.join(path), text).unwrap();
    write("run.sh", "#!/bin/sh\necho ran in $(pwd) with $(cat deep/er/file)\nexit 17\n");
    std::fs::set_permissions(
        repository.join("run.sh"),
        std::os::unix::fs::PermissionsExt::from_mode(0o755),
    )
    .unwrap();
    write("deep/er/file", "content");
    write("with space\nand newline", "odd");
    write(".gitignore", "ignored\n");
    write("ignored", "x");
    std::os::unix::fs::symlink("deep/er/file", repository.join("link")).unwrap();
    git(&environment, &repository, &["init", "-q"]);
    git(&environment, &repository, &["add", "-A"]);
    git(&environment, &repository, &["commit", "-q", "-m", "x"]);
    write("untracked", "x");
    write("deep/er/file", "changed");
    // A hostile configuration must not run anything on the host.
    let trap = environment.home().join("trap");
    let touch = format!("touch {}", trap.display());
    git(&environment, &repository, &["config", "core.fsmonitor", &touch]);
    git(&environment, &repository, &["config", "core.sshCommand", &touch]);
    git(&environment, &repository, &["config", "diff.external", &touch]);

    let run = |arguments: &[&str]| {
        let mut all = vec!["vm", "run", "--rm", "--image", "busybox"];
        all.extend(arguments);
        environment.banger(all).run()
    };
    let path = repository.to_str().unwrap();
    let ran = run(&[path, "--", "./run.sh"]).code(17);
    assert_eq!(ran.out(), "ran in /root/repo with changed\n");
    let listed =
        run(&[path, "--", "sh", "-c", "ls -A; readlink link; cat with*; stat -c %U .; cat link"])
            .code(0)
            .out();
    assert!(!listed.contains("untracked") && !listed.contains("ignored\n"), "{listed}");
    assert!(
        listed.contains("link") && listed.contains("deep/er/file") && listed.contains("odd"),
        "{listed}"
    );
    assert!(!trap.exists(), "the repository's configuration ran a command on the host");

    // From inside the repository, by a relative path.
    let here = environment
        .banger(["vm", "run", "--rm", "--image", "busybox", ".", "--", "cat", "deep/er/file"])
        .folder(&repository);
    assert_eq!(here.ok().out(), "changed");
    environment.finish();
}

#[test]
fn a_name_is_taken_once() {
    let environment = Environment::new(Contents::Busybox);
    environment.start_busybox("box");
    let again = environment
        .banger(["vm", "run", "--image", "busybox", "--name", "box", "--", "true"])
        .run();
    again.code(125).is_a_clear_error().says(&["box"]);
    assert_eq!(environment.vms(), ["box"]);
    environment.finish();
}

#[test]
fn rm_deletes_the_vm_whatever_the_command_returned() {
    let environment = Environment::new(Contents::Busybox);
    for code in [0, 3] {
        let script = format!("exit {code}");
        environment
            .banger(["vm", "run", "--rm", "--image", "busybox", "--", "sh", "-c", &script])
            .run()
            .code(code);
        banger_harness::wait_for("the end of the VM", banger_harness::GUEST_DEADLINE, || {
            environment.vms().is_empty().then_some(())
        });
    }
    environment.finish();
}

#[test]
fn rm_deletes_the_vm_of_a_killed_client() {
    let environment = Environment::new(Contents::Busybox);
    let arguments =
        ["vm", "run", "--rm", "--image", "busybox", "--", "sh", "-c", "echo ready; sleep 1000"];
    let mut run = environment.banger(arguments).spawn();
    run.wait_for_output("ready");
    assert_eq!(environment.vms().len(), 1);
    run.signal(rustix::process::Signal::KILL);
    let _ = run.finish().signal(9);
    banger_harness::wait_for("the end of the VM", banger_harness::GUEST_DEADLINE, || {
        environment.vms().is_empty().then_some(())
    });
    environment.finish();
}

#[test]
fn rm_deletes_the_vm_whatever_dies_and_says_what_did() {
    let environment = Environment::new(Contents::Busybox);
    let begin = || {
        let arguments =
            ["vm", "run", "--rm", "--image", "busybox", "--", "sh", "-c", "echo ready; sleep 1000"];
        let mut run = environment.banger(arguments).spawn();
        run.wait_for_output("ready");
        run
    };
    let gone = || {
        assert_eq!(environment.vms(), [""; 0]);
        let vmms = environment.processes().into_iter();
        let vmms = vmms.filter(|process| process.program().starts_with("qemu")).count();
        assert_eq!(vmms, 0);
    };
    let run = begin();
    let vm = environment.vms().remove(0);
    environment.vmm(&vm).signal(rustix::process::Signal::KILL);
    let killed = run.finish().code(125).says(&["ended before the command did", "caused by"]);
    assert!(!killed.err().contains("could not be deleted"), "{killed}");
    gone();
    let run = begin();
    environment.daemon().unwrap().signal(rustix::process::Signal::KILL);
    let killed = run.finish().code(125).says(&["bangerd ended while the command ran"]);
    assert!(!killed.err().contains("keeps running"), "{killed}");
    assert!(!killed.err().contains("could not be deleted"), "{killed}");
    gone();
    let run = begin();
    environment.stop_daemon();
    let stopped = run.finish().code(125);
    assert!(!stopped.err().contains("could not be deleted"), "{stopped}");
    assert!(environment.daemon().is_none(), "a daemon that was stopped is not started again");
    gone();
    environment.finish();
}

#[test]
fn sizes_are_what_was_asked_for() {
    let environment = Environment::new(Contents::Busybox);
    let sizes = ["--vcpu", "1", "--memory", "384M", "--disk-size", "3G"];
    let mut run = environment.banger(["vm", "run", "--name", "sized", "--image", "busybox"]);
    run.command().args(sizes).args([
        "--",
        "sh",
        "-c",
        "grep -c ^processor /proc/cpuinfo; free -k | grep Mem; df -k /root | tail -n 1",
    ]);
    let out = run.ok().out();
    let mut lines = out.lines();
    assert_eq!(lines.next(), Some("1"));
    let number = |line: Option<&str>, field: usize| {
        line.unwrap().split_whitespace().nth(field).unwrap().parse::<u64>().unwrap()
    };
    let memory = number(lines.next(), 1);
    assert!((300_000..=384 * 1024).contains(&memory), "{out}");
    let disk = number(lines.next(), 1);
    assert!((2_700_000..=3 << 20).contains(&disk), "{out}");
    let spec = environment.show("sized")["spec"].clone();
    assert_eq!((spec["vcpus"].as_u64(), spec["memory_mib"].as_u64()), (Some(1), Some(384)));
    environment.finish();
}
