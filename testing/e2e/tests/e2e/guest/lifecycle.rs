//! Lists, logs, stop and start.

use std::process::Command;

use banger_harness::lifecycle::{self, Banger};
use banger_harness::{Contents, Environment};

/// Under QEMU here; `testing/kvm-host` has the same under Firecracker.
struct Qemu(Environment);

impl Banger for Qemu {
    fn vmm(&self) -> &'static str {
        "qemu"
    }

    fn command(&self, words: &[&str]) -> Command {
        self.0.command(words)
    }
}

#[test]
fn a_machine_lives_under_qemu() {
    let qemu = Qemu(Environment::new(Contents::Busybox));
    lifecycle::live(&qemu);
    qemu.0.finish();
}

#[test]
fn data_stays_over_a_stop_and_a_start() {
    let environment = Environment::new(Contents::Busybox);
    environment.start_busybox("box");
    environment.exec("box", ["tee", "/root/f"]).input("data\n").ok();
    environment.exec("box", ["tee", "/etc/g"]).input("more\n").ok();
    let boot_id = |environment: &Environment| {
        environment.exec("box", ["cat", "/proc/sys/kernel/random/boot_id"]).ok().out()
    };
    let before = boot_id(&environment);
    environment.banger(["vm", "stop", "box"]).ok();
    assert_eq!(environment.show("box")["state"], "stopped");
    environment.banger(["vm", "stop", "box"]).ok();
    environment.banger(["vm", "start", "box"]).ok();
    environment.banger(["vm", "start", "box"]).ok();
    assert_eq!(environment.exec("box", ["cat", "/root/f", "/etc/g"]).ok().out(), "data\nmore\n");
    assert_ne!(boot_id(&environment), before);
    environment.banger(["vm", "restart", "box"]).ok();
    assert_eq!(environment.exec("box", ["cat", "/root/f"]).ok().out(), "data\n");
    environment.finish();
}

#[test]
fn lists_show_what_there_is() {
    let environment = Environment::new(Contents::Busybox);
    environment.start_busybox("one");
    environment.start_busybox("two");
    environment.banger(["vm", "stop", "two"]).ok();
    let list = environment.banger(["vm", "list"]).ok().out();
    assert!(list.lines().next().unwrap().contains("NAME"), "{list}");
    assert!(list.lines().any(|line| line.contains("one") && line.contains("running")), "{list}");
    assert!(list.lines().any(|line| line.contains("two") && line.contains("stopped")), "{list}");
    let ps = environment.banger(["ps"]).ok().out();
    assert!(ps.contains("one") && !ps.contains("two"), "{ps}");
    let shown = environment.banger(["vm", "show", "one"]).ok().out();
    assert!(shown.contains("busybox") && shown.contains("running"), "{shown}");
    let json = environment.show("one");
    assert_eq!(json["network"], if banger_harness::is_root() { "tap" } else { "user" });
    assert!(["tcg", "kvm"].contains(&json["runtime"]["acceleration"].as_str().unwrap()), "{json}");
    // By a unique beginning of its id.
    let id = json["id"].as_str().unwrap().to_owned();
    assert_eq!(environment.show(&id)["name"], "one");
    // All that a verb concerns.
    let all = |verb: &str| environment.banger(["vm", verb, "--all"]).ok().out();
    assert_eq!(all("stop"), "one\n");
    assert_eq!(all("stop"), "");
    assert_eq!(environment.show("one")["state"], "stopped");
    let mut deleted: Vec<_> = all("delete").lines().map(str::to_owned).collect();
    deleted.sort();
    assert_eq!(deleted, ["one", "two"]);
    environment.banger(["vm", "stop", "--all", "one"]).run().code(2);
    assert_eq!(environment.vms(), [""; 0]);
    environment.finish();
}

#[test]
fn logs_are_the_console() {
    let environment = Environment::new(Contents::Busybox);
    environment.start_busybox("box");
    environment.exec("box", ["sh", "-c", "echo a word for the log > /dev/console"]).ok();
    banger_harness::wait_for("the line in the log", banger_harness::GUEST_DEADLINE, || {
        let logs = environment.banger(["vm", "logs", "box"]).ok().out();
        logs.contains("a word for the log").then_some(())
    });

    let mut follow = environment.banger(["vm", "logs", "-f", "box"]).spawn();
    follow.wait_for_output("a word for the log");
    environment.exec("box", ["sh", "-c", "echo and one more > /dev/console"]).ok();
    follow.wait_for_output("and one more");
    follow.signal(rustix::process::Signal::INT);
    let _ = follow.finish();

    // What the console says is kept within bounds.
    let flood =
        "dd if=/dev/zero bs=1k count=5000 2>/dev/null | tr '\\0' x | fold -w 100 > /dev/console";
    let _ = environment.exec("box", ["sh", "-c", flood]).run();
    let folder = environment.state().join("vms");
    let mut size = 0;
    for vm in std::fs::read_dir(folder).unwrap().flatten() {
        for file in std::fs::read_dir(vm.path()).unwrap().flatten() {
            if file.file_name().to_string_lossy().starts_with("console") {
                size += file.metadata().map_or(0, |found| found.len());
            }
        }
    }
    let cap = 4 << 20;
    // A chunk is written whole, also the one that reaches the cap.
    assert!((cap / 2..cap + (64 << 10)).contains(&size), "the console log takes {size} bytes");
    environment.finish();
}

#[test]
fn an_image_in_use_is_kept() {
    let environment = Environment::new(Contents::Busybox);
    environment.start_busybox("box");
    environment
        .banger(["image", "delete", "busybox"])
        .run()
        .code(1)
        .is_a_clear_error()
        .says(&["busybox", "box"]);
    let kernel = banger_harness::DEFAULT_KERNEL;
    environment
        .banger(["kernel", "delete", kernel])
        .run()
        .code(1)
        .is_a_clear_error()
        .says(&[kernel, "box"]);
    environment.exec("box", ["true"]).ok();
    environment.banger(["vm", "delete", "box"]).ok();
    environment.banger(["image", "delete", "busybox"]).ok();
    environment.finish();
}

#[test]
fn the_vmm_is_walled_off() {
    let environment = Environment::new(Contents::Busybox);
    environment.start_busybox("box");
    let vmm = environment.vmm("box");
    let uids = vmm.status("Uid").unwrap();
    assert!(!uids.split_whitespace().any(|uid| uid == "0"), "the VMM runs as {uids}");
    assert_eq!(vmm.status("Seccomp").as_deref(), Some("2"), "QEMU's sandbox is on");
    assert_eq!(vmm.status("NoNewPrivs").as_deref(), Some("1"));
    assert_eq!(vmm.status("CapEff").as_deref(), Some("0000000000000000"));
    environment.finish();
}

#[test]
fn a_guest_that_powers_itself_off_is_stopped() {
    let environment = Environment::new(Contents::Busybox);
    environment.start_busybox("box");
    let vmm = environment.vmm("box");
    let _ = environment
        .exec("box", ["sh", "-c", "sync; echo o > /proc/sysrq-trigger; sleep 100"])
        .run();
    banger_harness::wait_for("the end of the VMM", banger_harness::GUEST_DEADLINE, || {
        (!vmm.is_alive()).then_some(())
    });
    banger_harness::wait_for("the state", banger_harness::GUEST_DEADLINE, || {
        let state = environment.show("box")["state"].clone();
        (state == "stopped" || state == "failed").then_some(())
    });
    environment.banger(["vm", "start", "box"]).ok();
    environment.exec("box", ["true"]).ok();
    environment.finish();
}
