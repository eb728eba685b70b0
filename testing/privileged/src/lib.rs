//! What tests of the root helper share: a host of their own.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, reason = "a fixture that cannot be made ends the test")]

pub mod race;
pub mod running;
pub mod trace;
pub mod vmm;

use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};

use banger_gates::{Owner, Policy};
use banger_host::Host;
use nix::sched::CloneFlags;

/// The owner in tests: a user that nobody is.
pub const OWNER: u32 = 60_907;

/// The directories of a helper, below one that is removed with them.
#[derive(Debug)]
pub struct Directories {
    /// The state directory, the owner's.
    pub state: PathBuf,
    /// The runtime directory, the owner's.
    pub runtime: PathBuf,
    /// The directory of the jails, root's.
    pub jails: PathBuf,
    /// The helper's own directory, root's alone.
    pub own: PathBuf,
    /// What is nobody's business.
    pub outside: PathBuf,
    directory: tempfile::TempDir,
}

impl Directories {
    /// Makes them; only root can.
    #[must_use]
    pub fn new() -> Self {
        // Not below /tmp: every parent of a jail is root's, sticky at most.
        let directory = tempfile::Builder::new().prefix("bgrp").tempdir_in("/var/tmp").unwrap();
        let root = directory.path();
        let set_mode = |path: &PathBuf, mode| {
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
        };
        set_mode(&root.to_owned(), 0o711);
        let make = |name: &str, mode, is_owners: bool| {
            let path = root.join(name);
            std::fs::create_dir(&path).unwrap();
            set_mode(&path, mode);
            if is_owners {
                chown(&path, Some(OWNER), Some(OWNER)).unwrap();
            }
            path
        };
        Self {
            state: make("state", 0o700, true),
            runtime: make("runtime", 0o700, true),
            jails: make("jails", 0o711, false),
            own: make("own", 0o711, false),
            outside: make("apart", 0o755, false),
            directory,
        }
    }

    /// Where the helper's socket is to be.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.own.join("helper.sock")
    }

    /// Where its log goes.
    #[must_use]
    pub fn log(&self) -> PathBuf {
        self.outside.join("log")
    }

    /// Writes a file of the owner's below the state directory.
    pub fn write(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.state.join(name);
        std::fs::write(&path, bytes).unwrap();
        chown(&path, Some(OWNER), Some(OWNER)).unwrap();
        path
    }

    /// What they all lie in.
    #[must_use]
    pub fn root(&self) -> &Path {
        self.directory.path()
    }

    /// What the gates compare with.
    #[must_use]
    pub fn policy(&self) -> Policy {
        Policy {
            owner: Owner::new(OWNER, OWNER).unwrap(),
            state: self.state.clone(),
            runtime: self.runtime.clone(),
            jails: self.jails.clone(),
            vmm_directories: Policy::VMM_DIRECTORIES.map(PathBuf::from).to_vec(),
            vmm_files: Vec::new(),
            host_memory_mib: 4096,
            own_pid: std::process::id(),
        }
    }
}

impl Default for Directories {
    fn default() -> Self {
        Self::new()
    }
}

/// A host with roots of its own.
#[derive(Debug)]
pub struct Fixture {
    /// The helper's view.
    pub host: Host,
    /// Its directories.
    pub directories: Directories,
}

impl std::ops::Deref for Fixture {
    type Target = Directories;

    fn deref(&self) -> &Directories {
        &self.directories
    }
}

impl Fixture {
    /// Makes one; only root can.
    #[must_use]
    pub fn new() -> Self {
        let directories = Directories::new();
        let host = Host::open(directories.policy(), &directories.own).unwrap();
        Self { host, directories }
    }

    /// What the gates compare with.
    #[must_use]
    pub fn policy(&self) -> &Policy {
        self.host.policy()
    }
}

impl Default for Fixture {
    fn default() -> Self {
        Self::new()
    }
}

/// Gives this thread, and those it starts, a network of its own with nothing in it, and with no name
/// server of this machine's: what one is called says nothing there.
pub fn enter_own_network() {
    nix::sched::unshare(CloneFlags::CLONE_NEWNET).unwrap();
    enter_own_mounts();
    for path in ["/etc/resolv.conf", "/run/systemd/resolve/resolv.conf"] {
        if Path::new(path).exists() {
            rustix::mount::mount_bind("/dev/null", path).unwrap();
        }
    }
}

/// Gives this thread, and those it starts, mounts of its own that nobody else sees.
pub fn enter_own_mounts() {
    nix::sched::unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_FS).unwrap();
    let private =
        rustix::mount::MountPropagationFlags::PRIVATE | rustix::mount::MountPropagationFlags::REC;
    rustix::mount::mount_change("/", private).unwrap();
}

/// Hides the cgroups of version 2 in mounts of one's own: a machine's has its id for a name, and tests
/// side by side have machines of one id.
pub fn hide_cgroups() {
    let mounts = std::fs::read_to_string("/proc/thread-self/mountinfo").unwrap_or_default();
    let is_one = |line: &&str| line.contains(" - cgroup2 ");
    for point in mounts.lines().filter(is_one).filter_map(|line| line.split(' ').nth(4)) {
        let flags = rustix::mount::MountFlags::empty();
        rustix::mount::mount("none", point, "tmpfs", flags, None).unwrap();
    }
}

/// Unmounts what is mounted below a path, the latest first; what cannot be unmounted stays.
pub fn unmount_below(path: &Path) {
    let mounts = std::fs::read_to_string("/proc/thread-self/mountinfo").unwrap_or_default();
    for point in mounts.lines().rev().filter_map(|line| line.split(' ').nth(4)) {
        if Path::new(point).starts_with(path) {
            let _ = rustix::mount::unmount(point, rustix::mount::UnmountFlags::DETACH);
        }
    }
}
