//! Disks: loop devices and ext4 images on the real kernel with the real e2fsprogs. Where there is
//! no device-mapper, snapshots are made as far as their loop devices; the rest is tested in the KVM
//! host (testing/kvm-host/tests/inside/privileged_disk.rs).
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, reason = "a test ends by it")]

mod ext4;
mod libss;
mod loops;
mod race;
mod refusals;

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::{FileExt, MetadataExt, chown};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use banger_gates::Refusal;
use banger_gates::request;
use banger_helper_api::{
    Base64, CreateDmSnapshotParams, Ext4File, ReadExt4FileParams, SnapshotHandles,
    WriteExt4FilesParams,
};
use banger_host::HostError;
use banger_privileged_tests::{Fixture, OWNER};

/// A host with an image, or none with a word where it cannot be had.
fn fixture() -> Option<Fixture> {
    if !banger_harness::is_root() {
        banger_harness::skip("root", "a root helper's disks are root's");
        return None;
    }
    Some(Fixture::new())
}

/// Runs a tool; its output.
fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?}: {text}{error}");
    text
}

/// A sparse file of the owner's.
fn file(path: &Path, bytes: u64) -> File {
    let file = File::options().read(true).write(true).create_new(true).open(path).unwrap();
    file.set_len(bytes).unwrap();
    chown(path, Some(OWNER), Some(OWNER)).unwrap();
    file
}

/// An ext4 image of the owner's in the state directory, with these files in it.
fn image(fixture: &Fixture, name: &str, mib: u64, files: &[(&str, &[u8])]) -> PathBuf {
    let path = fixture.state.join(name);
    file(&path, mib << 20);
    let tree = tempfile::tempdir().unwrap();
    for (name, content) in files {
        let path = tree.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, content).unwrap();
    }
    let (tree, text) = (tree.path().to_str().unwrap(), path.to_str().unwrap());
    run("mke2fs", &["-q", "-F", "-t", "ext4", "-d", tree, text]);
    path
}

/// Runs one command of debugfs as the test itself; its output.
fn debugfs(image: &Path, command: &str) -> String {
    run("debugfs", &["-w", "-R", command, image.to_str().unwrap()])
}

/// Fails unless e2fsck finds nothing to repair.
fn assert_clean(image: &Path) {
    run("e2fsck", &["-fn", image.to_str().unwrap()]);
}

fn read(fixture: &Fixture, image: &Path, guest_path: &str) -> Result<Vec<u8>, HostError> {
    let image_path = image.to_str().unwrap().to_owned();
    let params = ReadExt4FileParams { image_path, guest_path: guest_path.to_owned() };
    let grant = request::read_ext4_file(&params, fixture.policy())?;
    fixture.host.read_ext4_file(&grant)
}

fn write(fixture: &Fixture, image: &Path, files: &[(&str, &[u8], u32)]) -> Result<(), HostError> {
    let files = files.iter().map(|(path, data, mode)| Ext4File {
        guest_path: (*path).to_owned(),
        data: Base64(data.to_vec()),
        mode: *mode,
    });
    let image_path = image.to_str().unwrap().to_owned();
    let params = WriteExt4FilesParams { image_path, files: files.collect() };
    fixture.host.write_ext4_files(&request::write_ext4_files(params, fixture.policy())?)
}

fn create(fixture: &Fixture, image: &Path, cow: &Path) -> Result<SnapshotHandles, HostError> {
    let params = CreateDmSnapshotParams {
        rootfs_path: image.to_str().unwrap().to_owned(),
        cow_path: cow.to_str().unwrap().to_owned(),
        dm_name: "fc-rootfs-test".to_owned(),
    };
    fixture.host.create_dm_snapshot(&request::create_dm_snapshot(&params, fixture.policy())?)
}

/// Why something was refused; fails if it was not.
fn refusal<T: std::fmt::Debug>(result: Result<T, HostError>) -> Refusal {
    match result {
        Err(HostError::Refused(refusal)) => refusal,
        other => panic!("not refused: {other:?}"),
    }
}

/// Why something failed; fails if it did not, or was refused.
fn failure<T: std::fmt::Debug>(result: Result<T, HostError>) -> String {
    match result {
        Err(HostError::Failed { operation, object, source }) => {
            format!("{operation} {object}: {source}")
        }
        other => panic!("did not fail: {other:?}"),
    }
}

/// All that a refusal must not change: what is below the fixture, to the byte and the times, and
/// the loop devices on it.
fn picture(fixture: &Fixture) -> Vec<String> {
    let root = fixture.state.parent().unwrap();
    let mut lines = Vec::new();
    paint(root, &mut lines);
    lines.extend(loops_below(root));
    lines
}

fn paint(path: &Path, lines: &mut Vec<String>) {
    let metadata = path.symlink_metadata().unwrap();
    let (mode, uid, links) = (metadata.mode(), metadata.uid(), metadata.nlink());
    let times = (metadata.mtime_nsec(), metadata.ctime_nsec());
    let mut sum = 0_u64;
    if metadata.is_file() {
        let mut bytes = Vec::new();
        File::open(path).unwrap().read_to_end(&mut bytes).unwrap();
        for byte in bytes {
            sum = sum.wrapping_mul(0x0100_0000_01b3) ^ u64::from(byte);
        }
    }
    lines.push(format!("{path:?} {mode:o} {uid} {links} {times:?} {sum:x}"));
    if metadata.is_dir() {
        let mut inside: Vec<_> = path.read_dir().unwrap().map(|it| it.unwrap().path()).collect();
        inside.sort();
        inside.iter().for_each(|path| paint(path, lines));
    }
}

/// Fails unless all is as it was. Whoever lists loop devices holds each of them for a moment.
fn assert_same(fixture: &Fixture, before: &[String]) {
    let end = Instant::now() + Duration::from_secs(10);
    while picture(fixture) != before && Instant::now() < end {
        std::thread::sleep(Duration::from_millis(50));
    }
    assert_eq!(picture(fixture), before);
}

/// Fails unless there is soon no loop device on what is below a directory.
fn assert_no_loops(root: &Path) {
    let end = Instant::now() + Duration::from_secs(10);
    while !loops_below(root).is_empty() && Instant::now() < end {
        std::thread::sleep(Duration::from_millis(50));
    }
    assert_eq!(loops_below(root), Vec::<String>::new());
}

/// The loop devices whose files lie below a directory.
fn loops_below(root: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for device in std::fs::read_dir("/sys/block").unwrap().flatten() {
        let Ok(file) = std::fs::read_to_string(device.path().join("loop/backing_file")) else {
            continue;
        };
        if Path::new(file.trim()).starts_with(root) {
            found.push(format!("{:?} on {file}", device.file_name()));
        }
    }
    found
}

/// A small, repeatable stream of numbers (xorshift).
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % end
    }

    fn scatter(&mut self, file: &File, count: u64, end: u64) {
        for _ in 0..count {
            let byte = u8::try_from(self.below(256)).unwrap();
            file.write_all_at(&[byte], self.below(end)).unwrap();
        }
    }
}
