//! What a host is like: two of them are compared around a refusal.

use std::collections::BTreeMap;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;
use std::process::Command;

use banger_privileged_tests::Directories;

/// Everything that the helper could change.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Snapshot {
    links: String,
    addresses: String,
    firewall: String,
    block_devices: BTreeMap<String, String>,
    mounts: String,
    children: Vec<String>,
    files: BTreeMap<String, String>,
}

fn tool(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().unwrap();
    String::from_utf8_lossy(&output.stdout).into_owned()
}

impl Snapshot {
    /// Takes one: of this thread's namespaces, the helper's directories and its children.
    pub(crate) fn take(directories: &Directories, helper: u32) -> Self {
        let mut files = BTreeMap::new();
        let all =
            [&directories.state, &directories.runtime, &directories.jails, &directories.outside];
        for root in all {
            walk(root, &mut files);
        }
        // It logs what it refuses.
        files.remove(directories.log().to_str().unwrap());
        Self {
            links: tool("/usr/sbin/ip", &["-o", "link"]),
            addresses: tool("/usr/sbin/ip", &["-o", "address"]),
            firewall: tool("/usr/sbin/nft", &["list", "ruleset"]),
            block_devices: block_devices(),
            mounts: std::fs::read_to_string("/proc/thread-self/mountinfo").unwrap(),
            children: children(helper),
            files,
        }
    }
}

/// Loop devices with their files, and device-mapper devices with their names.
fn block_devices() -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    for entry in std::fs::read_dir("/sys/block").unwrap().flatten() {
        let of = |name: &str| std::fs::read_to_string(entry.path().join(name));
        if let Ok(what) = of("loop/backing_file").or_else(|_| of("dm/name")) {
            found.insert(entry.file_name().to_string_lossy().into_owned(), what);
        }
    }
    found
}

fn children(pid: u32) -> Vec<String> {
    let path = format!("/proc/{pid}/task/{pid}/children");
    let text = std::fs::read_to_string(path).unwrap_or_default();
    text.split_whitespace().map(str::to_owned).collect()
}

fn walk(path: &Path, files: &mut BTreeMap<String, String>) {
    let metadata = path.symlink_metadata().unwrap();
    let what = format!(
        "{:o} {}:{} links {} size {} changed {}.{}",
        metadata.mode(),
        metadata.uid(),
        metadata.gid(),
        metadata.nlink(),
        metadata.len(),
        metadata.ctime(),
        metadata.ctime_nsec()
    );
    files.insert(path.to_str().unwrap().to_owned(), what);
    if metadata.is_dir() && !metadata.file_type().is_fifo() {
        for entry in std::fs::read_dir(path).unwrap().flatten() {
            walk(&entry.path(), files);
        }
    }
}
