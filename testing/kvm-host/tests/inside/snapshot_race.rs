//! The paths of a snapshot are swapped while the root helper makes it and takes it down: no file
//! outside the state directory is opened for writing, given a loop device that writes, changed or
//! removed, and nobody else's loop device is detached. `BANGER_RACE_ROUNDS` has the number of rounds.

use std::fs;
use std::io::Write;
use std::os::unix::fs::{MetadataExt, chown, symlink};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use banger_gates::request;
use banger_helper_api::{CreateDmSnapshotParams, SnapshotHandles};
use banger_host::HostError;
use banger_privileged_sys::loop_device::{Backing, LoopDevice};
use banger_privileged_tests::{Fixture, OWNER};
use rustix::fs::inotify::{self, CreateFlags, WatchFlags};

use crate::Inside;
use crate::disk::{self, sparse};

const MIB: u64 = 1 << 20;
const NAME: &str = "fc-rootfs-banger-race";
/// Rounds of each race in every run.
const ROUNDS: u32 = 50;

/// Which parameter is swapped.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Swapped {
    Image,
    Cow,
}

/// Swaps what is at `state/folder/disk` and at `state/folder`, its parent, until told to stop.
fn swap(state: &Path, outside: &Path, stop: &AtomicBool) {
    let (folder, disk) = (state.join("folder"), state.join("folder/disk"));
    let (aside, kept) = (state.join("aside"), state.join("kept"));
    let turn = |step: u32| -> std::io::Result<()> {
        match step % 6 {
            0 => {
                fs::rename(&disk, &kept)?;
                symlink(outside.join("disk"), &disk)
            }
            1 => {
                fs::remove_file(&disk)?;
                fs::hard_link(outside.join("disk"), &disk)
            }
            2 => {
                fs::remove_file(&disk)?;
                fs::create_dir(&disk)?;
                std::thread::sleep(Duration::from_micros(200));
                fs::remove_dir(&disk)?;
                fs::rename(&kept, &disk)
            }
            3 => {
                fs::rename(&folder, &aside)?;
                symlink(outside, &folder)
            }
            4 => {
                fs::remove_file(&folder)?;
                fs::hard_link(outside.join("disk"), &folder)
            }
            _ => {
                fs::remove_file(&folder)?;
                fs::rename(&aside, &folder)
            }
        }
    };
    let mut step = 0;
    // It ends with all at its place.
    while step % 6 != 0 || !stop.load(Ordering::Relaxed) {
        turn(step).expect("a swap");
        step += 1;
        // All is at its place after the third and the sixth, and the helper needs some time for it.
        let pause = if step % 3 == 0 { u64::from(step) * 7919 % 8000 } else { 300 };
        std::thread::sleep(Duration::from_micros(pause));
    }
}

fn create(fixture: &Fixture, swapped: Swapped) -> Result<SnapshotHandles, HostError> {
    let text = |name: &str| fixture.state.join(name).display().to_string();
    let (image, cow) = match swapped {
        Swapped::Image => ("folder/disk", "other"),
        Swapped::Cow => ("other", "folder/disk"),
    };
    let params = CreateDmSnapshotParams {
        rootfs_path: text(image),
        cow_path: text(cow),
        dm_name: NAME.to_owned(),
    };
    let grant = request::create_dm_snapshot(&params, fixture.policy()).expect("a grant");
    fixture.host.create_dm_snapshot(&grant)
}

fn cleanup(fixture: &Fixture, handles: &SnapshotHandles) -> Result<(), HostError> {
    let parts = request::cleanup_dm_snapshot(handles).expect("a grant");
    fixture.host.cleanup_dm_snapshot(&parts)
}

/// What a loop device stands on.
fn backing(path: &str) -> Option<Backing> {
    let number = path.strip_prefix("/dev/loop").expect("a loop device").parse().expect("a number");
    let device = LoopDevice::open(number).expect("look at it")?;
    device.backing().expect("look at it")
}

fn race(swapped: Swapped) {
    let rounds = std::env::var("BANGER_RACE_ROUNDS").ok();
    let rounds = rounds.map_or(ROUNDS, |rounds| rounds.parse().expect("a number of rounds"));
    let fixture = Fixture::new();
    let state = &fixture.state;
    let outside = state.parent().expect("a root").join("outside");
    for folder in [&state.join("folder"), &outside] {
        fs::create_dir(folder).expect("a folder");
        chown(folder, Some(OWNER), Some(OWNER)).expect("give it to the owner");
    }
    // Files outside are the owner's too: only their place speaks against them.
    for path in [state.join("folder/disk"), state.join("other"), outside.join("disk")] {
        sparse(&path, 4 * MIB);
        chown(path, Some(OWNER), Some(OWNER)).expect("give it to the owner");
    }
    let file = || fs::metadata(outside.join("disk")).expect("the file outside");
    let look = || (file().ino(), file().mode(), file().uid(), file().gid(), file().mtime_nsec());
    let seen = look();
    let watch = inotify::init(CreateFlags::NONBLOCK).expect("a watch");
    let flags = WatchFlags::CLOSE_WRITE | WatchFlags::MODIFY;
    inotify::add_watch(&watch, outside.join("disk"), flags).expect("a watch");
    // Somebody else's loop device, on a file of somebody else's place.
    fs::copy(outside.join("disk"), outside.join("foreign")).expect("a file");
    let foreign = fs::File::options().read(true).write(true).open(outside.join("foreign"));
    let foreign = LoopDevice::attach(&foreign.expect("a file"), false).expect("a loop device");
    let foreign_path = foreign.path().display().to_string();

    let stop = AtomicBool::new(false);
    let (mut done, mut not_done, mut last) = (0, 0, String::new());
    std::thread::scope(|scope| {
        let swapper = scope.spawn(|| swap(state, &outside, &stop));
        let act = |round: u32| match create(&fixture, swapped) {
            Ok(handles) => {
                let image = backing(&handles.base_loop).expect("the image's");
                let cow = backing(&handles.cow_loop).expect("the cow file's");
                assert!(image.is_read_only && !cow.is_read_only);
                assert_ne!(cow.inode, seen.0, "a file outside was to be written to");
                let bad = SnapshotHandles {
                    cow_loop: foreign_path.clone(),
                    ..SnapshotHandles::default()
                };
                let error = cleanup(&fixture, &bad).expect_err("another's loop device");
                assert!(matches!(error, HostError::Refused(_)), "{error:?}");
                if round.is_multiple_of(2) {
                    match cleanup(&fixture, &handles) {
                        // What was opened in its place has been moved out of it since: then the
                        // loop device is nobody's to name, and goes with the snapshot's name.
                        Err(HostError::Refused(refusal)) if refusal.parameter == "base_loop" => {
                            let dm_name = NAME.to_owned();
                            let name = SnapshotHandles { dm_name, ..SnapshotHandles::default() };
                            cleanup(&fixture, &name).expect("take it down by its name");
                        }
                        done => done.expect("take it down"),
                    }
                } else {
                    // Without its name, as after a crash; then by its name alone.
                    let dm_name = String::new();
                    let rest = SnapshotHandles { dm_name, dm_dev: String::new(), ..handles };
                    let name =
                        SnapshotHandles { dm_name: NAME.to_owned(), ..SnapshotHandles::default() };
                    cleanup(&fixture, &name).expect("take it down");
                    match cleanup(&fixture, &rest) {
                        // udev looks into it still, and as above.
                        Err(HostError::Refused(refusal)) if refusal.parameter == "base_loop" => {}
                        done => done.expect("take it down"),
                    }
                }
                None
            }
            Err(error) => Some(error),
        };
        let drive = || {
            // A race in which one side always wins goes on.
            for round in 0..rounds * 20 {
                if round >= rounds && done > 0 && not_done > 0 {
                    break;
                }
                match act(round) {
                    None => done += 1,
                    Some(error) => {
                        // A refusal is quick: the next one is to meet another state.
                        std::thread::sleep(Duration::from_micros(u64::from(round) * 7919 % 3000));
                        not_done += 1;
                        last = format!("{error:?}");
                    }
                }
            }
        };
        let driven = std::panic::catch_unwind(std::panic::AssertUnwindSafe(drive));
        stop.store(true, Ordering::Relaxed);
        swapper.join().expect("the swapper");
        driven.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    });
    assert!(done > 0 && not_done > 0, "{done} done, {not_done} not: {last}");
    let mut out = std::io::stdout().lock();
    let _ = writeln!(out, "{swapped:?}: {done} done, {not_done} not, the last because {last}");
    assert_eq!(look(), seen, "the file outside was changed");
    let mut events = [0; 4096];
    let events = rustix::io::read(&watch, &mut events[..]);
    assert_eq!(events, Err(rustix::io::Errno::AGAIN), "the file outside was opened for writing");
    assert!(foreign.backing().expect("an answer").is_some(), "another's loop device was detached");
    drop(foreign);
    assert!(!disk::names().iter().any(|name| name == NAME), "a snapshot is left");
    let records: Vec<_> = fs::read_dir(fixture.own.join("records")).expect("records").collect();
    assert!(records.is_empty(), "{records:?}");
}

#[test]
fn an_image_that_is_swapped_is_never_one_outside_that_is_written() {
    let Some(_) = Inside::get() else { return };
    race(Swapped::Image);
}

#[test]
fn a_cow_file_that_is_swapped_is_never_one_outside() {
    let Some(_) = Inside::get() else { return };
    race(Swapped::Cow);
}
