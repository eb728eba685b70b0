//! A cgroup for each exec, beside the ones of the image's init, which leaves it alone.
//!
//! One is always made ahead, because making one costs as much as a fork. Without cgroup2 an exec's
//! processes are known by their process group only.

use std::cell::{Cell, RefCell};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};

/// Where the agent's cgroups are.
const BASE: &str = "/sys/fs/cgroup/banger";

/// The agent's part of the cgroup tree.
#[derive(Debug)]
pub(super) struct Cgroups {
    base: Option<PathBuf>,
    next: Cell<u64>,
    spare: RefCell<Option<Cgroup>>,
    /// Left by execs whose background processes went on; removed when empty.
    leftover: RefCell<Vec<PathBuf>>,
}

/// A cgroup, removed with everything in it only by [`Cgroup::kill`] or when it is empty.
#[derive(Debug)]
pub(super) struct Cgroup {
    path: PathBuf,
    directory: File,
}

impl Cgroups {
    /// Opens the tree, emptied of groups that an earlier agent left behind without processes.
    pub fn open() -> Self {
        let base = Path::new(BASE);
        let usable = Path::new("/sys/fs/cgroup/cgroup.procs").exists()
            && (base.exists() || std::fs::create_dir(base).is_ok());
        let mut next = 0;
        if usable {
            // Names of groups that still hold processes are not used again.
            for entry in std::fs::read_dir(base).into_iter().flatten().flatten() {
                if std::fs::remove_dir(entry.path()).is_err()
                    && let Some(number) = entry.file_name().to_str().and_then(|n| n.parse().ok())
                {
                    next = next.max(number);
                }
            }
        }
        Self {
            base: usable.then(|| base.to_path_buf()),
            next: Cell::new(next + 1),
            spare: RefCell::new(None),
            leftover: RefCell::new(Vec::new()),
        }
    }

    /// A tree in which there are none to be had.
    pub fn none() -> Self {
        Self {
            base: None,
            next: Cell::new(1),
            spare: RefCell::new(None),
            leftover: RefCell::new(Vec::new()),
        }
    }

    fn make(&self) -> io::Result<Option<Cgroup>> {
        let Some(base) = &self.base else { return Ok(None) };
        let number = self.next.get();
        self.next.set(number + 1);
        let path = base.join(number.to_string());
        std::fs::create_dir(&path)?;
        Ok(Some(Cgroup { directory: File::open(&path)?, path }))
    }

    /// Returns a fresh cgroup, `None` where there are none to be had.
    pub fn take(&self) -> Option<Cgroup> {
        self.spare.take().or_else(|| self.make().ok().flatten())
    }

    /// Makes one ahead and removes what has become empty. Called when an exec is over, off the
    /// path of the next.
    pub fn prepare(&self) {
        if self.spare.borrow().is_none() {
            self.spare.replace(self.make().ok().flatten());
        }
        self.leftover
            .borrow_mut()
            .retain(|path| std::fs::remove_dir(path).is_err() && path.exists());
    }

    /// Gives back the cgroup of an exec that is over.
    pub fn give_back(&self, cgroup: Cgroup) {
        if std::fs::read(cgroup.path.join("cgroup.procs")).is_ok_and(|list| list.is_empty())
            && self.spare.borrow().is_none()
        {
            self.spare.replace(Some(cgroup));
        } else if std::fs::remove_dir(&cgroup.path).is_err() {
            self.leftover.borrow_mut().push(cgroup.path);
        }
    }

    /// Kills every process that any exec started and that did not leave its cgroup.
    pub fn kill_all(&self) {
        if let Some(base) = &self.base {
            let _ = std::fs::write(base.join("cgroup.kill"), "1");
        }
    }

    /// Lists the processes of all execs.
    pub fn processes(&self) -> Vec<i32> {
        let Some(base) = &self.base else { return Vec::new() };
        std::fs::read_dir(base)
            .into_iter()
            .flatten()
            .flatten()
            .flat_map(|entry| processes_of(&entry.path()))
            .collect()
    }
}

fn processes_of(path: &Path) -> Vec<i32> {
    let list = std::fs::read_to_string(path.join("cgroup.procs")).unwrap_or_default();
    list.lines().filter_map(|line| line.parse().ok()).collect()
}

impl Cgroup {
    /// Lists its processes.
    pub fn processes(&self) -> Vec<i32> {
        processes_of(&self.path)
    }

    /// Kills everything in it.
    pub fn kill(&self) {
        let _ = std::fs::write(self.path.join("cgroup.kill"), "1");
    }
}

impl AsFd for Cgroup {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.directory.as_fd()
    }
}
