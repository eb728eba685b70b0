//! Watches a working tree for changes (inotify(7)).
//!
//! Every directory that has files to carry has a watch of its own, and every other one that is not
//! ignored where untracked files are carried, too; so have the parts of the repository's own directory
//! that say which files there are. A directory is watched before it is looked into, so that nothing
//! that is made in it meanwhile is missed. Directories are opened beneath the working tree without
//! following a link.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::ffi::OsStr;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::inotify::{self, CreateFlags, ReadFlags, WatchFlags};
use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use crate::error::WorkspaceError;
use crate::git;
use crate::repository::Workspace;
use crate::sync::{Mirror, Round};

/// How long nothing must change before what changed is told, and how long it takes at most.
const QUIET: Duration = Duration::from_millis(40);
const PATIENCE: Duration = Duration::from_millis(500);
/// Most names that are told one by one.
const NAMES_MOST: usize = 2_000;
/// How often a repository is opened anew because there was more to watch in it.
const COVER_MOST: usize = 4;

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
    top: PathBuf,
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
            top: PathBuf::new(),
            include_untracked,
            seen: BTreeSet::new(),
            everything: false,
        };
        Ok((watch, Stop { _end: end }))
    }

    /// Watches all that a repository has; returns whether some of it was not watched before, so that it
    /// may have changed since `workspace` was opened.
    pub fn cover(&mut self, workspace: &Workspace) -> Result<bool, WorkspaceError> {
        self.drain();
        let before = self.places.len();
        self.top.clone_from(&workspace.top);
        self.carried = workspace
            .names()
            .iter()
            .flat_map(|name| name.ancestors().skip(1).map(Path::to_owned).collect::<Vec<_>>())
            .collect();
        self.carried.insert(PathBuf::new());
        for (_, module) in workspace.modules() {
            self.add_git(&module.git_dir, Place::Git)?;
            self.add_git(&module.common_dir, Place::Git)?;
            self.add_git(&module.common_dir.join("info"), Place::Git)?;
            self.add_refs(module.common_dir.join("refs"))?;
        }
        self.add_below(Path::new(""))?;
        Ok(self.places.len() > before)
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
            if let Some(Place::Tree(path)) = self.places.remove(&watch)
                && self.watched.get(&path) == Some(&watch)
            {
                self.watched.remove(&path);
            }
            return;
        }
        let (Some(place), Some(name)) = (self.places.get(&watch).cloned(), name) else { return };
        let comes = events.intersects(ReadFlags::CREATE | ReadFlags::MOVED_TO);
        let is_directory = events.contains(ReadFlags::ISDIR);
        match place {
            Place::Git => self.everything |= GIT_NAMES.contains(&name.as_bytes()),
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
                if is_directory {
                    if !comes && !events.intersects(ReadFlags::DELETE | ReadFlags::MOVED_FROM) {
                        return;
                    }
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
        if !self.include_untracked {
            return Ok(());
        }
        let mut level = vec![directory.to_owned()];
        while !level.is_empty() {
            let asked: Vec<PathBuf> =
                level.iter().filter(|path| !self.carried.contains(*path)).cloned().collect();
            // Where git does not say, more is watched than need be.
            let ignored: HashSet<PathBuf> =
                git::ignored_of(&self.top, &asked).unwrap_or_default().into_iter().collect();
            let mut next = Vec::new();
            for path in level.into_iter().filter(|path| !ignored.contains(path)) {
                let full = self.top.join(&path);
                let is_foreign = !self.carried.contains(&path) && full.join(".git").exists();
                if is_foreign || !self.add(&path)? {
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
        match inotify::add_watch(&self.inotify, open, TREE_EVENTS) {
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

/// What [`follow`] tells.
#[derive(Debug)]
pub enum Told<'t> {
    /// A round, and the repository as it was then.
    Round(Round, Option<&'t Workspace>),
    /// Why nothing was carried; the next change is waited for.
    Trouble(&'t WorkspaceError),
}

/// Has the guest follow the host until the watch is stopped; a round that is under way then ends first.
pub fn follow(
    sync: &mut Mirror,
    watch: &mut Watch,
    tell: &mut dyn FnMut(Told<'_>),
) -> Result<(), WorkspaceError> {
    let mut seen = Seen::Everything;
    let mut is_stale = false;
    loop {
        let round = match &seen {
            Seen::Stopped => return sync.finish(),
            Seen::Names(names) if !is_stale => match sync.some(names) {
                Ok(Some(round)) => Ok(round),
                Ok(None) => whole(sync, watch),
                Err(error) => Err(error),
            },
            Seen::Names(_) | Seen::Everything => whole(sync, watch),
        };
        is_stale = round.is_err();
        match round {
            Ok(round) => tell(Told::Round(round, sync.workspace())),
            Err(error) if error.is_of_the_moment() => tell(Told::Trouble(&error)),
            Err(error) => return Err(error),
        }
        seen = watch.wait()?;
    }
}

fn whole(sync: &mut Mirror, watch: &mut Watch) -> Result<Round, WorkspaceError> {
    let mut workspace = sync.open()?;
    for _ in 0..COVER_MOST {
        if !watch.cover(&workspace)? {
            break;
        }
        workspace = sync.open()?;
    }
    sync.whole(workspace)
}
