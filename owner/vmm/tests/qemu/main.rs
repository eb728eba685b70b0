//! The QEMU driver against a real QEMU, with guests a few instructions long.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "these are tests")]

mod block_tool;
mod disks;
mod tiny_guest;

use banger_engine::contract::{self, Directories};
use banger_engine::seams::Vmm;
use banger_vmm::probe::AccelerationChoice;
use banger_vmm::qemu::{QemuVmm, find_program};

use self::tiny_guest::Kernels;

/// Says why a test does not run here; `true` where it does.
fn qemu_is_here() -> bool {
    match find_program() {
        Ok(_) => true,
        Err(error) => {
            println!("SKIP: qemu: {error}");
            false
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn qemu_keeps_the_contract() {
    if !qemu_is_here() {
        return;
    }
    let directory = tempfile::Builder::new().prefix("bv").tempdir_in("/tmp").unwrap();
    let kernels = Kernels::new(directory.path());
    let vmm = QemuVmm::new(AccelerationChoice::Tcg);
    vmm.probe().await.unwrap();
    let directories = Directories { runtime: directory.path(), state: directory.path() };
    contract::vmm(&vmm, &kernels, directories).await;
}
