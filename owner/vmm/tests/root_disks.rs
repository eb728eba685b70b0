//! Every kind of root disk against the contract.

use banger_engine::contract;
use banger_vmm::disk::{CopyDisk, Qcow2Overlay};

#[tokio::test]
async fn qcow2_overlays_keep_the_contract() {
    let directory = tempfile::tempdir().unwrap();
    contract::root_disk(&Qcow2Overlay, directory.path()).await;
}

#[tokio::test]
async fn copies_keep_the_contract() {
    let directory = tempfile::tempdir().unwrap();
    contract::root_disk(&CopyDisk, directory.path()).await;
}
