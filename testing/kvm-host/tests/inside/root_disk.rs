//! Root disks by dm-snapshot, through the driver of `bangerd` and the installed helper.

use banger_engine::contract;
use banger_helper_client::HelperClient;
use banger_vmm::disk::DmSnapshotDisk;

use crate::Inside;
use crate::installation::{Installed, SOCKET, as_owner, give};

#[test]
fn snapshots_keep_the_contract_of_root_disks() {
    let Some(inside) = Inside::get() else { return };
    let installed = Installed::new(&inside);
    let place = give("disks", |path| std::fs::create_dir(path).expect("a folder"));
    // As the daemon, which is the owner's.
    as_owner(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let disks = DmSnapshotDisk::new(HelperClient::new(SOCKET.into()));
        runtime.expect("a runtime").block_on(contract::root_disk(&disks, &place));
    });
    drop(installed);
}
