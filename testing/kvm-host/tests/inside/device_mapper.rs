//! Copy-on-write disks by the device-mapper's own ioctls.

use std::os::unix::fs::FileExt;

use banger_privileged_sys::device_mapper::{DeviceMapper, DeviceMapperError, DmName, Target};

use crate::Inside;
use crate::disk::{Snapshot, read_at, sparse};

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
    assert!(
        snapshot
            .mapper
            .list()
            .expect("a list")
            .contains(&("banger-test-snapshot".to_owned(), snapshot.number))
    );
    let (used_before, all) = snapshot.usage();
    assert_eq!(all, 8 * MIB / 512);
    {
        let device = snapshot.device();
        assert_eq!(read_at(&device, MIB), [b'b'; 4096], "the base shows through");
        device.write_all_at(&[b'c'; 4096], MIB).expect("write to the snapshot");
        device.sync_all().expect("write it out");
        assert_eq!(snapshot.mapper.users(&snapshot.name).expect("its users"), 1);
        let error = snapshot.mapper.remove(&snapshot.name).expect_err("it is in use");
        assert!(matches!(error, DeviceMapperError::Refused { .. }), "{error}");
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
fn what_the_device_mapper_cannot_do_is_an_error_that_names_it() {
    let Some(_) = Inside::get() else { return };
    let mapper = DeviceMapper::open().expect("the device-mapper");
    let name: DmName = "banger-test-refused".parse().expect("a name");
    assert!(mapper.resume(&name).is_err());
    assert!(mapper.status(&name).is_err());
    mapper.create(&name).expect("a new device");
    let error = mapper.create(&name).expect_err("the name is taken");
    assert!(error.to_string().contains("banger-test-refused"), "{error}");
    let target = |kind: &str, parameters: &str| {
        [Target { start: 0, length: 8, kind: kind.into(), parameters: parameters.into() }]
    };
    for table in [
        target("no-such-kind", ""),
        target("snapshot", ""),
        target("snapshot", "/dev/null /dev/null P 8"),
        target("linear", "/nonexistent 0"),
    ] {
        assert!(mapper.load(&name, &table, false).is_err(), "{table:?}");
    }
    mapper.suspend(&name).expect("a device without a table can be suspended");
    assert!(mapper.remove(&name).expect("remove it"));
}
