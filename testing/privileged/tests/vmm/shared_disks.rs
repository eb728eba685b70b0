//! A disk that is written to is one machine's, wherever the jails lie: beside the state directory,
//! where it is linked into the jail, or on another mount, as in the helper's unit, where it is
//! mounted there.

use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;
use std::sync::Barrier;
use std::time::Duration;

use banger_gates::request::{self, GuestFile, Volume, WriteFiles};
use banger_gates::{GuestPath, ManagedPath};
use banger_helper_api::CreateDmSnapshotParams;
use banger_host::HostError;
use banger_privileged_sys::loop_device::LoopDevice;
use banger_privileged_tests::vmm::{Scene, children, scene, tree, wait_until_gone};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use serde_json::{Value, json};

/// A scene whose jails lie on another file system than the disks.
fn apart() -> Option<Scene> {
    let scene = scene()?;
    mount("tmpfs", &scene.fixture.jails, "tmpfs", MountFlags::empty(), c"mode=711").unwrap();
    Some(scene)
}

/// That nothing of any machine is left in such a scene.
fn assert_apart_is_clean(scene: &Scene) {
    let jails = tree(&scene.fixture.jails);
    assert!(jails.len() <= 2, "{jails:#?}");
    // Busy, if anything is mounted below.
    unmount(&scene.fixture.jails, UnmountFlags::empty()).unwrap();
    scene.assert_clean();
}

/// The parameters of a launch with these disks; the second word says whether one is only read.
fn with(scene: &Scene, id: &str, disks: &[(&Path, bool)]) -> Value {
    let mut params = scene.params(id);
    let drive = |(index, (path, is_read_only)): (usize, &(&Path, bool))| json!({ "id": format!("disk{index}"), "path": path, "read_only": is_read_only });
    params["drives"] = disks.iter().enumerate().map(drive).collect();
    params
}

fn refused(scene: &Scene, disks: &[(&Path, bool)], rule: &str) {
    let before = scene.everything();
    let error = scene.launch(with(scene, "refused", disks)).unwrap_err();
    assert!(matches!(error, HostError::Refused(_)), "{disks:?}: {error:?}");
    let error = error.to_string();
    assert!(error.starts_with("drives.path") && error.contains(rule), "{disks:?}: {error}");
    assert_eq!(scene.everything(), before, "{disks:?}");
}

fn works(scene: &Scene, disks: &[(&Path, bool)]) {
    let pid = scene.launch(with(scene, "neighbour", disks)).unwrap();
    scene.end("neighbour", pid);
}

fn belongs_to_one(scene: &Scene, writers_rule: &str) {
    let disk = &scene.write("disk", &[0; 4096]);
    let base = &scene.write("base", &[0; 4096]);
    let other = &scene.write("other", &[0; 4096]);
    let elsewhere = "in another jail";
    let pid = scene.launch(with(scene, "one", &[(base, true), (disk, false)])).unwrap();
    let check = |scene: &Scene| {
        refused(scene, &[(disk, false)], writers_rule);
        refused(scene, &[(base, true), (other, false), (disk, false)], writers_rule);
        refused(scene, &[(disk, true)], elsewhere);
        refused(scene, &[(base, false)], elsewhere);
        works(scene, &[(base, true), (other, false)]);
    };
    check(scene);
    // Another name is the same disk.
    let name = scene.fixture.state.join("moved");
    std::fs::rename(disk, &name).unwrap();
    refused(scene, &[(&name, true)], elsewhere);
    refused(scene, &[(&name, false)], writers_rule);
    std::fs::rename(&name, disk).unwrap();
    // An image of files is not written to under a machine.
    let at = disk.to_str().unwrap();
    let write = WriteFiles {
        image: Volume::File(ManagedPath::parse("image_path", at, scene.policy()).unwrap()),
        files: vec![GuestFile {
            path: GuestPath::parse("guest_path", "/x").unwrap(),
            data: Vec::new(),
            mode: 0o644,
        }],
    };
    let error = scene.host().write_ext4_files(&write).unwrap_err();
    assert!(matches!(error, HostError::Refused(_)), "{error:?}");
    assert!(error.to_string().contains(writers_rule), "{error}");
    // A helper that was started anew knows as much.
    let launch = scene.grant(with(scene, "next", &[(disk, false)]));
    let error = scene.next_helper().launch_firecracker(&launch).unwrap_err().to_string();
    assert!(error.contains(writers_rule), "{error}");
    // The jail of a machine that has ended holds it until it is cleaned up.
    scene.host().kill_process(&scene.pid(pid)).unwrap();
    wait_until_gone(pid);
    check(scene);
    scene.clean_up("one").unwrap();
    works(scene, &[(disk, false)]);
    works(scene, &[(base, false)]);
    works(scene, &[(disk, true), (disk, true)]);
    // Nor has one machine it twice.
    for both in [[false, false], [false, true], [true, false]] {
        refused(scene, &both.map(|is_read_only| (disk.as_path(), is_read_only)), elsewhere);
    }
}

#[test]
fn a_linked_disk_belongs_to_one_machine() {
    let Some(scene) = scene() else { return };
    belongs_to_one(&scene, "more than one name");
    scene.assert_clean();
}

#[test]
fn a_mounted_disk_belongs_to_one_machine() {
    let Some(scene) = apart() else { return };
    let disk = scene.write("disk-of-two-mounts", &[0; 4096]);
    let pid = scene.launch(with(&scene, "one", &[(&disk, false)])).unwrap();
    assert_eq!(disk.metadata().unwrap().nlink(), 1, "it is not linked into the jail");
    scene.end("one", pid);
    belongs_to_one(&scene, "in another jail");
    assert_apart_is_clean(&scene);
}

#[test]
fn of_launches_at_once_one_has_the_disk() {
    let Some(scene) = apart() else { return };
    let disk = &scene.write("disk", &[0; 4096]);
    let ids = ["a", "b", "c"];
    for round in 0..5 {
        let together = Barrier::new(ids.len());
        let launch = |id| {
            let launch = scene.grant(with(&scene, id, &[(disk, id == "c" && round % 2 == 1)]));
            together.wait();
            scene.host().launch_firecracker(&launch)
        };
        let outcomes: Vec<_> = std::thread::scope(|scope| {
            let threads = ids.map(|id| scope.spawn(move || (id, launch(id))));
            threads.map(|thread| thread.join().unwrap()).into()
        });
        let (won, lost): (Vec<_>, Vec<_>) = outcomes.into_iter().partition(|it| it.1.is_ok());
        assert_eq!(won.len(), 1, "{won:?} {lost:?}");
        for (id, error) in lost {
            let error = error.unwrap_err().to_string();
            assert!(error.contains("in another jail"), "{id}: {error}");
        }
        let pid = i32::try_from(*won[0].1.as_ref().unwrap()).unwrap();
        scene.end(won[0].0, pid);
    }
    assert_apart_is_clean(&scene);
}

/// What one machine writes to, its log too, is nobody's kernel, initrd, log or disk.
#[test]
fn a_log_a_kernel_and_an_initrd_are_no_others_disk() {
    if let Some(scene) = scene() {
        check_all_uses(&scene);
        scene.assert_clean();
    }
}

/// The same where nothing has a second name.
#[test]
fn a_log_a_kernel_and_an_initrd_are_no_others_disk_from_a_mount_apart() {
    if let Some(scene) = apart() {
        check_all_uses(&scene);
        assert_apart_is_clean(&scene);
    }
}

fn check_all_uses(scene: &Scene) {
    let disk = &scene.write("disk", &banger_privileged_tests::vmm::tiny_kernel(b"x"));
    let pid = scene.launch(with(scene, "one", &[(disk, false)])).unwrap();
    let state = &scene.fixture.state;
    let (log, kernel) = (state.join("one.log"), state.join("kernel"));
    let with_one = |parameter: &str, path: &Path| {
        let mut params = scene.params("two");
        params[parameter] = json!(path);
        params
    };
    let refused_for = |parameter: &str, params: Value| {
        let before = scene.everything();
        let error = scene.launch(params).unwrap_err();
        assert!(matches!(error, HostError::Refused(_)), "{parameter}: {error:?}");
        let text = error.to_string();
        // A disk beside the jails has a second name there.
        let rules = ["in another jail", "more than one name"];
        let is_told = rules.iter().any(|rule| text.contains(rule));
        assert!(text.starts_with(parameter) && is_told, "{text}");
        assert_eq!(scene.everything(), before, "{parameter}");
    };
    for parameter in ["log_path", "kernel_image_path", "initrd_path"] {
        for path in [disk, &log] {
            refused_for(parameter, with_one(parameter, path));
        }
    }
    // What another only reads is not written to either.
    refused_for("log_path", with_one("log_path", &kernel));
    refused_for("drives.path", with(scene, "two", &[(&kernel, false)]));
    for is_read_only in [false, true] {
        refused_for("drives.path", with(scene, "two", &[(&log, is_read_only)]));
    }
    // Nor is one of one's own.
    let own = scene.write("own", &[0; 4096]);
    let mut params = with(scene, "two", &[(&own, true)]);
    params["log_path"] = json!(own);
    refused_for("log_path", params.clone());
    // The neighbours: a kernel that both read, as an initrd and a disk too, and a log of its own.
    params["log_path"] = json!(state.join("two.log"));
    params["initrd_path"] = json!(kernel);
    params["drives"] = json!([{ "id": "kernel", "path": kernel, "read_only": true }]);
    let two = scene.launch(params).unwrap();
    scene.end("two", two);
    scene.end("one", pid);
    let two = scene.launch(with_one("log_path", &log)).unwrap();
    scene.end("two", two);
}

/// Reads with one loop device and writes with the other, as a snapshot does.
fn under_loops(base: &Path, cow: &Path) -> (LoopDevice, LoopDevice) {
    let open = |path, writes| File::options().read(true).write(writes).open(path).unwrap();
    let reading = LoopDevice::attach(&open(base, false), true).unwrap();
    (reading, LoopDevice::attach(&open(cow, true), false).unwrap())
}

#[test]
fn what_a_loop_device_stands_on_is_no_machines() {
    let Some(scene) = apart() else { return };
    let (base, cow) = (&scene.write("base", &[0; 1 << 16]), &scene.write("cow", &[0; 1 << 16]));
    let loops = under_loops(base, cow);
    let in_use = "in use by /dev/loop";
    refused(&scene, &[(cow, false)], in_use);
    refused(&scene, &[(cow, true)], in_use);
    refused(&scene, &[(base, false)], in_use);
    for path in [base, cow] {
        let mut params = scene.params("refused");
        params["log_path"] = json!(path);
        let error = scene.launch(params).unwrap_err().to_string();
        assert!(error.starts_with("log_path") && error.contains(in_use), "{error}");
    }
    // The neighbour: what both only read.
    works(&scene, &[(base, true)]);
    drop(loops);
    works(&scene, &[(base, false), (cow, false)]);
    assert_apart_is_clean(&scene);
}

#[test]
fn what_a_machine_writes_to_is_in_no_snapshot_and_what_it_reads_in_none_as_cow() {
    let Some(scene) = apart() else { return };
    let disk = &scene.write("disk", &[0; 1 << 16]);
    let base = &scene.write("base", &[0; 1 << 16]);
    let cow = &scene.write("cow", &[0; 1 << 16]);
    let pid = scene.launch(with(&scene, "one", &[(base, true), (disk, false)])).unwrap();
    let snapshot = |image: &Path, cow: &Path| {
        let text = |path: &Path| path.display().to_string();
        let dm_name = "fc-rootfs-refused".to_owned();
        let params =
            CreateDmSnapshotParams { rootfs_path: text(image), cow_path: text(cow), dm_name };
        let grant = request::create_dm_snapshot(&params, scene.policy()).unwrap();
        scene.host().create_dm_snapshot(&grant)
    };
    let log = &scene.fixture.state.join("one.log");
    for (image, cow, parameter) in [
        (base, disk, "cow_path"),
        (base, log, "cow_path"),
        (cow, base, "cow_path"),
        (disk, cow, "rootfs_path"),
        (log, cow, "rootfs_path"),
    ] {
        let error = snapshot(image, cow).unwrap_err();
        assert!(matches!(error, HostError::Refused(_)), "{parameter}: {error:?}");
        let error = error.to_string();
        let is_told = error.starts_with(parameter) && error.contains("in another jail");
        assert!(is_told, "{parameter}: {error}");
    }
    // The neighbour, which fails where the kernel has no device-mapper, but is not refused.
    match snapshot(base, cow) {
        Err(error) => assert!(!matches!(error, HostError::Refused(_)), "{error:?}"),
        Ok(made) => {
            let name = banger_gates::DmName::parse("dm_name", &made.dm_name).unwrap();
            scene.host().remove_dm_snapshot(&name).unwrap();
        }
    }
    scene.end("one", pid);
    assert_apart_is_clean(&scene);
}

#[test]
fn an_image_that_is_being_written_to_is_no_machines_disk() {
    let Some(scene) = apart() else { return };
    let image = &scene.write("image", b"");
    File::options().write(true).open(image).unwrap().set_len(64 << 20).unwrap();
    let made =
        Command::new("/usr/sbin/mke2fs").args(["-q", "-F", "-t", "ext4"]).arg(image).status();
    assert!(made.unwrap().success());
    let file = |at| GuestFile {
        path: GuestPath::parse("guest_path", &format!("/file{at}")).unwrap(),
        data: vec![7; 1 << 20],
        mode: 0o644,
    };
    let at = image.to_str().unwrap();
    let write = WriteFiles {
        image: Volume::File(ManagedPath::parse("image_path", at, scene.policy()).unwrap()),
        files: (0..14).map(file).collect(),
    };
    let launches = [false, true]
        .map(|is_read_only| scene.grant(with(&scene, "two", &[(image, is_read_only)])));
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| scene.host().write_ext4_files(&write));
        let begun = || (!children().is_empty()).then_some(());
        banger_harness::wait_for("debugfs", Duration::from_secs(10), begun);
        for launch in &launches {
            let error = scene.host().launch_firecracker(launch).unwrap_err().to_string();
            assert!(error.contains("another request has it"), "{error}");
        }
        assert!(!writer.is_finished(), "the launches came too late to say anything");
        writer.join().unwrap().unwrap();
    });
    works(&scene, &[(image, false)]);
    assert_apart_is_clean(&scene);
}
