//! Images that are applications: one program, whatever C library it has or has not.

use std::path::PathBuf;

use banger_harness::{Contents, Environment, GUEST_DEADLINE, Invocation, RootfsTar, wait_for};
use serde_json::{Value, json};

use crate::kernels::kernel_directory;

/// How the program is linked.
enum Libraries {
    None,
    Musl,
    Glibc,
}

/// Compiles the application; returns it with what it needs at run time.
fn program(environment: &Environment, libraries: &Libraries) -> Vec<(String, PathBuf)> {
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/e2e/guest/application.c");
    let target = environment.home().join("application");
    let path = target.to_str().unwrap();
    let (compiler, options): (&str, &[&str]) = match libraries {
        Libraries::None => ("gcc", &["-static"]),
        Libraries::Musl => ("musl-gcc", &[]),
        Libraries::Glibc => ("gcc", &[]),
    };
    environment.host(compiler, &[options, &["-O1", "-o", path, source]].concat());
    let mut files = vec![("app".to_owned(), target)];
    match libraries {
        Libraries::None => {}
        Libraries::Musl => {
            let loader = "lib/ld-musl-x86_64.so.1";
            files.push((loader.to_owned(), std::fs::canonicalize(format!("/{loader}")).unwrap()));
        }
        Libraries::Glibc => {
            for (name, file) in [
                ("lib64/ld-linux-x86-64.so.2", "/lib64/ld-linux-x86-64.so.2"),
                ("lib/x86_64-linux-gnu/libc.so.6", "/lib/x86_64-linux-gnu/libc.so.6"),
            ] {
                files.push((name.to_owned(), std::fs::canonicalize(file).unwrap()));
            }
        }
    }
    files
}

/// An image of the application and nothing else.
fn image(environment: &Environment, name: &str, libraries: &Libraries, config: &Value) {
    let mut tar = RootfsTar::default();
    for (path, file) in program(environment, libraries) {
        tar = tar.file(&path, 0o755, &std::fs::read(file).unwrap());
    }
    import(environment, name, &tar.finish(), config);
}

pub(super) fn import(environment: &Environment, name: &str, tar: &[u8], config: &Value) {
    let file = environment.home().join(format!("{name}.json"));
    std::fs::write(&file, config.to_string()).unwrap();
    environment.import(name, tar).arg("--config").arg(file).ok();
}

/// Waits until a VM has ended by itself, and returns what is known of it.
pub(super) fn ended(environment: &Environment, vm: &str) -> Value {
    wait_for("the VM's end", GUEST_DEADLINE, || {
        Some(environment.show(vm)).filter(|shown| shown["state"] == "stopped")
    })
}

pub(super) fn logs(environment: &Environment, vm: &str) -> String {
    environment.banger(["vm", "logs", vm]).ok().out()
}

fn run(environment: &Environment, words: &[&str]) -> Invocation {
    environment.banger([&["vm", "run"], words].concat())
}

#[test]
fn an_image_of_one_static_program_runs_it_as_its_configuration_says() {
    let environment = Environment::new(Contents::Busybox);
    let config = json!({
        "Entrypoint": ["/app"], "Cmd": ["by default"], "Env": ["COLOR=red", "PATH=/nowhere"],
        "WorkingDir": "/work/in", "User": "1234:77", "Volumes": {"/vol/ume": {}},
        "StopSignal": "SIGQUIT", "ExposedPorts": {"8080/tcp": {}},
    });
    image(&environment, "scratch", &Libraries::None, &config);
    let ran = run(&environment, &["--name", "once", "--image", "scratch"]).run().code(42);
    let out = ran.out();
    for line in [
        "word by default",
        "COLOR=red HOME=/ PATH=/nowhere",
        "in /work/in",
        "user 1234 group 77",
        "/vol/ume 755",
        "/tmp 1777",
        "/etc/resolv.conf 644",
        "/etc/hosts 644",
        "/dev/pts/ptmx 0",
        "/dev/shm 1777",
        "/proc/self 555",
        "/sys/kernel 755",
        "/run 755",
    ] {
        assert!(out.lines().any(|found| found == line), "{line} in {out}");
    }
    assert_eq!(ran.err().lines().last(), Some("an error"));
    let shown = ended(&environment, "once");
    assert_eq!(shown["main_exit"], json!({"code": 42, "signal": null}));
    assert_eq!(shown["last_error"], Value::Null);
    assert!(environment.banger(["vm", "show", "once"]).ok().out().contains("exited with 42"));
    let log = logs(&environment, "once");
    assert!(log.contains("word by default") && log.contains("an error"), "{log}");
    // What was said once counts at each start.
    let other =
        ["--name", "other", "--image", "scratch", "-e", "COLOR=blue", "-u", "0", "-w", "/x"];
    let ran = run(&environment, &[&other[..], &["--", "a", "b c"]].concat()).run().code(42);
    let expected = "word a\nword b c\nCOLOR=blue HOME=/ PATH=/nowhere\nin /x\nuser 0 group 0\n";
    assert!(ran.out().starts_with(expected), "{}", ran.out());
    environment.finish();
}

#[test]
fn a_service_answers_is_looked_into_and_ends_by_its_own_signal() {
    let environment = Environment::new(Contents::Busybox);
    let config = json!({"Entrypoint": ["/app"], "Cmd": ["serve"], "StopSignal": "SIGQUIT"});
    image(&environment, "service", &Libraries::None, &config);
    run(&environment, &["-d", "--name", "web", "--image", "service", "-p", "8080:8080"]).ok();
    let page = || {
        let script =
            "exec 3<>/dev/tcp/127.0.0.1/8080 && printf 'GET / HTTP/1.0\\r\\n\\r\\n' >&3 && cat <&3";
        let output = environment.command_in_network(&["bash", "-c", script]).output().unwrap();
        let answer = String::from_utf8_lossy(&output.stdout).into_owned();
        answer.contains("hello from the application").then_some(())
    };
    if banger_harness::is_root() {
        wait_for("the service", GUEST_DEADLINE, page);
    }
    assert!(logs(&environment, "web").contains("serving"));
    // There is no shell and no user; what is there runs, and what is not is named.
    let seen = environment.exec("web", ["/app", "x"]).run().code(42);
    assert!(seen.out().starts_with("word x\n"), "{}", seen.out());
    let missing = environment.exec("web", ["sh", "-c", "true"]).run().code(127);
    assert_eq!(missing.err(), "banger: exec: sh: No such file or directory\n");
    environment.banger(["vm", "stop", "web"]).ok();
    let shown = environment.show("web");
    assert_eq!(shown["main_exit"]["code"], 7);
    assert_eq!((&shown["state"], &shown["last_error"]), (&json!("stopped"), &Value::Null));
    assert!(logs(&environment, "web").contains("ending by signal 3"));
    // A daemon that was away hears of the end too.
    let times = |words: &str| logs(&environment, "web").matches(words).count();
    let before = times("serving");
    environment.banger(["vm", "start", "web"]).ok();
    wait_for("the service again", GUEST_DEADLINE, || (times("serving") > before).then_some(()));
    environment.stop_daemon();
    assert_eq!(environment.show("web")["main_exit"], Value::Null);
    let pid = environment.exec("web", ["/app", "serve"]).run();
    assert_eq!(pid.exit_code(), Some(1), "its port is taken");
    environment.banger(["vm", "stop", "web"]).ok();
    assert_eq!(environment.show("web")["main_exit"]["code"], 7);
    environment.finish();
}

#[test]
fn programs_with_a_c_library_run_too_and_under_kernels_from_files() {
    let environment = Environment::new(Contents::Busybox);
    let config = json!({"Cmd": ["/app", "linked"]});
    for (name, libraries, kernel) in
        [("musl", Libraries::Musl, "bzImage"), ("glibc", Libraries::Glibc, "vmlinux")]
    {
        image(&environment, name, &libraries, &config);
        let files = kernel_directory(&environment, kernel, &[kernel, "config", "modules"]);
        let import = environment.banger(["kernel", "import", "--name", &kernel.to_lowercase()]);
        import.arg(files).ok();
        let words = ["--rm", "--image", name, "--kernel", &kernel.to_lowercase()];
        let ran = run(&environment, &words).run().code(42);
        assert!(ran.out().starts_with("word linked\nCOLOR=- HOME=/root PATH=/usr/local/sbin:"));
    }
    environment.finish();
}

#[test]
fn an_image_of_a_shell_is_a_machine_unless_a_program_is_named() {
    let environment = Environment::new(Contents::Busybox);
    let tar = banger_harness::busybox_rootfs().unwrap();
    let config = json!({"Cmd": ["sh"], "Env": ["FROM=the image"]});
    import(&environment, "shell", &tar, &config);
    // It stays: there is nothing that would end it. Execs have the image's environment.
    run(&environment, &["-d", "--name", "box", "--image", "shell"]).ok();
    let seen = environment.exec("box", ["sh", "-c", "echo $FROM; cat /proc/1/comm"]).ok().out();
    assert_eq!(seen.lines().next(), Some("the image"));
    assert_eq!(environment.show("box")["main"], Value::Null);
    // A command without an entrypoint to take it is for a machine that one works in.
    let refused = run(&environment, &["-d", "--image", "shell", "--", "true"]).run();
    refused.code(125).is_a_clear_error().says(&["no main process", "--entrypoint"]);
    let script = "echo $$; trap 'echo orderly; exit 0' TERM; echo ready; while :; do sleep 1; done";
    let words = ["--name", "main", "--image", "shell", "--entrypoint", "sh", "--", "-c", script];
    let mut running = run(&environment, &words).spawn();
    running.wait_for_output("ready");
    // What reaches the command line reaches the program.
    running.signal(rustix::process::Signal::TERM);
    let ran = running.finish().code(0);
    assert!(ran.out().ends_with("ready\norderly\n"), "{}", ran.out());
    assert_eq!(ended(&environment, "main")["main_exit"]["code"], 0);
    let nobody =
        run(&environment, &["--image", "shell", "--entrypoint", "true", "-u", "nobody"]).run();
    nobody.code(125).is_a_clear_error().says(&["main process", "no user nobody"]);
    assert_eq!(environment.vms().len(), 2, "what cannot be run makes no VM");
    environment.finish();
}
