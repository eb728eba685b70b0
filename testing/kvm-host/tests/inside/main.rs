//! The tests of the KVM host tier, run one by one inside the machine by
//! `cargo xtask kvm-host test`. Elsewhere each of them skips itself.
//!
//! They panic like tests, and leave nothing behind: the runner compares.
#![forbid(unsafe_code)]

mod crash_pairs;
mod device_mapper;
mod disk;
mod dns;
mod firecracker;
mod installation;
mod installed;
mod jail_cgroup;
mod jail_device;
mod machine;
mod machines;
mod nested;
mod orphans;
mod patience;
mod privileged_disk;
mod removal;
mod resolver_routing;
mod root_disk;
mod snapshot_count;
mod snapshot_race;
mod story;
mod system;
mod tool;
mod udev;
mod walls;

use std::path::PathBuf;

/// The machine, known to be the right one.
pub(crate) struct Inside {
    /// What was sent: firecracker, jailer, vmlinux, initrd, banger, bangerd, bangerd-root, bangerd-faulty
    /// (with fault hooks), busybox.tar and kernels/.
    pub(crate) data: PathBuf,
}

impl Inside {
    /// Where the test runs; `None`, with a word, where it does not run in the KVM host.
    pub(crate) fn get() -> Option<Self> {
        let data = std::env::var_os("BANGER_KVM_HOST");
        if data.is_none() {
            banger_harness::skip("kvm-host", "runs in the machine of cargo xtask kvm-host test");
        }
        data.map(|data| Self { data: data.into() })
    }
}
