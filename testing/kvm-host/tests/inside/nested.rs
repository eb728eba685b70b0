//! Guests in the machine: the real Firecracker boots the shared kernel with the product's agent.

use std::os::unix::fs::{MetadataExt, chown};
use std::path::Path;
use std::process::Command;

use banger_agent_api::{InitKind, StaticNetwork};

use crate::Inside;
use crate::disk::{Snapshot, busybox_root, sparse};
use crate::firecracker::{Guest, ROOT_UUID, Started, Stranger, block_on, exec, network};
use crate::tool::{Undo, run};

/// The user under whom the jailer runs Firecracker; nobody else's.
const JAILED: u32 = 30_000;
const TAP: &str = "bgrtap0";

fn text(path: &Path) -> &str {
    path.to_str().expect("a path that is text")
}

/// Boots a kernel, with files that are below /data, and has its guest's agent work.
fn answers(inside: &Inside, [kernel, initrd]: [&str; 2], arguments: &str) -> String {
    let folder = tempfile::tempdir_in("/var/tmp").expect("a folder");
    let disk = busybox_root(folder.path(), ROOT_UUID);
    let socket = folder.path().join("v.sock");
    let (kernel, initrd) = (inside.data.join(kernel), inside.data.join(initrd));
    let guest = Guest {
        kernel: text(&kernel),
        initrd: text(&initrd),
        disk: text(&disk),
        vsock: text(&socket),
        tap: None,
        arguments,
    };
    let configuration = folder.path().join("vm.json");
    std::fs::write(&configuration, guest.configuration().to_string()).expect("a configuration");
    let mut command = Command::new(inside.data.join("firecracker"));
    command.args(["--no-api", "--config-file"]).arg(&configuration);
    let mut firecracker = Started::new(command, folder.path().join("console.log"));
    let release = block_on(async {
        let agent = firecracker.agent(&socket).await;
        let health = agent.health().await.expect("the guest's health");
        assert_eq!((health.hostname.as_str(), health.init), ("nested", InitKind::Agent));
        let words = exec(&agent, &["/bin/busybox", "echo", "a", "b"]).await;
        assert_eq!(words, "a b\n");
        exec(&agent, &["/bin/busybox", "touch", "/root/written"]).await;
        agent.sync().await.expect("write everything out");
        health.kernel
    });
    firecracker.kill();
    let listed = run("debugfs", ["-R", "ls -p /root", text(&disk)]);
    assert!(listed.contains("/written/"), "{listed}");
    release
}

#[test]
fn a_guest_answers_over_vsock() {
    let Some(inside) = Inside::get() else { return };
    let release = answers(&inside, ["vmlinux", "initrd"], "");
    assert_eq!(release, run("uname", ["-r"]).trim(), "both boot the shared kernel");
}

#[test]
fn a_guest_of_our_own_kernel_answers_with_and_without_acpi() {
    let Some(inside) = Inside::get() else { return };
    let files = ["own-vmlinux", "own-initrd"];
    if !inside.data.join(files[0]).exists() {
        return banger_harness::skip("own kernel", "not built here; cargo xtask kernel builds it");
    }
    // Without ACPI the devices are on the command line, the CPUs in an MP table.
    for arguments in ["", "acpi=off"] {
        let release = answers(&inside, files, arguments);
        assert!(release.ends_with("-banger"), "{release}");
    }
}

#[test]
fn a_jailed_guest_has_a_snapshot_disk_and_a_tap() {
    let Some(inside) = Inside::get() else { return };
    let folder = tempfile::tempdir_in("/var/tmp").expect("a folder");
    std::fs::set_permissions(folder.path(), std::os::unix::fs::PermissionsExt::from_mode(0o711))
        .expect("let the jailed user through");
    let base = busybox_root(folder.path(), ROOT_UUID);
    let before = std::fs::read(&base).expect("read the base");
    let changes = folder.path().join("changes");
    sparse(&changes, 32 << 20);
    let snapshot = Snapshot::make("banger-test-jailed", &base, &changes);

    let jailed = JAILED.to_string();
    run("ip", ["tuntap", "add", TAP, "mode", "tap", "user", &jailed, "group", &jailed]);
    let tap = Undo::with(&["ip", "link", "delete", TAP]);
    run("ip", ["address", "add", "172.30.9.1/24", "dev", TAP]);
    run("ip", ["link", "set", TAP, "up"]);

    let root = folder.path().join("jails/firecracker/one/root");
    std::fs::create_dir_all(&root).expect("the jail's root");
    for name in ["vmlinux", "initrd"] {
        std::fs::copy(inside.data.join(name), root.join(name)).expect("a copy for the jail");
    }
    let (major, minor) = (rustix::fs::major(snapshot.number), rustix::fs::minor(snapshot.number));
    let (major, minor) = (major.to_string(), minor.to_string());
    run("mknod", ["-m", "600", text(&root.join("disk")), "b", &major, &minor]);
    let address = StaticNetwork {
        address: [172, 30, 9, 2].into(),
        prefix: 24,
        gateway: Some([172, 30, 9, 1].into()),
        dns: Vec::new(),
    };
    let guest = Guest {
        kernel: "vmlinux",
        initrd: "initrd",
        disk: "disk",
        vsock: "v.sock",
        tap: Some((TAP, address)),
        arguments: "",
    };
    std::fs::write(root.join("vm.json"), guest.configuration().to_string())
        .expect("a configuration");
    for name in ["", "vmlinux", "initrd", "disk", "vm.json"] {
        chown(root.join(name), Some(JAILED), Some(JAILED)).expect("give the jail its files");
    }
    let cgroup =
        Undo::with(&["rmdir", "/sys/fs/cgroup/firecracker/one", "/sys/fs/cgroup/firecracker"]);

    let mut command = Command::new(inside.data.join("jailer"));
    command.args(["--id", "one", "--uid", &jailed, "--gid", &jailed, "--exec-file"]);
    command.arg(inside.data.join("firecracker"));
    command.arg("--chroot-base-dir").arg(folder.path().join("jails"));
    command.args(["--cgroup-version", "2", "--cgroup", "cpu.weight=50", "--new-pid-ns"]);
    command.args(["--", "--no-api", "--config-file", "vm.json"]);
    // The jailer itself ends at once: its child is the first of the new PID namespace.
    let mut jailer = Started::new(command, folder.path().join("console.log"));
    let firecracker = Stranger::of_pid_file(&mut jailer, &root.join("firecracker.pid"));
    block_on(async {
        let agent = jailer.agent(&root.join("v.sock")).await;
        let process = format!("/proc/{}", firecracker.id);
        let owner = std::fs::metadata(&process).expect("the jailed process");
        assert_eq!((owner.uid(), owner.gid()), (JAILED, JAILED));
        let seen = |name: &str| Path::new(&process).join("root").join(name).exists();
        assert!(seen("vm.json") && !seen("usr"), "it sees its jail only");
        let status = std::fs::read_to_string(format!("{process}/status")).expect("its status");
        let ids = status.lines().find_map(|line| line.strip_prefix("NSpid:")).expect("its ids");
        assert_eq!(ids.split_whitespace().nth(1), Some("1"), "it is alone in its PID namespace");
        let group = std::fs::read_to_string(format!("{process}/cgroup")).expect("its cgroup");
        assert!(group.trim().ends_with("/firecracker/one"), "{group}");

        network(&agent).await;
        run("ping", ["-c", "3", "-i", "0.3", "-W", "20", "172.30.9.2"]);
        exec(&agent, &["/bin/busybox", "sh", "-c", "echo kept > /root/written"]).await;
        agent.sync().await.expect("write everything out");
    });
    drop(firecracker);
    drop((tap, cgroup));

    assert!(snapshot.usage().0 > 16, "the guest wrote to its snapshot");
    let node = crate::disk::node(snapshot.number);
    let written = run("debugfs", ["-R", "cat /root/written", text(&node)]);
    assert_eq!(written, "kept\n");
    drop(snapshot);
    assert_eq!(std::fs::read(&base).expect("read the base"), before, "the base is as it was");
}
