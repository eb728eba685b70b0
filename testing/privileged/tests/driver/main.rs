//! `bangerd`'s Firecracker driver against the real helper, jailer and Firecracker, with guests a few
//! instructions long.
//!
//! The helper runs in the test's own mounts; the driver runs as the owner, in a second process of
//! this very program, as the daemon is one.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "these are tests")]

mod contract;
mod kernels;
mod room;

use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use banger_helper_client::HelperClient;
use banger_privileged_tests::running::RunningHelper;
use banger_privileged_tests::vmm::{programs, put_programs, set_mode};
use banger_privileged_tests::{OWNER, enter_own_mounts};
use banger_vmm::firecracker::FirecrackerVmm;
use banger_vmm::probe::AccelerationChoice;

/// Set in the owner's process: the folder in which the helper's directories lie.
const PLACE: &str = "BANGER_TEST_DRIVER_PLACE";

/// The directories of a helper, seen by its owner.
struct Owner {
    state: PathBuf,
    runtime: PathBuf,
    driver: FirecrackerVmm,
}

/// Returns the owner's view when called in the owner's process. Elsewhere it starts a helper, runs
/// `test` as the owner, and returns nothing. Before that, `prepare` has the state directory.
fn as_owner(test: &str, prepare: impl FnOnce(&Path)) -> Option<Owner> {
    if let Some(place) = std::env::var_os(PLACE) {
        let place = Path::new(&place);
        let socket = PathBuf::from(std::env::var_os("BANGER_TEST_SOCKET").unwrap());
        // Any KVM will do for guests that are not Linux.
        let choice = AccelerationChoice::Kvm;
        let jails = PathBuf::from(std::env::var_os("BANGER_TEST_JAILS").unwrap());
        let (state, runtime) = (place.join("state"), place.join("runtime"));
        let marks = state.join("jails");
        let helper = HelperClient::new(socket);
        let driver = FirecrackerVmm::new(helper, jails, choice, marks, true, "br-fc".to_owned());
        return Some(Owner { state, runtime, driver });
    }
    let programs = programs()?;
    enter_own_mounts();
    put_programs(&programs);
    let helper = RunningHelper::start();
    let directories = &helper.directories;
    prepare(&directories.state);
    // The owner may not be able to reach the folder that it was built in.
    let program = directories.outside.join("test");
    std::fs::copy(std::env::current_exe().unwrap(), &program).unwrap();
    set_mode(&program, 0o755);
    set_mode(&directories.outside, 0o755);
    let status = Command::new(program)
        .args(["--exact", test, "--nocapture"])
        .env(PLACE, directories.state.parent().unwrap())
        .env("BANGER_TEST_SOCKET", directories.socket())
        .env("BANGER_TEST_JAILS", &directories.jails)
        .current_dir("/")
        .uid(OWNER)
        .gid(OWNER)
        .status()
        .unwrap();
    assert!(status.success(), "{status}; the helper's log:\n{}", helper.log());
    let jails = directories.jails.join("firecracker");
    let left: Vec<_> = std::fs::read_dir(jails).map_or_else(|_| Vec::new(), Iterator::collect);
    assert!(left.is_empty(), "jails are left: {left:?}");
    let mounts = std::fs::read_to_string("/proc/thread-self/mountinfo").unwrap();
    assert!(!mounts.contains(directories.jails.to_str().unwrap()), "{mounts}");
    None
}
