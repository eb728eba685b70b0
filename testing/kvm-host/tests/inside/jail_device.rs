//! A snapshot as a machine's disk: the device in its jail is root's, and whoever kept it by another
//! name or a descriptor has nothing once the snapshot is gone.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use banger_gates::request;
use banger_helper_api::{CreateDmSnapshotParams, SnapshotHandles};
use banger_privileged_sys::as_file_user;
use banger_privileged_tests::OWNER;
use banger_privileged_tests::vmm::{Scene, wait_until_gone};
use rustix::fs::{Mode, OFlags};
use rustix::process::{Gid, Uid};
use serde_json::json;

use crate::Inside;
use crate::disk::{Snapshot, node_of, sparse};

const NAME: &str = "fc-rootfs-jailed";
const SECRET: &[u8] = b"root's secret";

fn create(scene: &Scene, base: &Path, cow: &Path) -> SnapshotHandles {
    let text = |path: &Path| path.display().to_string();
    let (rootfs_path, cow_path) = (text(base), text(cow));
    let params = CreateDmSnapshotParams { rootfs_path, cow_path, dm_name: NAME.to_owned() };
    let grant = request::create_dm_snapshot(&params, scene.policy()).expect("a grant");
    scene.host().create_dm_snapshot(&grant).expect("a snapshot")
}

fn end(scene: &Scene, handles: &SnapshotHandles) {
    let parts = request::cleanup_dm_snapshot(handles).expect("parts");
    scene.host().cleanup_dm_snapshot(&parts).expect("its end");
}

/// Opens a file as the owner, and nobody else in any respect.
fn open_as_owner(path: PathBuf, write: bool) -> io::Result<File> {
    let opened = std::thread::spawn(move || {
        let (user, group) = (Uid::from_raw(OWNER), Gid::from_raw(OWNER));
        rustix::thread::set_thread_groups(&[])?;
        rustix::thread::set_thread_res_gid(group, group, group)?;
        rustix::thread::set_thread_res_uid(user, user, user)?;
        File::options().read(true).write(write).open(path)
    });
    opened.join().expect("a thread that ends")
}

#[test]
fn who_kept_a_device_of_a_jail_has_nothing_of_what_root_makes_next() {
    let Some(inside) = Inside::get() else { return };
    let scene = Scene::with(&inside.data);
    let base = scene.write("base", &[0; 1 << 20]);
    let cow = scene.write("cow", &[0; 2 << 20]);
    let mut numbers = Vec::new();
    for is_read_only in [false, true] {
        let handles = create(&scene, &base, &cow);
        let mut launch = scene.params("one");
        let drive = json!({ "id": "root", "path": handles.dm_dev, "is_root": true, "read_only": is_read_only });
        launch["drives"] = json!([drive]);
        let pid = scene.launch(launch).expect("a machine that opens its disk");
        let node = scene.jail("one").join("root/disk-root");
        let metadata = node.symlink_metadata().expect("the device");
        assert!(metadata.file_type().is_block_device());
        assert_eq!((metadata.uid(), metadata.gid()), (0, OWNER));
        assert_eq!(metadata.mode() & 0o7777, if is_read_only { 0o040 } else { 0o060 });
        numbers.push(metadata.rdev());
        let (renamed, linked) =
            (scene.fixture.state.join("renamed"), scene.fixture.state.join("linked"));
        let held = as_file_user(OWNER, OWNER, || {
            assert!(fs::hard_link(&node, &linked).is_err(), "another name of the device");
            let mode = fs::Permissions::from_mode(0o666);
            assert!(fs::set_permissions(&node, mode).is_err(), "another mode of it");
            let flags = OFlags::PATH | OFlags::CLOEXEC;
            let held = rustix::fs::open(&node, flags, Mode::empty()).expect("a descriptor");
            assert!(fs::rename(&node, &renamed).is_err(), "another place for it");
            held
        });
        // As by who was there before the jail's root was root's.
        fs::rename(&node, &renamed).expect("another place for it");
        let descriptor = PathBuf::from(format!("/proc/self/fd/{}", held.as_raw_fd()));
        let kept = [renamed.clone(), descriptor];
        let open = |path: &PathBuf| open_as_owner(path.clone(), !is_read_only);
        let opened = kept.iter().map(open).map(|opened| opened.map(drop).is_ok());
        assert_eq!(opened.collect::<Vec<_>>(), [true, true], "while it is the owner's");
        scene.host().kill_process(&scene.pid(pid)).expect("its end");
        wait_until_gone(pid);
        scene.clean_up("one").expect("a clean jail");
        end(&scene, &handles);

        // What root makes next, as cryptsetup or lvm would.
        let folder = tempfile::tempdir_in("/var/tmp").expect("a folder");
        let (victims_base, victims_cow) = (folder.path().join("base"), folder.path().join("cow"));
        sparse(&victims_base, 1 << 20).write_all_at(SECRET, 0).expect("a secret");
        sparse(&victims_cow, 2 << 20);
        let victim = Snapshot::make("roots-own", &victims_base, &victims_cow);
        // And what the owner makes next.
        let next = create(&scene, &base, &cow);
        numbers.push(node_of(NAME).metadata().expect("a device").rdev());
        for path in &kept {
            let error = open(path).map(drop).expect_err("nothing has that number");
            let absent = [rustix::io::Errno::NXIO, rustix::io::Errno::NODEV];
            let errno = rustix::io::Errno::from_io_error(&error).expect("a number");
            assert!(absent.contains(&errno), "{error}");
        }
        end(&scene, &next);
        drop(victim);
        fs::remove_file(renamed).expect("the end of the node");
    }
    numbers.sort_unstable();
    numbers.dedup();
    assert_eq!(numbers.len(), 4, "no two had one number");
    scene.assert_clean();
}
