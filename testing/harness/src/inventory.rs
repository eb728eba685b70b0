//! All that machines can leave on a host, at one moment.
//!
//! The one who looks has mounts and a network of its own, or the host to itself: then whatever is
//! new there is its own doing. What all of a host share (loop and device-mapper devices, processes)
//! counts where it has to do with the directory `base`, or with this network.

use std::collections::BTreeSet;
use std::fmt;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::processes::{Process, processes_mentioning};

/// Below it are the helper's jails.
const JAILS: &str = "/var/lib/banger-root";
/// Below it are its records.
const RECORDS: &str = "/run/banger-root";
/// The cgroups of machines.
const CGROUPS: &str = "/sys/fs/cgroup/system.slice/banger-vms.service";
/// What runs as long as anybody uses banger.
const SERVICES: [&str; 2] = ["bangerd", "bangerd-root"];

/// What there is, a line for each thing: kind, then name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Inventory(BTreeSet<String>);

impl Inventory {
    /// Looks; the directories of the environment lie below `base`.
    #[must_use]
    pub fn take(base: &Path) -> Self {
        Self::look(base, &["s/vms", "s/jails", "r/vms"].map(|name| base.join(name)))
    }

    /// Looks at the installed banger.
    #[must_use]
    pub fn of_installation() -> Self {
        let folders = ["/var/lib/banger/vms", "/var/lib/banger/jails", "/run/banger/vms"];
        Self::look(Path::new("/var/lib/banger"), &folders.map(PathBuf::from))
    }

    fn look(base: &Path, folders: &[PathBuf]) -> Self {
        let mut lines = BTreeSet::new();
        let mut add = |kind: &str, name: &dyn fmt::Display| lines.insert(format!("{kind} {name}"));
        // Not /sys/class/net: that shows the network in which /sys was mounted.
        for line in read("/proc/thread-self/net/dev").lines().skip(2) {
            add("interface", &line.split(':').next().unwrap_or_default().trim());
        }
        for name in names("/run/netns") {
            add("network namespace", &name);
        }
        let base_text = base.to_string_lossy();
        for block in names("/sys/block") {
            let block = Path::new("/sys/block").join(block);
            if let Ok(name) = fs::read_to_string(block.join("dm/name")) {
                add("dm device", &name.trim());
            }
            let file = fs::read_to_string(block.join("loop/backing_file")).unwrap_or_default();
            if file.contains(base_text.as_ref()) {
                add("loop device of", &file.trim());
            }
        }
        for line in read("/proc/thread-self/mountinfo").lines() {
            add("mount at", &line.split(' ').nth(4).unwrap_or_default());
        }
        for folder in names(JAILS) {
            for name in names(Path::new(JAILS).join(&folder).join("firecracker")) {
                add("jail", &name);
            }
        }
        for folder in names(RECORDS) {
            // The helper's own, of the bridge, and those of machines: of the installed one, and of
            // each of direct mode.
            let folder = Path::new(RECORDS).join(folder);
            let own = folder.ends_with("records").then(|| names(&folder)).into_iter().flatten();
            for name in own.chain(names(folder.join("records"))) {
                add("record", &name);
            }
        }
        for name in names(CGROUPS) {
            if Path::new(CGROUPS).join(&name).is_dir() {
                add("cgroup", &name);
            }
        }
        for folder in folders {
            for entry in names(folder) {
                add("file", &folder.join(entry).display());
            }
        }
        for line in rules().lines() {
            add("firewall", &line.trim());
        }
        for process in processes_mentioning(base) {
            let program = process.program();
            if !SERVICES.contains(&program) && program != "banger" {
                add("process", &format!("{} {}", process.pid, process.command));
            }
            for file in deleted(process.pid, base) {
                add("deleted and open", &format!("{program} {file}"));
            }
        }
        for process in firecrackers() {
            add("process", &format!("{} {}", process.pid, process.command));
        }
        Self(lines)
    }

    /// Whether any of it is named after this.
    #[must_use]
    pub fn mentions(&self, name: &str) -> bool {
        self.0.iter().any(|line| line.contains(name))
    }

    /// What is here that was not there before.
    #[must_use]
    pub fn beyond(&self, before: &Self) -> Vec<String> {
        self.0.difference(&before.0).cloned().collect()
    }
}

/// The Firecrackers, and their jailers, of this thread's network.
#[must_use]
pub fn firecrackers() -> Vec<Process> {
    let network = |path: String| fs::metadata(path).map(|found| found.ino()).ok();
    let ours = network("/proc/thread-self/ns/net".to_owned());
    let pids = names("/proc").into_iter().filter_map(|name| name.parse::<u32>().ok());
    let found = pids.filter(|pid| network(format!("/proc/{pid}/ns/net")) == ours);
    found
        .map(|pid| Process {
            pid,
            command: read(&format!("/proc/{pid}/cmdline")).replace('\0', " "),
        })
        .filter(|process| ["firecracker", "jailer"].contains(&process.program()))
        .filter(Process::is_alive)
        .collect()
}

fn read(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

fn names(folder: impl AsRef<Path>) -> Vec<String> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().into_string().ok()).collect()
}

/// What the firewall has, without counters.
fn rules() -> String {
    let Some(program) = crate::find_program("nft") else { return String::new() };
    let listed = Command::new(program).args(["--stateless", "list", "ruleset"]).output();
    listed.map_or_else(|_| String::new(), |it| String::from_utf8_lossy(&it.stdout).into_owned())
}

/// Files below a directory that a process has open and that are deleted.
fn deleted(pid: u32, base: &Path) -> Vec<String> {
    let entries = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    let files = entries.filter_map(|entry| fs::read_link(entry.path()).ok());
    files
        .filter(|file| file.starts_with(base))
        .map(|file| file.to_string_lossy().into_owned())
        .filter(|file| file.ends_with(" (deleted)"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_and_processes_of_the_directory_are_seen_and_others_are_not() {
        let base = tempfile::tempdir().unwrap();
        fs::create_dir_all(base.path().join("s/vms")).unwrap();
        let before = Inventory::take(base.path());
        fs::create_dir(base.path().join("s/vms/0123")).unwrap();
        fs::create_dir_all(base.path().join("s/images/0123")).unwrap();
        let held = base.path().join("held");
        let file = fs::File::create(&held).unwrap();
        let mut child = Command::new("sleep").arg("100").stdin(file).spawn().unwrap();
        fs::remove_file(&held).unwrap();
        let after = Inventory::take(base.path());
        child.kill().unwrap();
        child.wait().unwrap();
        let new: Vec<String> = after
            .beyond(&before)
            .into_iter()
            .filter(|line| line.contains("0123") || line.contains("sleep"))
            .collect();
        let pid = child.id();
        assert_eq!(
            new,
            [
                format!("deleted and open sleep {} (deleted)", held.display()),
                format!("file {}/s/vms/0123", base.path().display()),
                format!("process {pid} sleep 100"),
            ]
        );
    }
}
