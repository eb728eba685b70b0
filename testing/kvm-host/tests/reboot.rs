//! A reboot of the host with a machine that runs: what it takes, what it leaves, and what is as before.
#![forbid(unsafe_code)]

use std::path::{Path, PathBuf};
use std::time::Duration;

use banger_guest_client::AgentClient;
use banger_kvm_host::cache::Cache;
use banger_kvm_host::lasting::Lasting;
use banger_kvm_host::session::{Command, Put, put};
use banger_kvm_host::{host, host_image, suite, vmm_binaries};
use serde_json::Value;

/// How long one script may take in the machine.
const PATIENCE: Duration = Duration::from_secs(300);
/// Has the machine installed; its owner imports an image. The kernel is copied, not pulled, so that
/// nobody but this script sees to it that it is on the disk when the power goes.
const INSTALL: &str = "
    mkdir -p /var/log/journal
    journalctl --flush
    install -D -t /opt/firecracker -m 755 /data/firecracker /data/jailer
    /data/banger system install --owner alice
    cp -r -T /data/kernels /var/lib/banger/kernels
    chown -R alice: /var/lib/banger/kernels
    chmod -R go= /var/lib/banger/kernels
    sync
    install -m 644 /data/busybox.tar /var/tmp/busybox.tar
    runuser -u alice -- banger image import --name busybox /var/tmp/busybox.tar
    rm /var/tmp/busybox.tar";
/// A world behind the host's uplink, which knows no private address: who reaches it is masqueraded.
const WORLD: &str = "
    ip netns add world
    ip link add up0 type veth peer name up0 netns world
    ip address add 9.9.2.2/24 dev up0
    ip link set up0 up
    ip netns exec world ip address add 9.9.2.1/24 dev up0
    ip netns exec world ip link set up0 up
    ip netns exec world ip link set lo up
    ip netns exec world ip address add 9.9.9.9/32 dev lo
    ip route add 9.9.9.9 via 9.9.2.1";
/// What banger changes on a host beside files on its disk, a thing a line. Without
/// `net.ipv4.ip_forward`, which an installation switches on and which stays on until a reboot.
const PICTURE: &str = "
    ls /sys/class/net | sed 's/^/interface /'
    nft --stateless list ruleset
    dmsetup ls | grep -v 'No devices' | cut -f 1 | sed 's/^/dm device /'
    losetup -a | sed 's/^/loop device /'
    cat /proc/[0-9]*/comm 2>/dev/null | grep -E 'banger|firecracker|jailer' | sed 's/^/process /'
    find /run -xdev -path '*banger*' -not -path '/run/systemd/*' -not -path '/run/udev/*' | sed 's/^/in memory /'
    find /sys/fs/cgroup -type d -path '*banger*' | sed 's/^/cgroup /'
    find /var/lib/banger-root/jail -mindepth 2 2>/dev/null | sed 's/^/jail /'
    resolvectl query --legend=no --cache=no box.vm 2>/dev/null | sed 's/^/name /'
    true";

/// Runs a script as root in the machine; what it wrote to both outputs. Fails unless it succeeds.
#[track_caller]
fn sh(runtime: &tokio::runtime::Runtime, client: &AgentClient, script: &str) -> String {
    let command = Command::new(["/bin/sh", "-ec", script]).expect("a command");
    let (output, status) = runtime.block_on(command.collect(client, PATIENCE)).expect("a command");
    let text = String::from_utf8_lossy(&output).into_owned();
    assert!(status.is_some_and(|status| status.shell_code() == 0), "{script}: {status:?}\n{text}");
    text
}

/// Puts what is installed, and what a machine is made of, into `/data`.
async fn send(cache: &Cache, client: &AgentClient) -> anyhow::Result<()> {
    let stripped = tempfile::tempdir()?;
    let programs = banger_harness::program_folder();
    let mut files = ["banger", "bangerd", "bangerd-root"]
        .iter()
        .map(|name| suite::strip(&programs.join(name), stripped.path()))
        .collect::<anyhow::Result<Vec<PathBuf>>>()?;
    let rootfs = banger_harness::busybox_rootfs().expect("busybox-static, as for all of this tier");
    files.push(stripped.path().join("busybox.tar"));
    std::fs::write(stripped.path().join("busybox.tar"), rootfs)?;
    let binaries = vmm_binaries::ensure()?;
    files.extend(["firecracker", "jailer"].map(|name| binaries.join(name)));
    let to = |remote: &str| {
        let remote = remote.to_owned();
        move |local: PathBuf| Put { local, remote: remote.clone() }
    };
    let mut files: Vec<Put> = files.into_iter().map(to("/data")).collect();
    let vmlinux = host::parts(cache)?.vmlinux;
    files.extend(vmlinux.parent().map(Path::to_owned).map(to("/data/kernels")));
    put(client, &files).await
}

/// The lines of a picture that speak of a machine, or of its tap, address or name.
fn of_machines(picture: &str, address: &str) -> Vec<String> {
    let is_one = |line: &&str| {
        let starts = ["dm device ", "loop device ", "jail ", "name ", "process firecracker"];
        let records = ["launch.", "snapshot.", "tap.", "jail."].map(|it| format!("/records/{it}"));
        let parts = [address, "interface tap-", "banger-vms.service/", ".vsock"];
        starts.iter().any(|start| line.starts_with(start))
            || records.iter().any(|part| line.contains(part))
            || parts.iter().any(|part| line.contains(part))
    };
    picture.lines().filter(is_one).map(str::to_owned).collect()
}

/// The host loses its power while a machine runs, and then systemd reboots it.
#[test]
fn a_reboot_leaves_nothing_stale_and_takes_nothing_that_is_kept() {
    if let Some(reason) = host_image::impossible() {
        banger_harness::skip("kvm-host", &reason);
        return;
    }
    let cache = Cache::open().expect("the cache");
    let _alone = cache.lock_tests().expect("the right to test");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.expect("a runtime");
    let mut machine = runtime.block_on(Lasting::begin(&cache)).expect("a machine");
    let mut client = machine.client();
    runtime.block_on(send(&cache, &client)).expect("send the programs");
    let boot_id =
        |client: &AgentClient| sh(&runtime, client, "cat /proc/sys/kernel/random/boot_id");
    let banger = |client: &AgentClient, words: &str| {
        sh(&runtime, client, &format!("runuser -u alice -- banger {words}"))
    };
    let show = |client: &AgentClient| -> Value {
        serde_json::from_str(&banger(client, "vm show box --json")).expect("JSON")
    };
    // With its own address, to the gateway and through NAT, and by its name on the host.
    let assert_connected = |client: &AgentClient, address: &str| {
        banger(client, "vm exec box -- ping -c 1 -W 20 9.9.9.9");
        sh(&runtime, client, &format!("ping -c 1 -W 20 {address}"));
        let asked = sh(&runtime, client, "resolvectl query --legend=no --cache=no box.vm");
        assert!(asked.contains(address), "{asked}");
    };

    sh(&runtime, &client, WORLD);
    let before = sh(&runtime, &client, PICTURE);
    sh(&runtime, &client, INSTALL);
    banger(&client, "vm run -d --vmm firecracker --image busybox --name box --nat");
    let first = show(&client);
    let address = first["address"].as_str().expect("an address").to_owned();
    assert_connected(&client, &address);
    banger(&client, "vm exec box -- sh -c 'echo kept > /root/file && sync'");
    // What is looked for below is there now.
    let during = of_machines(&sh(&runtime, &client, PICTURE), &address);
    for part in ["interface tap-", "jail ", "name ", "launch.", "\" . ", "process firecracker"] {
        assert!(during.iter().any(|line| line.contains(part)), "{part}: {during:#?}");
    }

    for is_orderly in [false, true] {
        let first_boot = boot_id(&client);
        if is_orderly {
            banger(&client, "vm exec box -- sh -c 'echo late > /root/late'");
        }
        let next = async {
            match is_orderly {
                false => machine.cut_power().await,
                true => machine.reboot().await,
            }
        };
        runtime.block_on(next).unwrap_or_else(|error| panic!("{error:#}"));
        client = machine.client();
        assert_ne!(boot_id(&client), first_boot);
        sh(&runtime, &client, WORLD);

        // Nobody has asked for anything: the services are there as they come up.
        let shown = show(&client);
        assert_eq!(shown["state"], "stopped", "{shown}");
        let error = shown["last_error"]["message"].to_string();
        // In order means that the guest has written its disks and gone by itself.
        let expected = if is_orderly { "null" } else { "the host was restarted" };
        let before = "journalctl -b -1 --no-pager -o cat -u banger-shutdown || true";
        assert!(error.contains(expected), "{shown}\n{}", sh(&runtime, &client, before));
        let picture = sh(&runtime, &client, PICTURE);
        let stale = of_machines(&picture, &address);
        assert_eq!(stale, Vec::<String>::new());
        // It finds no QEMU here, which is a failure of its own.
        let doctor = sh(&runtime, &client, "runuser -u alice -- banger doctor || true");
        assert!(doctor.contains("PASS  leftovers"), "{doctor}");

        // It starts with what it had.
        banger(&client, "vm start box");
        let shown = show(&client);
        for key in ["address", "mac", "id", "spec"] {
            assert_eq!(shown[key], first[key], "{key}");
        }
        assert!(shown["last_error"].is_null(), "{shown}");
        assert_connected(&client, &address);
        assert_eq!(banger(&client, "vm exec box -- cat /root/file"), "kept\n");
        if is_orderly {
            assert_eq!(banger(&client, "vm exec box -- cat /root/late"), "late\n", "not synced");
        }
    }

    // Without banger the host is as it was before.
    banger(&client, "vm stop box");
    sh(&runtime, &client, "banger system uninstall");
    let after = sh(&runtime, &client, PICTURE);
    assert_eq!(after, before, "the bridge, its rules and what was set for it go");
    runtime.block_on(async { drop(machine) });
}
