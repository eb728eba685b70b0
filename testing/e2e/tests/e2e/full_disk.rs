//! A state directory on a disk that is full.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use banger_harness::{Contents, Environment, RootfsTar, is_root, skip};

/// A tmpfs over the state directory; unmounted when dropped.
pub(crate) struct SmallDisk {
    mount_point: PathBuf,
}

impl SmallDisk {
    /// Mounts one under a state directory that holds something already.
    pub(crate) fn under(state: &Path, megabytes: u32) -> Self {
        let aside = state.with_extension("aside");
        std::fs::rename(state, &aside).unwrap();
        std::fs::create_dir(state).unwrap();
        let owner = aside.metadata().unwrap();
        std::os::unix::fs::chown(state, Some(owner.uid()), Some(owner.gid())).unwrap();
        let disk = Self::over(state, megabytes);
        let copied = Command::new("/bin/cp")
            .args(["-a", "--sparse=always", "-T"])
            .arg(&aside)
            .arg(state)
            .status();
        assert!(copied.is_ok_and(|status| status.success()), "copy the state");
        std::fs::remove_dir_all(&aside).unwrap();
        disk
    }

    /// Mounts over the state directory what belongs to the daemon's user.
    pub(crate) fn over(mount_point: &Path, megabytes: u32) -> Self {
        let owner = mount_point.metadata().unwrap();
        let options = format!("size={megabytes}m,mode=700,uid={},gid={}", owner.uid(), owner.gid());
        let mounted = Command::new("/bin/mount")
            .args(["-t", "tmpfs", "-o", &options, "tmpfs"])
            .arg(mount_point)
            .status();
        assert!(mounted.is_ok_and(|status| status.success()), "mount a tmpfs");
        Self { mount_point: mount_point.to_owned() }
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("/bin/umount").arg("-l").arg(&self.mount_point).status();
    }
}

#[test]
fn an_import_that_does_not_fit_says_so_and_leaves_nothing() {
    if !is_root() {
        return skip("root", "mounts a tmpfs");
    }
    let environment = Environment::new(Contents::Empty);
    environment.banger(["vm", "list"]).ok();
    environment.stop_daemon();
    let disk = SmallDisk::over(&environment.state(), 24);
    let noise: Vec<u8> =
        (0..40_u32 << 20).map(|index| index.wrapping_mul(2_654_435_761).to_be_bytes()[0]).collect();
    let archive = RootfsTar::default().file("big", 0o644, &noise).finish();
    environment.import("big", &archive).run().code(1).is_a_clear_error().says(&["space"]);
    let left = std::fs::read_dir(environment.state().join("images")).into_iter().flatten().count();
    assert_eq!(left, 0, "nothing is left of the import");
    let small =
        RootfsTar::default().folder("bin", 0o755).file("small", 0o644, &noise[..4096]).finish();
    environment.import("small", &small).ok();
    environment.stop_daemon();
    drop(disk);
    environment.finish();
}
