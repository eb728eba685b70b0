//! The helper as it runs: its wire, its peers, its tables, and what it stands.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, reason = "a test ends by it")]

mod abuse;
mod acts;
mod frames;
mod memory;
mod modes;
mod peers;
mod scenery;
mod snapshot;
mod tables;
mod wire;

/// Leaves a test that only root can make; `true` if it was left.
fn is_not_root() -> bool {
    let is_root = banger_harness::is_root();
    if !is_root {
        banger_harness::skip("root", "starts the root helper");
    }
    !is_root
}

/// Namespaces of its own for the helper that this test starts: what it makes goes with them.
fn enter_own_world() {
    banger_privileged_tests::enter_own_network();
    banger_privileged_tests::enter_own_mounts();
    banger_privileged_tests::hide_cgroups();
}
