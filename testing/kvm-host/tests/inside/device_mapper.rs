//! Copy-on-write disks by the device-mapper's own ioctls.

use std::io::ErrorKind;
use std::os::unix::fs::FileExt;

use banger_privileged_sys::device_mapper::Target;

use crate::Inside;
use crate::disk::{Snapshot, mapper, names, read_at, sparse};

const MIB: u64 = 1 << 20;

#[test]
fn a_snapshot_keeps_its_base_and_its_changes() {
    let Some(_) = Inside::get() else { return };
    let folder = tempfile::tempdir_in("/var/tmp").expect("a folder");
    let (base, changes) = (folder.path().join("base"), folder.path().join("changes"));
    let file = sparse(&base, 16 * MIB);
    file.write_all_at(&[b'b'; 8192], MIB).expect("fill the base");
    sparse(&changes, 8 * MIB);

    let snapshot = Snapshot::make("banger-test-snapshot", &base, &changes);
    assert!(names().contains(&"banger-test-snapshot".to_owned()));
    let (used_before, all) = snapshot.usage();
    assert_eq!(all, 8 * MIB / 512);
    {
        let device = snapshot.device();
        assert_eq!(read_at(&device, MIB), [b'b'; 4096], "the base shows through");
        device.write_all_at(&[b'c'; 4096], MIB).expect("write to the snapshot");
        device.sync_all().expect("write it out");
        assert_eq!(snapshot.found().users, 1);
        let error = snapshot.mapper.remove(&snapshot.name).expect_err("it is in use");
        assert_eq!(error.kind(), ErrorKind::ResourceBusy, "{error}");
    }
    assert!(snapshot.usage().0 > used_before, "a change takes room");
    assert_eq!(read_at(&file, MIB), [b'b'; 4096], "the base is as it was");
    drop(snapshot);

    let again = Snapshot::make("banger-test-snapshot", &base, &changes);
    assert_eq!(read_at(&again.device(), MIB), [b'c'; 4096], "the change outlives the device");
    assert_eq!(read_at(&again.device(), MIB + 4096), [b'b'; 4096]);
    assert!(again.mapper.remove(&again.name).expect("remove it"));
    assert!(!again.mapper.remove(&again.name).expect("removing it twice is no error"));
}

#[test]
fn what_the_device_mapper_cannot_do_is_an_error() {
    let Some(_) = Inside::get() else { return };
    let mapper = mapper();
    let name = "banger-test-refused";
    assert!(mapper.resume(name).is_err());
    assert!(mapper.find(name, false).expect("an answer").is_none());
    let minor = 1_000_000;
    assert!(mapper.create("a/b", name, minor).is_err() && mapper.create(name, "", minor).is_err());
    let number = mapper.create(name, name, minor).expect("a new device");
    assert_eq!(rustix::fs::minor(number), minor);
    for (name, uuid) in [(name, "u"), ("n", name)] {
        let error = mapper.create(name, uuid, minor + 1).expect_err("it is taken");
        assert_eq!(error.kind(), ErrorKind::ResourceBusy, "{error}");
    }
    let error = mapper.create("n", "u", minor).expect_err("it is taken");
    assert_eq!(error.raw_os_error(), Some(rustix::io::Errno::NXIO.raw_os_error()), "{error}");
    let target = |kind: &str, parameters: &str| Target {
        start: 0,
        length: 8,
        kind: kind.into(),
        parameters: parameters.into(),
    };
    for target in [
        target("no-such-kind", ""),
        target("snapshot", ""),
        target("snapshot", "/dev/null /dev/null P 8"),
        target("linear", "/nonexistent 0"),
    ] {
        assert!(mapper.load(name, &target).is_err(), "{target:?}");
    }
    assert!(mapper.remove(name).expect("remove it"));
}
