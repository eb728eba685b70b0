//! banger's own kernel: what docs/kernels.md promises of it, beyond what every
//! test of a guest shows.
//!
//! `cargo xtask test --tier own-kernel` runs these; elsewhere they skip themselves.

mod boot;
mod features;
mod tools;

/// Whether the guests of this run boot a kernel of `cargo xtask kernel`; says so where not.
fn is_booted() -> bool {
    let package = std::env::var("BANGER_TEST_KERNEL").unwrap_or_default();
    let is_own = package.ends_with("-banger_amd64.deb");
    if !is_own {
        banger_harness::skip("own kernel", "runs in cargo xtask test --tier own-kernel");
    }
    is_own
}
