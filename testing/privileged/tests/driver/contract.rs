//! What every VMM driver promises.

use banger_engine::contract::{self, Directories};

use crate::as_owner;
use crate::kernels::Kernels;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn firecracker_keeps_the_contract() {
    let owner = as_owner("contract::firecracker_keeps_the_contract", |_| ());
    let Some(owner) = owner else { return };
    let kernels = Kernels::new(&owner.state);
    let directories = Directories { runtime: &owner.runtime, state: &owner.state };
    contract::vmm(&owner.driver, &kernels, directories).await;
}
