//! Watches a working tree for changes (inotify(7)).
//!
//! Every directory that has files to carry has a watch of its own, and every other one that is not
//! ignored where untracked files are carried, too; so have the parts of the repository's own directory
//! that say which files there are. A directory is watched before it is looked into, so that nothing
//! that is made in it meanwhile is missed. Directories are opened beneath the working tree without
//! following a link.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::ffi::OsStr;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::inotify::{self, CreateFlags, ReadFlags, WatchFlags};
use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use crate::error::WorkspaceError;
use crate::git;
use crate::repository::Workspace;

/// How long nothing must change before what changed is told, and how long it takes at most.
const QUIET: Duration = Duration::from_millis(40);
const PATIENCE: Duration = Duration::from_millis(500);
/// Most names that are told one by one.
const NAMES_MOST: usize = 2_000;

const TREE_EVENTS: WatchFlags = WatchFlags::MODIFY
    .union(WatchFlags::ATTRIB)
    .union(WatchFlags::CLOSE_WRITE)
    .union(WatchFlags::CREATE)
    .union(WatchFlags::DELETE)
    .union(WatchFlags::MOVED_FROM)
    .union(WatchFlags::MOVED_TO)
    .union(WatchFlags::EXCL_UNLINK)
    .union(WatchFlags::ONLYDIR);
const GIT_EVENTS: WatchFlags = WatchFlags::CLOSE_WRITE
    .union(WatchFlags::CREATE)
    .union(WatchFlags::DELETE)
    .union(WatchFlags::MOVED_FROM)
    .union(WatchFlags::MOVED_TO)
    .union(WatchFlags::ONLYDIR);
/// Names of a repository's directory that say what is to be carried.
const GIT_NAMES: [&[u8]; 5] = [b"index", b"HEAD", b"packed-refs", b"shallow", b"exclude"];

/// What was seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Seen {
    /// Names that changed, relative to the top, also those of directories.
    Names(BTreeSet<PathBuf>),
    /// Anything may have: the repository, or more than was counted.
    Everything,
    /// It is to end.
    Stopped,
}

/// Ends a [`Watch`] from another thread; so does its drop.
#[derive(Debug)]
pub struct Stop {
    _end: OwnedFd,
}

/// What a watch is for.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Place {
    /// A directory of the working tree, relative to the top.
    Tree(PathBuf),
    /// A directory of refs: every name counts.
    Refs(PathBuf),
    /// Another directory of the repository's own.
    Git,
    /// A directory that the top would lie in: there is none, or no repository in it.
    Above(PathBuf),
}

/// Watches over a working tree and its repository.
#[derive(Debug)]
pub struct Watch {
    inotify: OwnedFd,
    stop: OwnedFd,
    places: HashMap<i32, Place>,
    /// Directories of the working tree that are watched.
    watched: HashMap<PathBuf, i32>,
    /// Directories with files to carry.
    carried: BTreeSet<PathBuf>,
    /// Where the repository and its submodules are, relative to the top; each has rules of its own for
    /// what is ignored.
    modules: BTreeSet<PathBuf>,
    /// Submodules that are not checked out: nothing in them is anybody's to carry.
    absent: BTreeSet<PathBuf>,
    top: PathBuf,
    /// The top's device and inode when it was watched: another directory may have its name by now.
    identity: Option<(u64, u64)>,
    include_untracked: bool,
    seen: BTreeSet<PathBuf>,
    everything: bool,
}

impl Watch {
    /// Begins without a watch.
    pub fn new(include_untracked: bool) -> Result<(Self, Stop), WorkspaceError> {
        let failed =
            |error: Errno| WorkspaceError::Watch { path: "/".into(), source: error.into() };
        let inotify =
            inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK).map_err(failed)?;
        let flags = rustix::pipe::PipeFlags::CLOEXEC;
        let (stop, end) = rustix::pipe::pipe_with(flags).map_err(failed)?;
        let watch = Self {
            inotify,
            stop,
            places: HashMap::new(),
            watched: HashMap::new(),
            carried: BTreeSet::new(),
            modules: BTreeSet::new(),
            absent: BTreeSet::new(),
            top: PathBuf::new(),
            identity: None,
            include_untracked,
            seen: BTreeSet::new(),
            everything: false,
        };
        Ok((watch, Stop { _end: end }))
    }

    /// Watches all that a repository has, and nothing else any more; returns whether some of it was not
    /// watched before, so that it may have changed since `workspace` was opened.
    pub fn cover(&mut self, workspace: &Workspace) -> Result<bool, WorkspaceError> {
        self.drain();
        let before = std::mem::take(&mut self.places);
        self.watched.clear();
        let added = self.add_all(workspace);
        self.end_others(&before);
        added?;
        Ok(self.places.keys().any(|watch| !before.contains_key(watch)))
    }

    /// Ends those of some watches that are for nothing now.
    fn end_others(&self, before: &HashMap<i32, Place>) {
        for watch in before.keys().filter(|watch| !self.places.contains_key(watch)) {
            // The kernel has ended it where its directory is gone.
            let _ = inotify::remove_watch(&self.inotify, *watch);
        }
    }

    /// Adds what a repository has; a directory that is watched already keeps its watch (inotify(7)).
    fn add_all(&mut self, workspace: &Workspace) -> Result<(), WorkspaceError> {
        self.top.clone_from(&workspace.top);
        self.identity = identity(&self.top);
        self.carried = workspace
            .names()
            .iter()
            .flat_map(|name| name.ancestors().skip(1).map(Path::to_owned).collect::<Vec<_>>())
            .collect();
        self.carried.insert(PathBuf::new());
        self.modules.clear();
        self.absent.clear();
        for (place, module) in workspace.modules() {
            self.absent.extend(module.absent_submodules.iter().map(|absent| place.join(absent)));
            self.modules.insert(place);
            self.add_git(&module.git_dir, Place::Git)?;
            self.add_git(&module.common_dir, Place::Git)?;
            self.add_git(&module.common_dir.join("info"), Place::Git)?;
            self.add_refs(module.common_dir.join("refs"))?;
        }
        self.add_below(Path::new(""))
    }

    /// Watches for a repository to come where the one was that is watched, and for nothing else.
    pub(crate) fn await_top(&mut self) -> Result<(), WorkspaceError> {
        let before = std::mem::take(&mut self.places);
        self.watched.clear();
        let mut above = self.top.ancestors().skip(1);
        if let Some(above) = above.find(|path| path.is_dir()) {
            let above = above.to_owned();
            self.add_git(&above, Place::Above(above.clone()))?;
        }
        // Where they are not there, what is above them tells when they come.
        let _ = self.add(Path::new(""));
        let _ = self.add_git(&self.top.join(".git"), Place::Git);
        self.end_others(&before);
        Ok(())
    }

    /// Returns where the working tree is that is watched, or was last; empty where none was.
    pub(crate) fn top(&self) -> &Path {
        &self.top
    }

    /// Returns whether something was watched once.
    pub(crate) fn has_top(&self) -> bool {
        !self.top.as_os_str().is_empty()
    }

    /// Returns whether a repository is waited for.
    pub(crate) fn is_awaiting(&self) -> bool {
        self.places.values().any(|place| matches!(place, Place::Above(_)))
    }

    /// Returns whether another directory than the one that is watched has the top's name, or none.
    pub(crate) fn is_replaced(&self) -> bool {
        identity(&self.top) != self.identity
    }

    /// Waits until something has changed, and until it does not change any more at that moment.
    pub fn wait(&mut self) -> Result<Seen, WorkspaceError> {
        let mut first = None;
        loop {
            self.drain();
            let is_some = self.everything || !self.seen.is_empty();
            let now = Instant::now();
            let begun = *first.get_or_insert(now);
            if !is_some {
                first = None;
            }
            let left = PATIENCE.saturating_sub(now - begun).min(QUIET);
            if is_some && left.is_zero() {
                return Ok(self.take());
            }
            let timeout = Timespec::try_from(left).ok().filter(|_| is_some);
            let mut polled =
                [PollFd::new(&self.inotify, PollFlags::IN), PollFd::new(&self.stop, PollFlags::IN)];
            match poll(&mut polled, timeout.as_ref()) {
                Ok(0) => return Ok(self.take()),
                Ok(_) if !polled[1].revents().is_empty() => return Ok(Seen::Stopped),
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => return Err(self.failed(Path::new(""))(error)),
            }
        }
    }

    fn take(&mut self) -> Seen {
        let seen = std::mem::take(&mut self.seen);
        match std::mem::take(&mut self.everything) {
            true => Seen::Everything,
            false => Seen::Names(seen),
        }
    }

    /// Takes in all events that are there.
    fn drain(&mut self) {
        let Ok(inotify) = self.inotify.try_clone() else { return };
        let mut buffer = [MaybeUninit::uninit(); 1 << 16];
        let mut reader = inotify::Reader::new(inotify.as_fd(), &mut buffer);
        // It fails where there are no more.
        while let Ok(event) = reader.next() {
            let name = event.file_name().map(|name| OsStr::from_bytes(name.to_bytes()).to_owned());
            self.event(event.wd(), event.events(), name.as_deref());
        }
    }

    fn event(&mut self, watch: i32, events: ReadFlags, name: Option<&OsStr>) {
        if events.contains(ReadFlags::QUEUE_OVERFLOW) {
            self.everything = true;
            return;
        }
        if events.contains(ReadFlags::IGNORED) {
            match self.places.remove(&watch) {
                Some(Place::Tree(path)) if self.watched.get(&path) == Some(&watch) => {
                    self.watched.remove(&path);
                    self.everything |= path.as_os_str().is_empty();
                }
                Some(Place::Above(_)) => self.everything = true,
                _ => {}
            }
            return;
        }
        if events.contains(ReadFlags::MOVE_SELF) {
            self.everything |= self.places.contains_key(&watch);
            return;
        }
        let (Some(place), Some(name)) = (self.places.get(&watch).cloned(), name) else { return };
        let comes = events.intersects(ReadFlags::CREATE | ReadFlags::MOVED_TO);
        let is_directory = events.contains(ReadFlags::ISDIR);
        match place {
            Place::Git => self.everything |= GIT_NAMES.contains(&name.as_bytes()),
            Place::Above(path) => self.everything |= self.top.starts_with(path.join(name)),
            Place::Refs(path) => {
                let is_lock = Path::new(name).extension().is_some_and(|end| end == "lock");
                self.everything |= !is_lock;
                if is_directory && comes {
                    // Without a watch a whole look comes with the next change of another kind.
                    let _ = self.add_refs(path.join(name));
                }
            }
            Place::Tree(path) => {
                let path = path.join(name);
                let goes = events.intersects(ReadFlags::DELETE | ReadFlags::MOVED_FROM);
                if is_directory && !comes && !goes {
                    return;
                }
                if name == ".git" {
                    self.everything = true;
                    return;
                }
                if is_directory {
                    self.forget(&path);
                    // One that cannot be watched is told by the whole look that comes then.
                    self.everything |= comes && self.add_below(&path).is_err();
                }
                self.seen.insert(path);
                if self.seen.len() > NAMES_MOST {
                    self.everything = true;
                    self.seen.clear();
                }
            }
        }
    }

    /// Ends the watches of a directory that is not there any more and of those below it: a directory that
    /// was renamed keeps them, and would be told under its old name.
    fn forget(&mut self, directory: &Path) {
        let below: Vec<PathBuf> =
            self.watched.keys().filter(|path| path.starts_with(directory)).cloned().collect();
        for path in below {
            if let Some(watch) = self.watched.remove(&path) {
                self.places.remove(&watch);
                let _ = inotify::remove_watch(&self.inotify, watch);
            }
        }
    }

    /// Watches a directory of the working tree, and those below it.
    fn add_below(&mut self, directory: &Path) -> Result<(), WorkspaceError> {
        let carried = self.carried.range(directory.to_owned()..);
        let carried: Vec<PathBuf> =
            carried.take_while(|path| path.starts_with(directory)).cloned().collect();
        for path in &carried {
            self.add(path)?;
        }
        let is_in_absent = directory.ancestors().skip(1).any(|place| self.absent.contains(place));
        if !self.include_untracked || is_in_absent {
            return Ok(());
        }
        let mut level = vec![directory.to_owned()];
        while !level.is_empty() {
            let ignored = self.ignored(&level)?;
            let mut next = Vec::new();
            for path in level.into_iter().filter(|path| !ignored.contains(path)) {
                let full = self.top.join(&path);
                let is_foreign = !self.has_ours(&path) && full.join(".git").exists();
                if is_foreign || !self.add(&path)? || self.absent.contains(&path) {
                    continue;
                }
                let entries = std::fs::read_dir(full).into_iter().flatten().flatten();
                let inner = entries.filter(|entry| {
                    entry.file_name() != ".git" && entry.file_type().is_ok_and(|kind| kind.is_dir())
                });
                next.extend(inner.map(|entry| path.join(entry.file_name())));
            }
            level = next;
        }
        Ok(())
    }

    /// Returns whether a directory has files to carry, or is a submodule.
    fn has_ours(&self, directory: &Path) -> bool {
        self.carried.contains(directory) || self.modules.contains(directory)
    }

    /// Returns those of some directories that are ignored, by the rules of the repository or submodule that
    /// each lies in. What has files to carry is not.
    fn ignored(&self, directories: &[PathBuf]) -> Result<HashSet<PathBuf>, WorkspaceError> {
        let mut asked: BTreeMap<&Path, Vec<PathBuf>> = BTreeMap::new();
        for path in directories.iter().filter(|path| !self.has_ours(path)) {
            let around = path.ancestors().skip(1).find(|place| self.modules.contains(*place));
            let place = around.unwrap_or(Path::new(""));
            let inner = path.strip_prefix(place).unwrap_or(path);
            asked.entry(place).or_default().push(inner.to_owned());
        }
        let mut ignored = HashSet::new();
        for (place, inner) in asked {
            let found = git::ignored_of(&self.top.join(place), &inner)?;
            ignored.extend(found.into_iter().map(|path| place.join(path)));
        }
        Ok(ignored)
    }

    /// Watches one directory; returns whether it is there.
    fn add(&mut self, path: &Path) -> Result<bool, WorkspaceError> {
        if self.watched.contains_key(path) {
            return Ok(true);
        }
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let resolve =
            ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        let relative = if path.as_os_str().is_empty() { Path::new(".") } else { path };
        let top = crate::files::open_top(&self.top)?;
        let held = match rustix::fs::openat2(&top, relative, flags, Mode::empty(), resolve) {
            Ok(held) => held,
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::XDEV) => return Ok(false),
            Err(error) => return Err(self.failed(path)(error)),
        };
        let open = format!("/proc/self/fd/{}", held.as_raw_fd());
        // The top's own move is told by nothing else.
        let is_top = path.as_os_str().is_empty();
        let events = if is_top { TREE_EVENTS | WatchFlags::MOVE_SELF } else { TREE_EVENTS };
        match inotify::add_watch(&self.inotify, open, events) {
            Ok(watch) => {
                self.places.insert(watch, Place::Tree(path.to_owned()));
                self.watched.insert(path.to_owned(), watch);
                Ok(true)
            }
            // Nobody can carry what is in it, either.
            Err(Errno::ACCESS | Errno::NOENT) => Ok(false),
            Err(error) => Err(self.failed(path)(error)),
        }
    }

    fn add_refs(&mut self, directory: PathBuf) -> Result<(), WorkspaceError> {
        let mut ahead = vec![directory];
        while let Some(path) = ahead.pop() {
            self.add_git(&path, Place::Refs(path.clone()))?;
            let entries = std::fs::read_dir(&path).into_iter().flatten().flatten();
            let inner = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
            ahead.extend(inner.map(|entry| entry.path()));
        }
        Ok(())
    }

    fn add_git(&mut self, path: &Path, place: Place) -> Result<(), WorkspaceError> {
        match inotify::add_watch(&self.inotify, path, GIT_EVENTS) {
            Ok(watch) => {
                self.places.insert(watch, place);
                Ok(())
            }
            // There is none, as info in a repository without.
            Err(Errno::NOENT) => Ok(()),
            Err(error) => Err(self.failed(path)(error)),
        }
    }

    fn failed(&self, path: &Path) -> impl FnOnce(Errno) -> WorkspaceError {
        let path = self.top.join(path);
        move |error| WorkspaceError::Watch { path, source: error.into() }
    }
}

/// Returns the device and inode of a directory, where it is there.
fn identity(directory: &Path) -> Option<(u64, u64)> {
    let metadata = directory.symlink_metadata().ok()?;
    Some((metadata.dev(), metadata.ino()))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::process::Command;

    use super::*;
    use crate::repository::Options;

    fn git(directory: &Path, arguments: &[&str]) {
        let output = Command::new("git")
            .arg("-C")
            .arg(directory)
            .args(["-c", "user.name=t", "-c", "user.email=t@t", "-c", "protocol.file.allow=always"])
            .args(arguments)
            .env("GIT_CONFIG_GLOBAL", "/dev/null")
            .env("GIT_CONFIG_NOSYSTEM", "1")
            .output()
            .unwrap();
        assert!(output.status.success(), "{arguments:?}: {output:?}");
    }

    /// Makes a repository of a file and its rules for what is ignored.
    fn repository(rules: &str) -> tempfile::TempDir {
        let directory = tempfile::tempdir().unwrap();
        let top = directory.path();
        fs::create_dir(top.join("src")).unwrap();
        fs::write(top.join("src/a"), "1").unwrap();
        fs::write(top.join(".gitignore"), rules).unwrap();
        git(top, &["init", "--quiet", "--initial-branch=main"]);
        git(top, &["add", "--all"]);
        git(top, &["commit", "--quiet", "-m", "x"]);
        directory
    }

    fn open(top: &Path) -> Workspace {
        let options = Options { include_untracked: true, ..Options::default() };
        Workspace::open(top, &options).unwrap()
    }

    /// The directories of the working tree that are watched; the kernel has no other watches
    /// (proc_pid_fdinfo(5)).
    fn watched(watch: &Watch) -> BTreeSet<&str> {
        let path = format!("/proc/self/fdinfo/{}", watch.inotify.as_raw_fd());
        let of_kernel = fs::read_to_string(path).unwrap();
        let of_kernel = of_kernel.lines().filter(|line| line.starts_with("inotify wd:")).count();
        assert_eq!(of_kernel, watch.places.len());
        watch.watched.keys().map(|path| path.to_str().unwrap()).collect()
    }

    #[test]
    fn what_is_ignored_is_not_watched_by_the_rules_of_each_repository() {
        let (repository, inner) = (repository("target/\n"), repository("out/\n"));
        let top = repository.path();
        let inner = inner.path().to_str().unwrap();
        git(top, &["submodule", "--quiet", "add", inner, "sub"]);
        git(top, &["submodule", "--quiet", "add", inner, "gone"]);
        git(top, &["submodule", "--quiet", "deinit", "--force", "gone"]);
        git(top, &["init", "--quiet", "foreign"]);
        for path in [
            "target/debug/deps",
            "new/deep",
            "src/target",
            ":(top)odd",
            "sub/out/deep",
            "sub/target",
            "gone/inner",
            "foreign/inner",
        ] {
            fs::create_dir_all(top.join(path)).unwrap();
        }
        let (mut watch, _stop) = Watch::new(true).unwrap();
        assert!(watch.cover(&open(top)).unwrap());
        let most = ["", ":(top)odd", "gone", "new", "new/deep", "src", "sub", "sub/src"];
        let most: BTreeSet<&str> = most.into_iter().chain(["sub/target"]).collect();
        assert_eq!(watched(&watch), most);

        // Nor what comes later.
        for path in ["src/more/target/deep", "sub/out/later"] {
            fs::create_dir_all(top.join(path)).unwrap();
        }
        watch.wait().unwrap();
        let more = BTreeSet::from(["src/more"]);
        assert_eq!(watched(&watch), &most | &more);

        // Another rule ends the watches that there are.
        fs::write(top.join(".gitignore"), "target/\nnew/\nmore/\n").unwrap();
        assert!(!watch.cover(&open(top)).unwrap());
        assert_eq!(watched(&watch), &most - &BTreeSet::from(["new", "new/deep"]));
    }

    #[test]
    fn a_git_that_does_not_say_what_is_ignored_is_told() {
        let repository = repository("target/\n");
        fs::create_dir(repository.path().join("new")).unwrap();
        let workspace = open(repository.path());
        fs::remove_file(repository.path().join(".git/HEAD")).unwrap();
        let (mut watch, _stop) = Watch::new(true).unwrap();
        let told = watch.cover(&workspace);
        let is_told = matches!(&told, Err(WorkspaceError::Git { command: "check-ignore", .. }));
        assert!(is_told, "{told:?}");
    }
}
