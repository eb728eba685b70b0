//! A snapshot as a machine's disk: the device in its jail is root's, and lasts no longer than what it
//! stands for.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};

use banger_gates::{DmName, request};
use banger_helper_api::CreateDmSnapshotParams;
use banger_host::HostError;
use banger_privileged_sys::as_file_user;
use banger_privileged_tests::OWNER;
use banger_privileged_tests::vmm::{Scene, wait_until_gone};
use serde_json::json;

use crate::Inside;

const NAME: &str = "fc-rootfs-jailed";

#[test]
fn a_device_in_a_jail_is_roots_and_its_number_is_nobody_elses_before_the_jail_is_gone() {
    let Some(inside) = Inside::get() else { return };
    let scene = Scene::with(&inside.data);
    let base = scene.write("base", &[0; 1 << 20]);
    let cow = scene.write("cow", &[0; 4 << 20]);
    let text = |path: &std::path::Path| path.display().to_string();
    let params = CreateDmSnapshotParams {
        rootfs_path: text(&base),
        cow_path: text(&cow),
        dm_name: NAME.to_owned(),
    };
    let grant = request::create_dm_snapshot(&params, scene.policy()).expect("a grant");
    let handles = scene.host().create_dm_snapshot(&grant).expect("a snapshot");
    let (name, parts) = (
        DmName::parse("target", NAME).expect("a name"),
        request::cleanup_dm_snapshot(&handles).expect("parts"),
    );
    for is_read_only in [false, true] {
        let mut launch = scene.params("one");
        let drive = json!({ "id": "root", "path": handles.dm_dev, "is_root": true, "read_only": is_read_only });
        launch["drives"] = json!([drive]);
        let pid = scene.launch(launch).expect("a machine that opens its disk");
        let root = scene.jail("one").join("root");
        let node = root.join("disk-root");
        let metadata = node.symlink_metadata().expect("the device");
        assert!(metadata.file_type().is_block_device());
        assert_eq!((metadata.uid(), metadata.gid()), (0, OWNER));
        assert_eq!(metadata.mode() & 0o7777, if is_read_only { 0o040 } else { 0o060 });
        as_file_user(OWNER, OWNER, || {
            let kept = scene.fixture.state.join("kept");
            assert!(fs::hard_link(&node, &kept).is_err(), "another name of the device");
            let mode = fs::Permissions::from_mode(0o666);
            assert!(fs::set_permissions(&node, mode).is_err(), "another mode of it");
        });
        let is_kept = |outcome: Result<(), HostError>| {
            let error = outcome.expect_err("it has its number in a jail");
            assert!(matches!(error, HostError::Refused(_)), "{error:?}");
            assert!(error.to_string().contains("in another jail"), "{error}");
        };
        let check = || {
            is_kept(scene.host().remove_dm_snapshot(&name));
            is_kept(scene.host().cleanup_dm_snapshot(&parts));
        };
        check();
        scene.host().kill_process(&scene.pid(pid)).expect("its end");
        wait_until_gone(pid);
        check();
        scene.clean_up("one").expect("a clean jail");
        assert!(!node.exists());
    }
    scene.host().cleanup_dm_snapshot(&parts).expect("its end");
    scene.assert_clean();
}
