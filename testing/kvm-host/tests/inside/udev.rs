//! udev and the disks of guests: the rule that `banger system install` writes.

use std::fs::File;
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};

use banger_gates::request;
use banger_helper_api::{CreateDmSnapshotParams, SnapshotHandles};
use banger_privileged_sys::loop_device::{LoopDevice, NUMBERS};
use banger_privileged_tests::{Fixture, OWNER};

use crate::Inside;
use crate::disk::{node_of, sparse};
use crate::tool::run;

const RULE: &str = include_str!("../../../../cli/udev/05-banger.rules");
/// Where a rule is for this boot alone.
const PLACE: &str = "/run/udev/rules.d/05-banger.rules";
const UUID: &str = "0b6e3a44-7f6d-4c6e-9a51-2f3f5b0f7a10";
const LABEL: &str = "banger-hosts";
const NAME: &str = "fc-rootfs-banger-udev";

/// The rule as long as this lives.
pub(crate) struct Rule;

impl Rule {
    pub(crate) fn put() -> Self {
        std::fs::create_dir_all("/run/udev/rules.d").expect("a folder for rules");
        std::fs::write(PLACE, RULE).expect("a rule");
        run("udevadm", ["control", "--reload"]);
        Self
    }
}

impl Drop for Rule {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(PLACE);
        run("udevadm", ["control", "--reload"]);
    }
}

/// A file system with the UUID and label.
fn image(path: &Path) {
    drop(sparse(path, 16 << 20));
    let path = path.to_str().expect("a path that is text");
    run("mke2fs", ["-q", "-F", "-t", "ext4", "-U", UUID, "-L", LABEL, path]);
}

/// What udev says of a device when all that has happened is done with.
fn properties(node: &Path) -> String {
    run("udevadm", ["settle"]);
    let node = node.to_str().expect("a path that is text");
    run("udevadm", ["info", "--query=property", node])
}

/// Where the two links to the host's file system lead.
fn links() -> [Option<PathBuf>; 2] {
    run("udevadm", ["settle"]);
    let paths = [format!("/dev/disk/by-uuid/{UUID}"), format!("/dev/disk/by-label/{LABEL}")];
    paths.map(|path| Path::new(&path).canonicalize().ok())
}

#[test]
fn the_hosts_links_stay_when_a_guests_disk_has_its_uuid_and_label() {
    let Some(_) = Inside::get() else { return };
    let fixture = Fixture::new();
    let own = fixture.outside.join("hosts");
    image(&own);
    let (disk, cow) = (fixture.state.join("disk"), fixture.state.join("cow"));
    image(&disk);
    drop(sparse(&cow, 8 << 20));
    for path in [&disk, &cow] {
        chown(path, Some(OWNER), Some(OWNER)).expect("give it to the owner");
    }
    // Without the rule udev believes what is on the disk.
    let opened = File::options().read(true).write(true).open(&disk).expect("the disk");
    let device = LoopDevice::attach(&opened, false).expect("a loop device");
    assert!(NUMBERS.contains(&device.number()));
    let found = properties(device.path());
    assert!(found.contains(&format!("ID_FS_UUID={UUID}")), "{found}");
    drop(device);

    let _rule = Rule::put();
    let hosts = run("losetup", ["--find", "--show", own.to_str().expect("text")]);
    let hosts = PathBuf::from(hosts.trim());
    assert_eq!(links(), [Some(hosts.clone()), Some(hosts.clone())]);
    let params = CreateDmSnapshotParams {
        rootfs_path: disk.display().to_string(),
        cow_path: cow.display().to_string(),
        dm_name: NAME.to_owned(),
    };
    let grant = request::create_dm_snapshot(&params, fixture.policy()).expect("a grant");
    let handles = fixture.host.create_dm_snapshot(&grant).expect("a snapshot");
    let SnapshotHandles { base_loop, cow_loop, .. } = &handles;
    for node in [PathBuf::from(base_loop), PathBuf::from(cow_loop), node_of(NAME)] {
        let found = properties(&node);
        let has = |line: &str| found.lines().any(|found| found == line);
        assert!(has("UDISKS_IGNORE=1") && has("SYSTEMD_READY=0"), "{node:?}: {found}");
        assert!(!found.contains("ID_FS_") && !found.contains("by-uuid"), "{node:?}: {found}");
        assert_eq!(links(), [Some(hosts.clone()), Some(hosts.clone())], "{node:?}");
    }
    // Also when the host asks for all devices again.
    run("udevadm", ["trigger", "--subsystem-match=block", "--action=change"]);
    assert_eq!(links(), [Some(hosts.clone()), Some(hosts.clone())]);
    let grant = request::cleanup_dm_snapshot(&handles).expect("a grant");
    fixture.host.cleanup_dm_snapshot(&grant).expect("its end");
    run("losetup", ["--detach", hosts.to_str().expect("text")]);
}
