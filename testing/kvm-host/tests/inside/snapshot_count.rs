//! How many snapshots an owner may have.

use std::os::unix::fs::chown;

use banger_gates::request;
use banger_helper_api::CreateDmSnapshotParams;
use banger_host::{Host, HostError};
use banger_privileged_sys::device_mapper::{DeviceMapper, Target};
use banger_privileged_tests::{Fixture, OWNER};

use crate::Inside;
use crate::disk::{mapper, sparse};
use crate::udev::Rule;

/// The most of an owner, as docs/privileges.md has it.
const MOST: usize = 256;

/// Devices that the kernel knows for the owner's, ended when dropped.
struct Others(DeviceMapper, Vec<String>);

impl Others {
    fn make(count: usize) -> Self {
        let mapper = mapper();
        let first = (0..).find(|at| !std::path::Path::new(&format!("/sys/block/dm-{at}")).exists());
        let first: u32 = first.expect("a number");
        let mut others = Self(mapper, Vec::new());
        for (minor, at) in (first..).zip(0..count) {
            let (name, uuid) =
                (format!("fc-rootfs-x{at}"), format!("banger-{OWNER}-fc-rootfs-x{at}"));
            others.0.create(&name, &uuid, minor).expect("a device");
            others.1.push(uuid.clone());
            let (kind, parameters) = ("zero".to_owned(), String::new());
            others
                .0
                .load(&uuid, &Target { start: 0, length: 8, kind, parameters })
                .expect("a table");
            others.0.resume(&uuid).expect("a live device");
        }
        others
    }
}

impl Drop for Others {
    fn drop(&mut self) {
        for uuid in &self.1 {
            // udev opens each new one for a moment.
            let removed = || self.0.remove(uuid).ok();
            banger_harness::wait_for(
                "the end of a device",
                banger_harness::GUEST_DEADLINE,
                removed,
            );
        }
    }
}

#[test]
fn an_owner_has_so_many_snapshots_and_no_more() {
    let Some(_) = Inside::get() else { return };
    // Else udev looks into each of them, here for half a minute.
    let _rule = Rule::put();
    let fixture = Fixture::new();
    for name in ["image", "cow", "cow-two"] {
        drop(sparse(&fixture.state.join(name), 8 << 20));
        chown(fixture.state.join(name), Some(OWNER), Some(OWNER)).expect("give it to the owner");
    }
    let create = |host: &Host, cow: &str, name: &str| {
        let params = CreateDmSnapshotParams {
            rootfs_path: fixture.state.join("image").display().to_string(),
            cow_path: fixture.state.join(cow).display().to_string(),
            dm_name: name.to_owned(),
        };
        host.create_dm_snapshot(
            &request::create_dm_snapshot(&params, host.policy()).expect("a grant"),
        )
    };
    let end = |handles| {
        let grant = request::cleanup_dm_snapshot(&handles).expect("a grant");
        fixture.host.cleanup_dm_snapshot(&grant).expect("its end");
    };
    let others = Others::make(MOST - 1);
    let last = create(&fixture.host, "cow", "fc-rootfs-last").expect("the last snapshot");
    let next = Host::open(fixture.policy().clone(), &fixture.own).expect("a host");
    for host in [&fixture.host, &next] {
        match create(host, "cow-two", "fc-rootfs-more") {
            Err(HostError::Refused(refusal)) => {
                assert_eq!(refusal.parameter, "dm_name");
                assert!(refusal.reason.contains("256 snapshots of 256"), "{refusal}");
            }
            other => panic!("not refused: {other:?}"),
        }
    }
    end(last);
    end(create(&next, "cow-two", "fc-rootfs-more").expect("there is room again"));
    drop(others);
}
