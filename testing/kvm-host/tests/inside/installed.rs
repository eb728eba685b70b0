//! Machines of the installed root helper: a restart of the services, or their death, is nothing to
//! them, and the next helper knows them and takes them down.

use std::fs;
use std::path::Path;
use std::time::Duration;

use banger_agent_api::StaticNetwork;
use banger_helper_api::{ErrorCode, Method};
use banger_privileged_tests::vmm::tiny_kernel;
use serde_json::json;

use crate::disk::{self, busybox_root};
use crate::firecracker::{Guest, ROOT_UUID, Stranger, agent, block_on, exec};
use crate::installation::{
    GATEWAY, GUEST, Installed, MAC, MACHINES, Machine, RECORDS, SNAPSHOT, TAP, as_owner, ask,
    both_answer, call, give, main_pid, make_parts, mounts_of_anybody, owner, said, wait_until,
};
use crate::patience::holds_in_folder;
use crate::tool::run;
use crate::{Inside, firecracker};

/// A field of `/proc/PID/status`.
fn status(process: impl std::fmt::Display, field: &str) -> Vec<String> {
    let text = fs::read_to_string(format!("/proc/{process}/status")).expect("it runs");
    let line = text.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
    line.expect("a field").split_whitespace().map(str::to_owned).collect()
}

/// Asserts that every thread of a Firecracker has the owner's ids and nothing beyond, and a system
/// call filter of its own below the one of the helper's unit.
fn assert_is_confined(pid: i32) {
    let (uid, gid) = owner();
    let filters =
        |process: &str| -> u32 { status(process, "Seccomp_filters")[0].parse().expect("a number") };
    let inherited = filters(&main_pid("bangerd-root.service"));
    let threads = fs::read_dir(format!("/proc/{pid}/task")).expect("its threads").flatten();
    let threads: Vec<String> =
        threads.map(|it| format!("{pid}/task/{}", it.file_name().display())).collect();
    assert!(threads.len() >= 3, "the VMM, its API and a virtual CPU: {threads:?}");
    for thread in &threads {
        assert_eq!(status(thread, "Uid"), [(); 4].map(|()| uid.to_string()));
        assert_eq!(status(thread, "Gid"), [(); 4].map(|()| gid.to_string()));
        assert_eq!(status(thread, "Groups"), Vec::<String>::new());
        for set in ["CapInh", "CapPrm", "CapEff", "CapAmb"] {
            assert_eq!(status(thread, set), ["0000000000000000"], "{thread} {set}");
        }
        assert_eq!(status(thread, "NoNewPrivs"), ["1"], "{thread}");
        assert_eq!(status(thread, "Seccomp"), ["2"], "{thread}");
        assert!(filters(thread) > inherited, "{thread}: {} filters", filters(thread));
    }
    let mounts = fs::read_to_string(format!("/proc/{pid}/mountinfo")).expect("its mounts");
    assert!(!mounts.contains(" /etc"), "it sees its jail only: {mounts}");
}

/// Kills or restarts services, and waits until there are new ones and both answer.
fn renew(words: &[&str], units: &[&str]) {
    let pids = || -> Vec<String> { units.iter().map(|unit| main_pid(unit)).collect() };
    let before = pids();
    run("systemctl", words.iter().chain(units));
    wait_until("new services", || {
        let now = pids();
        let is_new = |(now, before): (&String, &String)| now != before && now != "0";
        now.iter().zip(&before).all(is_new)
    });
    wait_until("both services answer", both_answer);
}

/// Asks the guest's agent, as the owner, who it is and for a word.
fn boot_id(machine: &Machine<'_>) -> String {
    as_owner(|| {
        block_on(async {
            let agent = agent(&machine.vsock(), || machine.log()).await;
            exec(&agent, &["/bin/busybox", "cat", "/proc/sys/kernel/random/boot_id"]).await
        })
    })
}

#[test]
fn machines_outlive_the_services_and_the_next_helper_takes_them_down() {
    let Some(inside) = Inside::get() else { return };
    let installed = Installed::with_firecracker(&inside);
    let folder = tempfile::tempdir_in("/var/tmp").expect("a folder");
    let image = busybox_root(folder.path(), ROOT_UUID);
    let copy = |name: &str, from: &Path| {
        give(name, |path| assert!(fs::copy(from, path).expect("a copy") > 0))
    };
    let image = copy("image", &image);
    let kernel = copy("vmlinux", &inside.data.join("vmlinux"));
    let initrd = copy("initrd", &inside.data.join("initrd"));
    let handles = make_parts(&image);
    let network = StaticNetwork {
        address: GUEST.into(),
        prefix: 24,
        gateway: Some(GATEWAY.into()),
        dns: Vec::new(),
    };
    let guest = Guest {
        kernel: "",
        initrd: "",
        disk: "",
        vsock: "",
        tap: Some((TAP, network)),
        arguments: "",
    };
    let device = handles["dm_dev"].as_str().expect("a device");
    let one = Machine {
        name: "one",
        kernel: &kernel,
        initrd: Some(&initrd),
        arguments: guest.command_line(),
        disk: Some(device),
        tap: Some((TAP, MAC)),
    };
    let process = Stranger::hold(one.launch());
    let pid = process.id;
    let boot = boot_id(&one);
    assert_is_confined(pid);
    let is_known = || {
        let asked = json!({ "pid": pid, "api_sock": one.api_socket() });
        call(Method::ProcessRunning, &asked)["running"] == true
            && call(Method::FindFirecrackerPid, &json!({ "api_sock": one.api_socket() }))["pid"]
                == pid
    };
    let cgroup = fs::read_to_string(format!("/proc/{pid}/cgroup")).expect("its cgroup");
    assert_eq!(cgroup.trim(), "0::/system.slice/banger-vms.service/one");

    let (helper, daemon) = ("bangerd-root.service", "bangerd.service");
    // A signal to a service is for every process of its cgroup.
    for (words, units) in [
        (["restart"].as_slice(), [helper].as_slice()),
        (&["kill", "--signal=KILL"], &[helper]),
        (&["kill", "--signal=KILL"], &[helper, daemon]),
    ] {
        renew(words, units);
        assert!(!process.has_ended(), "{words:?} {units:?}");
        assert!(is_known(), "{words:?} {units:?}");
        assert_eq!(boot_id(&one), boot, "{words:?} {units:?}: the same guest");
    }
    as_owner(|| {
        block_on(async {
            let agent = agent(&one.vsock(), || one.log()).await;
            firecracker::network(&agent).await;
            exec(&agent, &["/bin/busybox", "sh", "-c", "echo kept > /root/written"]).await;
            agent.sync().await.expect("write everything out");
        });
    });
    run("ping", ["-c", "3", "-i", "0.3", "-W", "20", "172.30.9.2"]);

    // Its jail's mounts are seen, and it is nobody's to take away while it runs.
    assert!(!mounts_of_anybody(&one.jail()).is_empty());
    let words = std::process::Command::new("/usr/local/bin/banger")
        .args(["system", "uninstall"])
        .output()
        .expect("banger");
    assert!(!words.status.success() && said(&words).contains("one"), "{}", said(&words));
    let (code, reason) = ask(Method::CleanupJailerChroot, &one.jail_root()).expect_err("it runs");
    assert_eq!(code, ErrorCode::InvalidPath, "{reason}");
    call(Method::KillProcess, &json!({ "pid": pid }));
    assert!(process.ends(), "a killed machine ends");
    call(Method::CleanupJailerChroot, &one.jail_root());
    one.assert_gone();
    call(Method::CleanupDmSnapshot, &handles);
    call(Method::DeleteTap, &json!({ "tap_name": TAP }));
    assert!(!disk::names().iter().any(|name| name == SNAPSHOT));
    assert!(!Path::new("/sys/class/net").join(TAP).exists());
    let records: Vec<_> = fs::read_dir(RECORDS).expect("the records").flatten().collect();
    assert!(
        !records.iter().any(|it| {
            let name = it.file_name();
            ["launch", "snapshot", "tap"]
                .iter()
                .any(|kind| name.to_string_lossy().starts_with(kind))
        }),
        "{records:?}"
    );

    assert_evidence();
    uninstall();
    drop(installed);
}

/// One process, with this and that evidence for it: the record of its launch; its cgroup, where the
/// record and what lies in its jail are gone; none of them.
fn assert_evidence() {
    let kernel = give("tiny", |path| {
        fs::write(path, tiny_kernel(b"hello from the jail\n")).expect("a kernel");
    });
    let machine = Machine {
        name: "two",
        kernel: &kernel,
        initrd: None,
        arguments: "console=ttyS0".to_owned(),
        disk: None,
        tap: None,
    };
    let process = Stranger::hold(machine.launch());
    let root_cgroup = Path::new("/sys/fs/cgroup");
    let move_to = |cgroup: &Path| {
        fs::write(cgroup.join("cgroup.procs"), process.id.to_string()).expect("another cgroup");
    };
    let record = Path::new(RECORDS).join("launch.two.json");
    let copy = machine.jail().join("root/firecracker");
    let text = fs::read(&record).expect("its record");
    // Firecracker is the first of its PID namespace, where a signal that it does not handle is lost.
    let is_taken =
        || match ask(Method::SignalProcess, &json!({ "pid": process.id, "signal": "USR1" })) {
            Ok(_) => true,
            Err((ErrorCode::InvalidPid, _)) => false,
            Err(error) => panic!("{error:?}"),
        };
    move_to(root_cgroup);
    fs::remove_file(&copy).expect("the jail's program");
    assert!(is_taken(), "the record is evidence");
    fs::remove_file(&record).expect("its record");
    assert!(!is_taken(), "a firecracker of the owner's that nothing ties to banger");
    move_to(&Path::new(MACHINES).join("two"));
    renew(&["kill", "--signal=KILL"], &["bangerd-root.service"]);
    assert!(is_taken(), "the cgroup is evidence");
    call(Method::SignalProcess, &json!({ "pid": process.id, "signal": "HUP" }));
    assert!(process.ends(), "Firecracker ends on the one signal that it handles so");
    // The links are in the record only.
    fs::write(&record, text).expect("its record");
    call(Method::CleanupJailerChroot, &machine.jail_root());
    machine.assert_gone();
}

/// Uninstalls, and asserts that what is the owner's stays and nothing else does.
fn uninstall() {
    run("/usr/local/bin/banger", ["system", "uninstall"]);
    let machines = Path::new(MACHINES);
    let slice = machines.parent().expect("a slice");
    let is_gone = holds_in_folder(slice, Duration::from_secs(60), || !machines.exists());
    assert!(is_gone, "the machines' cgroup goes with its unit");
    let found = run("find", ["/etc", "/usr", "/opt", "/run", "/var", "-xdev", "-name", "*banger*"]);
    // The test machine's own devices are named after banger, too; the owner's files count as one.
    let is_other =
        |path: &&str| path.starts_with("/run/udev/") || path.starts_with("/var/lib/banger/");
    let mut found: Vec<&str> = found.lines().filter(|path| !is_other(path)).collect();
    found.sort_unstable();
    assert_eq!(found, ["/var/cache/banger", "/var/lib/banger", "/var/lib/banger-root"]);
}
