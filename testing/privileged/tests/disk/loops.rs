//! Loop devices: made, found again, taken down, and never a foreign one.

use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use banger_gates::request;
use banger_helper_api::{RemoveDmSnapshotParams, SnapshotHandles};
use banger_host::HostError;
use banger_privileged_sys::loop_device::{LoopDevice, NUMBERS};
use banger_privileged_tests::Fixture;

use crate::{
    assert_no_loops, assert_same, create, failure, file, fixture, image, loops_below, picture,
    refusal, run,
};

const MIB: u64 = 1 << 20;

/// A loop device that nobody has open, and that stays unless the helper takes it down.
struct Lasting(String);

impl Lasting {
    fn on(path: &Path) -> Self {
        let path = path.to_str().unwrap();
        Self(run("losetup", &["--find", "--show", path]).trim().to_owned())
    }

    fn is_there(&self) -> bool {
        let name = self.0.strip_prefix("/dev/").unwrap();
        PathBuf::from(format!("/sys/block/{name}/loop")).exists()
    }
}

impl Drop for Lasting {
    fn drop(&mut self) {
        if self.is_there() {
            run("losetup", &["--detach", &self.0]);
        }
    }
}

fn cleanup(fixture: &Fixture, name: &str, base: &str, cow: &str) -> Result<(), HostError> {
    let handles = SnapshotHandles {
        base_loop: base.to_owned(),
        cow_loop: cow.to_owned(),
        dm_name: name.to_owned(),
        dm_dev: String::new(),
    };
    fixture.host.cleanup_dm_snapshot(&request::cleanup_dm_snapshot(&handles)?)
}

#[test]
fn loops_below_the_state_root_are_taken_down() {
    let Some(fixture) = fixture() else { return };
    let (base, cow) = (fixture.state.join("base"), fixture.state.join("cow"));
    file(&base, MIB);
    file(&cow, MIB);
    let (base, cow) = (Lasting::on(&base), Lasting::on(&cow));
    cleanup(&fixture, "fc-rootfs-none", &base.0, &cow.0).unwrap();
    assert!(!base.is_there() && !cow.is_there());
    // Again, and of nothing, and of a device that there is not.
    cleanup(&fixture, "fc-rootfs-none", &base.0, &cow.0).unwrap();
    cleanup(&fixture, "", "", "").unwrap();
    cleanup(&fixture, "fc-rootfs-none", "", "/dev/loop1048575").unwrap();
    let params = RemoveDmSnapshotParams { target: "fc-rootfs-none".to_owned() };
    let name = request::remove_dm_snapshot(&params).unwrap();
    fixture.host.remove_dm_snapshot(&name).unwrap();
}

#[test]
fn a_foreign_loop_is_refused_and_its_neighbours_stay() {
    let Some(fixture) = fixture() else { return };
    let (inside, outside) = (fixture.state.join("inside"), fixture.own.join("outside"));
    file(&inside, MIB);
    file(&outside, MIB);
    let (own, foreign) = (Lasting::on(&inside), Lasting::on(&outside));
    // A second name below the state root makes it no file of there.
    std::fs::hard_link(&outside, fixture.state.join("second")).unwrap();
    let before = picture(&fixture);
    for (base, cow) in [(&own, &foreign), (&foreign, &own)] {
        let refusal = refusal(cleanup(&fixture, "", &base.0, &cow.0));
        assert!(["cow_loop", "base_loop"].contains(&refusal.parameter), "{refusal}");
        assert!(own.is_there() && foreign.is_there());
    }
    // A path below the state root that leads to another file by now.
    std::fs::remove_file(&inside).unwrap();
    file(&inside, MIB);
    refusal(cleanup(&fixture, "", &own.0, "")).to_string();
    assert!(own.is_there());
    assert_eq!(picture(&fixture).len(), before.len());
    drop(own);
    let own = Lasting::on(&inside);
    cleanup(&fixture, "", &own.0, "").unwrap();
    assert!(!own.is_there() && foreign.is_there());
}

#[test]
fn a_deleted_file_is_let_go_if_it_was_recorded() {
    let Some(fixture) = fixture() else { return };
    let path = fixture.state.join("cow");
    let metadata = file(&path, MIB).metadata().unwrap();
    let device = Lasting::on(&path);
    std::fs::remove_file(&path).unwrap();
    let number: u32 = device.0.strip_prefix("/dev/loop").unwrap().parse().unwrap();
    let record = |number: u32, inode| {
        let volume = metadata.dev();
        let text =
            format!(r#"{{"loops":[{{"number":{number},"device":{volume},"inode":{inode}}}]}}"#);
        std::fs::write(fixture.own.join("records/snapshot.fc-rootfs-x.json"), text).unwrap();
    };
    refusal(cleanup(&fixture, "", "", &device.0));
    record(number + 1, metadata.ino());
    refusal(cleanup(&fixture, "", "", &device.0));
    record(number, metadata.ino() + 1);
    refusal(cleanup(&fixture, "", "", &device.0));
    assert!(device.is_there());
    record(number, metadata.ino());
    cleanup(&fixture, "fc-rootfs-x", "", &device.0).unwrap();
    assert!(!device.is_there());
    assert!(!fixture.own.join("records/snapshot.fc-rootfs-x.json").exists(), "it is forgotten");
}

#[test]
fn a_loop_device_says_what_it_stands_on_and_ends_with_its_holder() {
    let Some(fixture) = fixture() else { return };
    let path = fixture.state.join("disk");
    let file = file(&path, 3 * MIB + 512);
    let metadata = file.metadata().unwrap();
    for read_only in [true, false] {
        let device = LoopDevice::attach(&file, read_only).unwrap();
        let backing = device.backing().unwrap().unwrap();
        let identity = (backing.device, backing.inode, backing.is_read_only);
        assert_eq!(identity, (metadata.dev(), metadata.ino(), read_only));
        assert!(NUMBERS.contains(&device.number()), "{device:?}");
        assert_eq!(loops_below(&fixture.state).len(), 1);
        let again = LoopDevice::open(device.number()).unwrap().unwrap();
        again.detach().unwrap();
        drop(device);
        drop(again);
        assert_no_loops(&fixture.state);
    }
    assert!(LoopDevice::open(1_048_575).unwrap().is_none());
}

#[test]
fn a_snapshot_that_cannot_be_made_leaves_nothing() {
    let Some(fixture) = fixture() else { return };
    let (base, cow) = (fixture.state.join("base"), fixture.state.join("cow"));
    let empty = fixture.state.join("empty");
    image(&fixture, "base", 4, &[]);
    file(&cow, MIB);
    file(&empty, 0);
    let before = picture(&fixture);
    refusal(create(&fixture, &empty, &cow));
    assert_same(&fixture, &before);
    if Path::new("/dev/mapper/control").exists() {
        banger_harness::skip("device-mapper", "this machine has one: the KVM host's tests use it");
        return;
    }
    let error = failure(create(&fixture, &base, &cow));
    assert!(error.contains("device-mapper"), "{error}");
    assert_same(&fixture, &before);
}

#[test]
fn eight_at_once_never_share_a_file_for_changes() {
    let Some(fixture) = fixture() else { return };
    image(&fixture, "base", 4, &[]);
    let (base, cow) = (fixture.state.join("base"), fixture.state.join("cow"));
    file(&cow, MIB);
    let before = picture(&fixture);
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                for _ in 0..20 {
                    // Here refused for the other one, or failed for the device-mapper.
                    create(&fixture, &base, &cow).unwrap_err();
                }
            });
        }
    });
    assert_same(&fixture, &before);
}

#[test]
fn a_helper_that_is_killed_leaves_no_loop_device() {
    let Some(fixture) = fixture() else { return };
    let path = fixture.state.join("disk");
    file(&path, MIB);
    for _ in 0..20 {
        // The state of a helper that is between attaching and the device-mapper's table.
        let test = std::env::current_exe().unwrap();
        let mut child = std::process::Command::new(test)
            .args(["--exact", "loops::holds_a_loop_device", "--ignored", "--nocapture"])
            .env("BANGER_TEST_DISK", &path)
            .stdout(std::process::Stdio::null())
            .spawn()
            .unwrap();
        let end = std::time::Instant::now() + std::time::Duration::from_secs(30);
        while loops_below(&fixture.state).is_empty() {
            assert!(std::time::Instant::now() < end, "it attaches");
            std::thread::sleep(std::time::Duration::from_millis(2));
        }
        child.kill().unwrap();
        child.wait().unwrap();
        assert_no_loops(&fixture.state);
    }
}

#[test]
#[ignore = "the process that another test kills"]
fn holds_a_loop_device() {
    let Some(path) = std::env::var_os("BANGER_TEST_DISK") else { return };
    let file = File::options().read(true).write(true).open(path).unwrap();
    let _device = LoopDevice::attach(&file, false).unwrap();
    std::thread::sleep(std::time::Duration::from_secs(60));
}
