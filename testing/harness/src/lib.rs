//! Hermetic places to run the real `banger` in, and proof that nothing is left.
//!
//! An [`Environment`] has state, cache and runtime directories of its own, so
//! tests run beside each other and beside the user's own machines. At its end
//! it deletes the VMs, stops the daemon and fails the test if a process, a
//! mount, a socket or a file that should be gone is still there.
//!
//! Tests stand on this crate; nothing that ships does. It panics like a test.
#![forbid(unsafe_code)]

mod application_rootfs;
mod assets;
mod environment;
mod inventory;
mod invocation;
pub mod keyed;
mod leak;
pub mod lifecycle;
mod network;
mod other_kernel;
mod processes;
mod qcow2;
mod registry;
mod rootfs;
mod terminal;
pub mod tree;
mod user;

pub use application_rootfs::application_rootfs;
pub use assets::{
    DEFAULT_IMAGE, DEFAULT_KERNEL, build_cache, ensure as ensure_assets, kernel_package,
    kernel_store_if_made, kernel_store_now, link_folder, pull_kernel,
};
pub use environment::{BUSYBOX_IMAGE, Contents, Environment, end as end_environment};
pub use inventory::{Inventory, firecrackers};
pub use invocation::{Finished, Invocation, Running};
pub use leak::Leaks;
pub use processes::{Process, processes_mentioning};
pub use qcow2::flatten_qcow2;
pub use registry::Registry;
pub use rootfs::{RootfsTar, busybox_rootfs, compressed};
pub use terminal::Terminal;
pub use user::User;

use std::path::PathBuf;
use std::time::{Duration, Instant};

/// How long anything may take that waits for a guest on a loaded machine
/// without hardware virtualisation.
pub const GUEST_DEADLINE: Duration = Duration::from_secs(300);

/// Whether the tests run as root.
#[must_use]
pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Prints why a test cannot run here, in the form that `cargo xtask test` counts.
///
/// `capability` is one word, such as `root`; a skip for a capability that the
/// machine has is a failure.
#[expect(clippy::print_stdout, reason = "the test runner reads it from there")]
pub fn skip(capability: &str, why: &str) {
    println!("SKIP: {capability}: {why}");
}

/// Finds a program on PATH and in the places of system tools.
#[must_use]
pub fn find_program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let places = ["/usr/local/sbin", "/usr/sbin", "/sbin", "/usr/bin", "/bin"];
    std::env::split_paths(&path)
        .chain(places.iter().map(PathBuf::from))
        .map(|folder| folder.join(name))
        .find(|candidate| candidate.is_file())
}

/// The version of the real `firecracker` and `jailer` that tests use.
pub const VMM_VERSION: &str = "1.12.1";

/// The folder with the real `firecracker` and `jailer`, if `cargo xtask vmm-binaries` has put them,
/// with their digests checked, into the build cache.
#[must_use]
pub fn vmm_binaries() -> Option<PathBuf> {
    let folder = build_cache().ok()?.join(format!("vmm-binaries-{VMM_VERSION}"));
    ["firecracker", "jailer"].iter().all(|name| folder.join(name).is_file()).then_some(folder)
}

/// Waits until `done` gives a value; panics with `what` after the deadline.
pub fn wait_for<T>(what: &str, deadline: Duration, mut done: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + deadline;
    loop {
        if let Some(value) = done() {
            return value;
        }
        assert!(Instant::now() < end, "waited {deadline:?} in vain for {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// The folder of the built programs: `BANGER_BIN_DIR`, or that of this test.
#[must_use]
pub fn program_folder() -> PathBuf {
    if let Some(folder) = std::env::var_os("BANGER_BIN_DIR") {
        return folder.into();
    }
    let own = std::env::current_exe().expect("a running program has a path");
    let folder = own.parent().expect("a program lies in a folder");
    // A test binary lies in target/PROFILE/deps, a program one level above.
    let folder = if folder.ends_with("deps") {
        folder.parent().expect("deps lies in a folder")
    } else {
        folder
    };
    folder.to_owned()
}

/// The root of the checkout.
#[must_use]
pub fn repository() -> PathBuf {
    let manifest = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    manifest.ancestors().nth(2).expect("testing/harness lies two levels deep").to_owned()
}
