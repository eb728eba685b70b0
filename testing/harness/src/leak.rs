//! What an environment has left behind on the machine.

use std::fmt;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use crate::processes::{Process, processes_mentioning};

/// Everything that should be gone after the daemon has stopped.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Leaks {
    /// Processes that mention the environment or hold one of its files.
    pub processes: Vec<Process>,
    /// Mount points below it.
    pub mounts: Vec<String>,
    /// Loop devices whose file lies below it.
    pub loops: Vec<String>,
    /// Sockets, and files that belong to no finished object.
    pub files: Vec<PathBuf>,
}

impl Leaks {
    /// Looks below `base`, whose state, cache, runtime and temporary folders
    /// are `s`, `c`, `r` and `t`.
    #[must_use]
    pub fn of(base: &Path) -> Self {
        let text = base.to_string_lossy();
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let mounts =
            mounts.lines().filter(|line| line.contains(text.as_ref())).map(str::to_owned).collect();
        let loops =
            std::fs::read_dir("/sys/block").into_iter().flatten().flatten().filter_map(|device| {
                let file = std::fs::read_to_string(device.path().join("loop/backing_file")).ok()?;
                file.contains(text.as_ref())
                    .then(|| format!("{}: {}", device.path().display(), file.trim()))
            });
        let mut files = Vec::new();
        for folder in ["s", "c", "r", "t"] {
            walk(&base.join(folder), &mut |path, kind| {
                let relative = path.strip_prefix(base).unwrap_or(path);
                if is_left_over(relative, kind) {
                    files.push(relative.to_owned());
                }
            });
        }
        files.sort();
        Self { processes: processes_mentioning(base), mounts, loops: loops.collect(), files }
    }

    /// Whether nothing was left.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

impl fmt::Display for Leaks {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        for process in &self.processes {
            writeln!(out, "process {}: {}", process.pid, process.command)?;
        }
        for line in self.mounts.iter().chain(&self.loops) {
            writeln!(out, "{line}")?;
        }
        for file in &self.files {
            writeln!(out, "file {}", file.display())?;
        }
        Ok(())
    }
}

fn walk(folder: &Path, visit: &mut impl FnMut(&Path, std::fs::FileType)) {
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let Ok(kind) = entry.file_type() else { continue };
        visit(&entry.path(), kind);
        if kind.is_dir() {
            walk(&entry.path(), visit);
        }
    }
}

/// Finished images and kernels, the store, the log and locks may stay.
fn is_left_over(path: &Path, kind: std::fs::FileType) -> bool {
    let mut parts = path.components().map(|part| part.as_os_str().to_string_lossy().into_owned());
    let (folder, first) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
    let unfinished = |name: &str| {
        name.contains("staging")
            || name.ends_with(".tmp")
            || name.ends_with(".partial")
            || name.starts_with(".tmp")
    };
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    if kind.is_socket() || kind.is_fifo() || unfinished(&name) {
        return true;
    }
    match folder.as_str() {
        // What a program of ours left in $TMPDIR.
        "t" => true,
        // Below vms/ everything belongs to a VM, and all of them are deleted.
        "s" | "r" => first == "vms" && path.components().count() > 2,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn left_over_files_and_sockets_are_found_and_finished_objects_are_not() {
        let base = tempfile::tempdir().unwrap();
        let file = |path: &str| {
            let path = base.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, "x").unwrap();
        };
        for kept in [
            "s/banger.db",
            "s/images/a/rootfs.ext4",
            "s/kernels/a/bzImage",
            "c/initrd-0.cpio",
            "r/bangerd.log",
        ] {
            file(kept);
        }
        std::fs::create_dir_all(base.path().join("s/vms")).unwrap();
        assert!(Leaks::of(base.path()).is_empty(), "{}", Leaks::of(base.path()));

        for left in
            ["s/vms/1/root.qcow2", "s/images/.staging-1/x", "t/mmdebstrap.1/x", "r/vms/1/pid"]
        {
            file(left);
        }
        let _socket =
            std::os::unix::net::UnixListener::bind(base.path().join("r/bangerd.sock")).unwrap();
        let found: Vec<_> =
            Leaks::of(base.path()).files.iter().map(|path| path.display().to_string()).collect();
        for expected in
            ["r/bangerd.sock", "s/vms/1", "s/images/.staging-1", "t/mmdebstrap.1", "r/vms/1"]
        {
            assert!(found.iter().any(|path| path == expected), "{expected} in {found:?}");
        }
    }

    #[test]
    fn a_process_that_holds_a_deleted_file_is_found() {
        let base = tempfile::tempdir().unwrap();
        let path = base.path().join("held");
        let held = std::fs::File::create(&path).unwrap();
        let mut child = std::process::Command::new("sleep").arg("100").stdin(held).spawn().unwrap();
        std::fs::remove_file(&path).unwrap();
        let found = Leaks::of(base.path());
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(
            found.processes.iter().map(|process| process.pid).collect::<Vec<_>>(),
            [child.id()]
        );
        assert!(Leaks::of(base.path()).is_empty());
    }
}
