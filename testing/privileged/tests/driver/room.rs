//! A host's disk that fills up under a guest.

use std::io::Write;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::time::Duration;

use banger_engine::contract::{TinyGuest, TinyGuests};
use banger_engine::seams::{Vmm, VmmProcess};
use banger_privileged_tests::OWNER;
use rustix::mount::{MountFlags, mount};

use crate::as_owner;
use crate::kernels::Kernels;

const TEST: &str = "room::a_guest_is_held_while_the_disk_is_full_and_goes_on_after";
const PATIENCE: Duration = Duration::from_secs(30);

/// Waits until the machine is held, or is not.
async fn wait_until(process: &dyn VmmProcess, held: bool) {
    let reached = async {
        while process.stall().is_some() != held {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let reached = tokio::time::timeout(PATIENCE, reached).await;
    assert!(reached.is_ok(), "held: {}", !held);
}

/// Returns whether a guest that always writes does: whether its log changes.
async fn writes(log: &Path) -> bool {
    let changed = || std::fs::metadata(log).unwrap().modified().unwrap();
    let before = changed();
    for _ in 0..100 {
        tokio::time::sleep(Duration::from_millis(10)).await;
        if changed() != before {
            return true;
        }
    }
    false
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_guest_is_held_while_the_disk_is_full_and_goes_on_after() {
    let owner = as_owner(TEST, |state| {
        let place = state.join("small");
        std::fs::create_dir(&place).unwrap();
        let options = format!("size=300m,mode=700,uid={OWNER},gid={OWNER}");
        let options = std::ffi::CString::new(options).unwrap();
        mount("tmpfs", &place, "tmpfs", MountFlags::empty(), options.as_c_str()).unwrap();
    });
    let Some(owner) = owner else { return };
    let kernels = Kernels::new(&owner.state);
    let (disks, runtime) = (owner.state.join("small/vm"), owner.runtime.join("vm"));
    for directory in [&disks, &runtime] {
        std::fs::DirBuilder::new().mode(0o700).create(directory).unwrap();
    }
    let log = disks.join("console.log");
    let process =
        owner.driver.launch(kernels.plan(TinyGuest::Flood, &runtime, &log)).await.unwrap();
    assert!(writes(&log).await);
    assert_eq!(process.stall(), None);

    let filler = disks.join("filler");
    let mut file = std::fs::File::create(&filler).unwrap();
    while file.write_all(&[1; 1 << 20]).is_ok() && process.stall().is_none() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    drop(file);
    wait_until(&*process, true).await;
    assert!(!writes(&log).await, "a held guest goes on");
    let room = rustix::fs::statvfs(&disks).unwrap();
    assert!(room.f_bavail > 0, "it was held too late");

    // The next daemon takes it over as it is, and lets it go on once there is room.
    let identity = process.identity().clone();
    drop(process);
    let process = owner.driver.adopt(&identity, &runtime, &log).await.unwrap().unwrap();
    assert!(process.stall().is_some());
    assert!(!writes(&log).await, "a held guest that is adopted goes on");
    std::fs::remove_file(&filler).unwrap();
    wait_until(&*process, false).await;
    assert!(writes(&log).await, "it does not go on");
    process.kill().await.unwrap();
    owner.driver.clean(&runtime).await.unwrap();
}
