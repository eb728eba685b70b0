//! A thread swaps the file and its folder for links, other files and folders while the helper
//! works: nothing outside the state root is ever opened for writing or changed.

use std::os::fd::OwnedFd;
use std::os::unix::fs::{chown, symlink};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::Thread;
use std::time::{Duration, Instant};

use banger_host::HostError;
use banger_privileged_tests::race::{PLAIN, SPAWNING, rounds};
use banger_privileged_tests::{Fixture, OWNER};
use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use rustix::fs::{AtFlags, CWD, Mode, OFlags, RenameFlags};

use crate::{Numbers, assert_no_loops, create, debugfs, fixture, image, paint, read, write};

/// What can lie in the place of the file, and in that of its folder; each has its name beside it. The
/// links lead out, and the second names are those of a file outside.
const FILES: [&str; 4] = ["link", "second-name", "directory", "another"];
const FOLDERS: [&str; 4] = ["folder-link", "folder-name", "folder-file", "folder-empty"];

/// Makes all of them.
fn make_others(state: &Path, outside: &Path) {
    let folder = state.join("folder");
    symlink(outside.join("disk"), folder.join("link")).unwrap();
    symlink(outside, state.join("folder-link")).unwrap();
    std::fs::create_dir(folder.join("directory")).unwrap();
    std::fs::write(folder.join("another"), b"no image").unwrap();
    std::fs::write(state.join("folder-file"), b"no folder").unwrap();
    std::fs::create_dir(state.join("folder-empty")).unwrap();
    for own in [folder.join("another"), state.join("folder-file"), state.join("folder-empty")] {
        chown(own, Some(OWNER), Some(OWNER)).unwrap();
    }
    for name in [folder.join("second-name"), state.join("folder-name")] {
        std::fs::hard_link(outside.join("named"), name).unwrap();
    }
}

/// Waits without sleeping: what is raced with takes microseconds.
fn spin(nanoseconds: u64) {
    let end = Instant::now() + Duration::from_nanos(nanoseconds);
    while Instant::now() < end {
        std::hint::spin_loop();
    }
}

/// What the two sides of a race tell each other.
#[derive(Default)]
struct Rounds {
    is_over: AtomicBool,
    /// The number of the act that is about to begin, and that of the one which swaps have begun for.
    announced: AtomicUsize,
    met: AtomicUsize,
}

impl Rounds {
    /// Announces an act, and waits until things are being swapped: what is raced with takes
    /// microseconds at an act's beginning, and on a busy machine two threads seldom run at once.
    fn begin(&self, swapper: &Thread) {
        let number = self.announced.fetch_add(1, Ordering::Relaxed) + 1;
        swapper.unpark();
        for tries in 1_u32.. {
            if self.met.load(Ordering::Relaxed) == number || self.is_over.load(Ordering::Relaxed) {
                break;
            }
            if tries % 1024 == 0 {
                std::thread::yield_now();
            }
            std::hint::spin_loop();
        }
    }
}

/// Ends the race: however one side ends, the other must not wait for it.
struct Over<'a>(&'a Rounds);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.is_over.store(true, Ordering::Relaxed);
    }
}

/// Swaps what is at `state/folder/disk` and at `state/folder` until it is told to stop. As an act
/// begins, it does so as fast as can be: an exchange of two names in one directory takes about as long
/// as the helper takes from a check to the act upon it.
fn swap(state: &Path, outside: &Path, rounds: &Rounds) {
    let _over = Over(rounds);
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let open = |path: &Path| rustix::fs::open(path, flags, Mode::empty()).unwrap();
    // It stays open wherever its name is.
    let (upper, folder) = (open(state), open(&state.join("folder")));
    let exchange = |(directory, good, bad): (&OwnedFd, &str, &str)| {
        let flags = RenameFlags::EXCHANGE;
        rustix::fs::renameat_with(directory, good, directory, bad, flags).unwrap();
    };
    let leaf = |other: &'static str| (&folder, "disk", other);
    let parent = |other: &'static str| (&upper, "folder", other);
    let numbers = std::cell::RefCell::new(Numbers(0x5eed));
    let below = |end: u64| numbers.borrow_mut().below(end);
    let storm = |pair| {
        for _ in 0..64 {
            exchange(pair);
            spin(below(1_000));
            exchange(pair);
            spin(below(4_000));
        }
    };
    // A second name of a file outside, there for a moment only.
    let name_for_a_moment = || {
        rustix::fs::renameat(&folder, "disk", &folder, "kept").unwrap();
        for _ in 0..64 {
            let named = outside.join("named");
            rustix::fs::linkat(CWD, &named, &folder, "disk", AtFlags::empty()).unwrap();
            spin(below(2_000));
            rustix::fs::unlinkat(&folder, "disk", AtFlags::empty()).unwrap();
        }
        rustix::fs::renameat(&folder, "kept", &folder, "disk").unwrap();
    };
    let pairs = FILES.map(leaf).into_iter().chain(FOLDERS.map(parent));
    let mut pairs = pairs.cycle();
    while !rounds.is_over.load(Ordering::Relaxed) {
        let number = rounds.announced.load(Ordering::Relaxed);
        if rounds.met.swap(number, Ordering::Relaxed) != number {
            match number % 8 {
                0 | 2 | 4 => storm(leaf("link")),
                1 | 5 => storm(parent("folder-link")),
                3 | 6 => storm(leaf("second-name")),
                _ => name_for_a_moment(),
            }
        } else if let Some(pair) = pairs.next() {
            // Whatever is done later in an act meets everything, too.
            exchange(pair);
            spin(below(50_000));
            exchange(pair);
            std::thread::park_timeout(Duration::from_micros(below(500)));
        }
    }
}

fn drive(rounds: usize, act: impl Fn(&Fixture, &Path) -> Result<(), HostError>) {
    let Some(fixture) = fixture() else { return };
    let state = &fixture.state;
    std::fs::create_dir(state.join("folder")).unwrap();
    chown(state.join("folder"), Some(OWNER), Some(OWNER)).unwrap();
    let disk = image(&fixture, "folder/disk", 8, &[("a", b"inside")]);
    image(&fixture, "base", 4, &[]);
    // The owner's too: only their place speaks against them. Links lead to one, which nobody may ever
    // open; the other has names inside at times, and nobody may write to it.
    let outside = fixture.state.parent().unwrap().join("outside");
    std::fs::create_dir(&outside).unwrap();
    chown(&outside, Some(OWNER), Some(OWNER)).unwrap();
    let files = ["disk", "named"].map(|name| outside.join(name));
    for path in &files {
        std::fs::copy(&disk, path).unwrap();
        debugfs(path, "symlink /outside /");
        chown(path, Some(OWNER), Some(OWNER)).unwrap();
    }
    make_others(state, &outside);
    let look = || {
        let mut lines = Vec::new();
        files.iter().for_each(|path| paint(path, &mut lines));
        // Its names come and go, and with them the time of its last change.
        lines.iter().map(|line| line.replace(char::is_numeric, "")).collect::<Vec<_>>()
    };
    let content = || files.each_ref().map(|path| std::fs::read(path).unwrap());
    let (seen, bytes) = (look(), content());
    let watch = inotify::init(CreateFlags::NONBLOCK).unwrap();
    let written = WatchFlags::CLOSE_WRITE | WatchFlags::MODIFY;
    for (path, flags) in files.iter().zip([written | WatchFlags::OPEN, written]) {
        inotify::add_watch(&watch, path, flags).unwrap();
    }

    let race = Rounds::default();
    let (mut done, mut not_done, mut last) = (0, 0, String::new());
    std::thread::scope(|scope| {
        let swapper = scope.spawn(|| swap(state, &outside, &race));
        let _over = Over(&race);
        for round in 0..rounds * 20 {
            // A race in which one side nearly always wins goes on.
            if round >= rounds && done > rounds * 3 / 4 && not_done > 0 {
                break;
            }
            race.begin(swapper.thread());
            match act(&fixture, &disk) {
                Ok(()) => done += 1,
                Err(error) => {
                    not_done += 1;
                    last = format!("{error:?}");
                }
            }
        }
    });
    assert!(done > 0 && not_done > 0, "{done} done, {not_done} not: {last}");
    let mut bytes_of_events = [0; 4096];
    let events = rustix::io::read(&watch, &mut bytes_of_events[..]);
    // `struct inotify_event`: which of the two, and what was done to it.
    let first = &bytes_of_events[..16];
    assert_eq!(events, Err(rustix::io::Errno::AGAIN), "a file outside was opened: {first:?}");
    assert!(content() == bytes, "a file outside was changed");
    assert_eq!(look(), seen);
    assert_no_loops(&outside);
    assert_no_loops(state);
}

/// As far as the loop devices: what comes of the device-mapper does not count.
fn attach(fixture: &Fixture, image: &Path, cow: &Path) -> Result<(), HostError> {
    match create(fixture, image, cow) {
        Err(error @ HostError::Refused(_)) => Err(error),
        Ok(_) => panic!("a snapshot that nobody takes down"),
        Err(_) => Ok(()),
    }
}

fn has_device_mapper() -> bool {
    let has = Path::new("/dev/mapper/control").exists();
    if has {
        banger_harness::skip("no-device-mapper", "the swaps would race with real snapshots");
    }
    has
}

#[test]
fn writing_while_paths_are_swapped() {
    drive(rounds(SPAWNING), |fixture, disk| write(fixture, disk, &[("/new/file", b"inside", 0)]));
}

#[test]
fn reading_while_paths_are_swapped() {
    drive(rounds(SPAWNING), |fixture, disk| {
        read(fixture, disk, "/a").map(|content| assert_eq!(content, b"inside"))
    });
}

#[test]
fn a_snapshots_changes_are_attached_while_paths_are_swapped() {
    if !has_device_mapper() {
        drive(rounds(PLAIN), |fixture, disk| attach(fixture, &fixture.state.join("base"), disk));
    }
}

#[test]
fn a_snapshots_image_is_attached_while_paths_are_swapped() {
    if !has_device_mapper() {
        drive(rounds(PLAIN), |fixture, disk| attach(fixture, disk, &fixture.state.join("base")));
    }
}

#[test]
fn two_writers_of_one_image_take_turns_or_are_refused() {
    let Some(fixture) = fixture() else { return };
    let image = image(&fixture, "root.ext4", 16, &[("a", b"a")]);
    std::thread::scope(|scope| {
        for name in ["/one", "/two", "/three"] {
            let (fixture, image) = (&fixture, &image);
            scope.spawn(move || {
                for round in 0..10_u8 {
                    match write(fixture, image, &[(name, &[round; 5000], 0)]) {
                        Err(HostError::Refused(refusal)) => {
                            assert!(refusal.reason.contains("another request has it"), "{refusal}");
                        }
                        done => done.unwrap(),
                    }
                }
            });
        }
    });
    write(&fixture, &image, &[("/last", b"it is free again", 0)]).unwrap();
    assert_eq!(read(&fixture, &image, "/a").unwrap(), b"a");
    super::assert_clean(&image);
}
