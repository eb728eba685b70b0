//! Files, sockets and directories that the helper makes, and who may do what with each.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::{FileTypeExt, MetadataExt, chown};
use std::path::Path;

use banger_helper_api::Method;
use banger_privileged_tests::running::RunningHelper;
use banger_privileged_tests::{OWNER, vmm};
use serde_json::json;

use crate::enter_own_world;

const ID: &str = "one";

/// The table of docs/privileges.md: what may be at each place.
fn documented() -> BTreeMap<String, String> {
    let page = include_str!("../../../../docs/privileges.md");
    let (_, section) = page.split_once("### What the helper makes\n").unwrap();
    let rows = section.lines().skip_while(|line| !line.starts_with('|')).skip(2);
    let rows = rows.take_while(|line| line.starts_with('|'));
    let cells = rows.map(|line| line.trim_matches('|').split('|').map(str::trim).collect());
    let mut table = BTreeMap::new();
    for row in cells {
        let row: Vec<&str> = row;
        for path in row[0].split('`').skip(1).step_by(2) {
            assert!(table.insert(path.to_owned(), row[1].to_owned()).is_none(), "{path} twice");
        }
    }
    table
}

/// What a place is called in the table.
fn name(path: &Path, helper: &RunningHelper) -> String {
    let directories = &helper.directories;
    let root = directories.jails.join("firecracker").join(ID).join("root");
    let roots = [
        (root.as_path(), "ROOT"),
        (&directories.jails, "JAILS"),
        (&directories.own, "RUN"),
        (&directories.state, "STATE"),
        (&directories.runtime, "RUNTIME"),
    ];
    let found = roots.into_iter().find_map(|(root, name)| {
        let below = path.strip_prefix(root).ok()?;
        Some(Path::new(name).join(below).to_str().unwrap().trim_end_matches('/').to_owned())
    });
    let name = found.unwrap_or_else(|| panic!("{path:?} lies elsewhere"));
    let file = name.rsplit('/').next().unwrap();
    match name.split_once('/').map_or("", |(root, _)| root) {
        "JAILS" => name.replace(ID, "ID"),
        "STATE" => "STATE/LOG".to_owned(),
        "RUNTIME" => "RUNTIME/LINK".to_owned(),
        "RUN" if file == "helper.sock" => "RUN/SOCKET".to_owned(),
        "RUN" if file.split('.').count() >= 3 => "RUN/records/KIND.NAME.json".to_owned(),
        "ROOT" if file.starts_with("disk-") => "ROOT/disk-NAME".to_owned(),
        _ => name,
    }
}

/// Who owns it and its mode, in the words of the table.
fn rights(path: &Path) -> String {
    let metadata = path.symlink_metadata().unwrap();
    let owner = match (metadata.uid(), metadata.gid()) {
        (0, 0) => "root".to_owned(),
        (OWNER, OWNER) => "the owner".to_owned(),
        (0, OWNER) => "root and the owner's group".to_owned(),
        others => format!("{others:?}"),
    };
    if metadata.is_symlink() {
        return format!("a link of {owner}'s");
    }
    format!("{owner}, {:04o}", metadata.mode() & 0o7777)
}

/// Everything below a directory.
fn all_below(path: &Path, found: &mut BTreeSet<std::path::PathBuf>) {
    for entry in std::fs::read_dir(path).unwrap().flatten() {
        if entry.file_type().unwrap().is_dir() {
            all_below(&entry.path(), found);
        }
        found.insert(entry.path());
    }
}

#[test]
fn what_the_helper_makes_is_as_tight_as_documented() {
    let Some(programs) = vmm::programs() else { return };
    if banger_harness::find_program("nft").is_none() {
        banger_harness::skip("nft", "makes a bridge with its firewall");
        return;
    }
    enter_own_world();
    vmm::put_programs(&programs);
    // What the helper is started with is no excuse.
    rustix::process::umask(rustix::fs::Mode::empty());
    let helper = RunningHelper::start();
    let status = std::fs::read_to_string(format!("/proc/{}/status", helper.pid())).unwrap();
    assert!(status.lines().any(|line| line == "Umask:\t0077"), "{status}");

    let directories = &helper.directories;
    let state = |name: &str| directories.state.join(name);
    let ours = ["kernel", "initrd", "disk", "shared"];
    for name in ours {
        std::fs::write(state(name), vmm::tiny_kernel(b"here\n")).unwrap();
        chown(state(name), Some(OWNER), Some(OWNER)).unwrap();
        vmm::set_mode(state(name), 0o640);
    }
    let mut tap = json!({"bridge_name": "br-fc", "bridge_ip": "172.16.0.1", "cidr": "24"});
    helper.call(Method::EnsureBridge, &tap).unwrap();
    tap["tap_name"] = "tap-fc-a".into();
    helper.call(Method::CreateTap, &tap).unwrap();
    let mut params = vmm::launch_params(directories, ID);
    params["initrd_path"] = json!(state("initrd"));
    params["drives"] = json!([
        {"id": "own", "path": state("disk")},
        {"id": "shared", "path": state("shared"), "read_only": true},
    ]);
    params["tap_device"] = "tap-fc-a".into();
    params["vsock_path"] = json!(directories.runtime.join("vsock"));
    params["vsock_cid"] = 3.into();
    let pid = helper.call(Method::LaunchFirecracker, &params).unwrap()["pid"].clone();

    let table = documented();
    let mut found = BTreeSet::new();
    for root in [&directories.own, &directories.jails, &directories.state, &directories.runtime] {
        all_below(root, &mut found);
    }
    let mut seen = BTreeSet::new();
    for path in found {
        if ours.iter().any(|name| path == state(name)) {
            continue;
        }
        let name = name(&path, &helper);
        let told = table.get(&name).unwrap_or_else(|| panic!("{name} is not documented"));
        let is = rights(&path);
        let is_as_told = match told.as_str() {
            "as the owner's file that it is" => is == "the owner, 0640",
            "root, 0700; 0711 once the jailer is done" => is == "root, 0711",
            "a link of the owner's"
            | "the owner, 0600"
            | "the owner, 0700"
            | "the owner, 0400"
            | "root, 0600"
            | "root, 0700"
            | "root, 0711"
            | "root, 0755"
            | "root and the owner's group, 0711"
            | "root and the owner's group, 0750" => is == *told,
            other => panic!("the table says {other:?}"),
        };
        assert!(is_as_told, "{path:?} is {is}; docs/privileges.md says {told}");
        let is_device = path.symlink_metadata().unwrap().file_type().is_char_device();
        assert_eq!(is_device, name.starts_with("ROOT/dev/") && name != "ROOT/dev/net", "{name}");
        seen.insert(name);
    }
    for name in table.keys() {
        // A test in the KVM host looks at this one, which only snapshots need.
        let is_elsewhere = name == "JAILS/../last-minor";
        assert!(is_elsewhere || seen.contains(name), "{name} is documented and was not made");
    }
    helper.call(Method::KillProcess, &json!({"pid": pid})).unwrap();
    let clean_up = json!({"chroot_root": directories.jails.join("firecracker/one/root")});
    let is_gone = || helper.call(Method::CleanupJailerChroot, &clean_up).ok();
    banger_harness::wait_for("the machine's end", std::time::Duration::from_secs(10), is_gone);
    assert!(std::fs::read_dir(directories.jails.join("firecracker")).unwrap().next().is_none());
}
