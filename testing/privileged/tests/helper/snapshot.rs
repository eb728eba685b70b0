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
    processes: BTreeMap<u32, String>,
    files: BTreeMap<String, String>,
}

fn tool(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().unwrap();
    String::from_utf8_lossy(&output.stdout).into_owned()
}

impl Snapshot {
    /// Takes one: of this thread's namespaces, the helper's directories and this test's processes.
    pub(crate) fn take(directories: &Directories) -> Self {
        let mut files = BTreeMap::new();
        let all =
            [&directories.state, &directories.runtime, &directories.jails, &directories.outside];
        for root in all {
            walk(root, &mut files);
        }
        // What it remembers: of its own directory, the socket is everybody's to see.
        for path in [directories.own.join("records"), directories.root().join("last-minor")] {
            if path.exists() {
                walk(&path, &mut files);
            }
        }
        // It logs what it refuses.
        let log = directories.log().to_str().unwrap().to_owned();
        files.retain(|path, _| !path.starts_with(&log));
        files.remove(directories.outside.to_str().unwrap());
        Self {
            links: tool("/usr/sbin/ip", &["-o", "link"]),
            addresses: tool("/usr/sbin/ip", &["-o", "address"]),
            firewall: tool("/usr/sbin/nft", &["list", "ruleset"]),
            block_devices: block_devices(directories.root()),
            mounts: mounts(directories.root()),
            processes: processes(),
            files,
        }
    }
}

impl Snapshot {
    /// Takes one when what ends or starts by itself has done so.
    pub(crate) fn take_settled(directories: &Directories) -> Self {
        let mut last = Self::take(directories);
        banger_harness::wait_for("a host at rest", banger_harness::GUEST_DEADLINE, || {
            let now = Self::take(directories);
            let is_same = now == last;
            last = now;
            is_same.then_some(())
        });
        last
    }
}

/// Loop devices with their files, and device-mapper devices with their names; but for those of other
/// tests, which may run at the same time.
fn block_devices(root: &Path) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    for entry in std::fs::read_dir("/sys/block").unwrap().flatten() {
        let of = |name: &str| std::fs::read_to_string(entry.path().join(name));
        if let Ok(what) = of("loop/backing_file").or_else(|_| of("dm/name")) {
            let is_anothers = what.starts_with("/var/tmp/bgrp");
            if is_anothers && !Path::new(what.trim_end()).starts_with(root) {
                continue;
            }
            found.insert(entry.file_name().to_string_lossy().into_owned(), what);
        }
    }
    found
}

/// All mounts but those of other tests, which vanish from here too when they end.
fn mounts(root: &Path) -> String {
    let text = std::fs::read_to_string("/proc/thread-self/mountinfo").unwrap();
    let is_anothers = |line: &&str| {
        let point = Path::new(line.split(' ').nth(4).unwrap_or_default());
        point.to_str().unwrap_or_default().starts_with("/var/tmp/bgr") && !point.starts_with(root)
    };
    let lines: Vec<&str> = text.lines().filter(|line| !is_anothers(line)).collect();
    lines.join("\n")
}

/// This test's own processes, with what is known of each: the helper, all that it has started, and
/// the strangers that it is to leave alone. Others' come and go.
fn processes() -> BTreeMap<u32, String> {
    let entries = std::fs::read_dir("/proc").unwrap().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let known: BTreeMap<u32, (u32, String)> =
        pids.filter_map(|pid| Some((pid, state(pid)?))).collect();
    let parent = |pid: u32| known.get(&pid).map(|(parent, _)| *parent);
    let is_own = |pid: u32| {
        std::iter::successors(parent(pid), |pid| parent(*pid)).any(|it| it == std::process::id())
    };
    let own = known.iter().filter(|(pid, _)| is_own(**pid));
    own.map(|(pid, (_, state))| (*pid, state.clone())).collect()
}

/// The parent of a process, and what tells it from others (proc_pid_stat(5)): its name, whose it is,
/// when it was started, and whether it is stopped or has ended; to run or to sleep is one.
fn state(pid: u32) -> Option<(u32, String)> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let uid = Path::new(&format!("/proc/{pid}")).metadata().ok()?.uid();
    let (name, rest) = stat.rsplit_once(')')?;
    let fields: Vec<&str> = rest.split_whitespace().collect();
    let state = if ["Z", "X", "T", "t"].contains(fields.first()?) { fields[0] } else { "alive" };
    Some((fields.get(1)?.parse().ok()?, format!("{name}) uid {uid} {state} {}", fields.get(19)?)))
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
