//! The guests' network on a real kernel, each test in a network namespace of its own: the test opens
//! the taps and plays the guests, frame by frame; a second namespace is the world.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, reason = "a test ends by it")]

mod bridge;
mod foreign;
mod guest;
mod lost;
mod resolver;
mod tap;
mod two_helpers;
mod uplinks;
mod walls;
mod world;

/// Whether the test can run; says why if not.
fn is_root() -> bool {
    let is_root = rustix::process::geteuid().is_root();
    if !is_root {
        banger_harness::skip("root", "network namespaces are made by root");
    }
    is_root
}
