//! A thread swaps the file and its folder for links, other files and folders while the helper
//! works: nothing outside the state root is ever opened for writing or changed.

use std::os::unix::fs::{chown, symlink};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use banger_host::HostError;
use banger_privileged_tests::race::{PLAIN, SPAWNING, rounds};
use banger_privileged_tests::{Fixture, OWNER};
use rustix::fs::inotify::{self, CreateFlags, WatchFlags};

use crate::{Numbers, assert_no_loops, create, debugfs, fixture, image, paint, read, write};

/// Swaps what is at `state/folder/disk` and at `state/folder` until it is told to stop.
fn swap(state: &Path, outside: &Path, stop: &AtomicBool) {
    let (folder, disk) = (state.join("folder"), state.join("folder/disk"));
    let (aside, kept) = (state.join("aside"), state.join("kept"));
    let turn = |step: u32| -> std::io::Result<()> {
        match step % 9 {
            0 => {
                std::fs::rename(&disk, &kept)?;
                symlink(outside.join("disk"), &disk)?;
                std::fs::remove_file(&disk)?;
            }
            1 => {
                std::fs::hard_link(outside.join("named"), &disk)?;
                std::fs::remove_file(&disk)?;
            }
            2 => {
                std::fs::create_dir(&disk)?;
                std::fs::remove_dir(&disk)?;
            }
            3 => {
                std::fs::write(&disk, b"no image")?;
                chown(&disk, Some(OWNER), Some(OWNER))?;
                std::fs::rename(&kept, &disk)?;
            }
            4 => {
                std::fs::rename(&folder, &aside)?;
                symlink(outside, &folder)?;
            }
            5 => {
                std::fs::remove_file(&folder)?;
                std::fs::hard_link(outside.join("named"), &folder)?;
            }
            6 => {
                std::fs::remove_file(&folder)?;
                std::fs::write(&folder, b"no folder")?;
            }
            7 => {
                std::fs::remove_file(&folder)?;
                std::fs::create_dir(&folder)?;
                chown(&folder, Some(OWNER), Some(OWNER))?;
                symlink(outside.join("disk"), &disk)?;
                std::fs::remove_file(&disk)?;
                std::fs::remove_dir(&folder)?;
            }
            _ => std::fs::rename(&aside, &folder)?,
        }
        Ok(())
    };
    let mut step = 0;
    let mut numbers = Numbers(0x5eed);
    // It ends with all at its place.
    while step % 9 != 0 || !stop.load(Ordering::Relaxed) {
        turn(step).unwrap();
        step += 1;
        let longest = if step % 9 == 0 { 1500 } else { 100 };
        std::thread::sleep(Duration::from_micros(numbers.below(longest)));
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

    let stop = AtomicBool::new(false);
    let mut numbers = Numbers(0xfeed);
    let (mut done, mut not_done, mut last) = (0, 0, String::new());
    std::thread::scope(|scope| {
        let swapper = scope.spawn(|| swap(state, &outside, &stop));
        for round in 0..rounds * 20 {
            // A race in which one side always wins goes on.
            if round >= rounds && done > 0 && not_done > 0 {
                break;
            }
            match act(&fixture, &disk) {
                Ok(()) => done += 1,
                Err(error) => {
                    // A refusal is quick: the next one is to meet another state.
                    std::thread::sleep(Duration::from_micros(numbers.below(400)));
                    not_done += 1;
                    last = format!("{error:?}");
                }
            }
        }
        stop.store(true, Ordering::Relaxed);
        swapper.join().unwrap();
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
