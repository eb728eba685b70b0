//! The root helper's snapshots on a machine that has a device-mapper, and what is left of them when
//! something fails, is in use, or the helper is killed.

use std::fs::File;
use std::os::unix::fs::{FileExt, chown};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use banger_gates::{DmDevice, Policy, request};
use banger_helper_api::{
    Base64, CreateDmSnapshotParams, Ext4File, FsckSnapshotParams, ReadExt4FileParams,
    SnapshotHandles, WriteExt4FilesParams,
};
use banger_host::{Host, HostError};
use banger_privileged_sys::device_mapper::Target;
use banger_privileged_sys::loop_device::LoopDevice;
use banger_privileged_tests::{Directories, Fixture, OWNER};

use crate::Inside;
use crate::disk::{self, sparse};
use crate::patience::{holds_in_folder, holds_of_devices};
use crate::tool::run;

const MIB: u64 = 1 << 20;
const NAME: &str = "fc-rootfs-banger-test";

/// A file of the owner's in the state directory.
fn file(fixture: &Fixture, name: &str, bytes: u64) -> PathBuf {
    let path = fixture.state.join(name);
    sparse(&path, bytes);
    chown(&path, Some(OWNER), Some(OWNER)).expect("give it to the owner");
    path
}

/// An image with a file `/etc/a`, and a file for changes.
fn disks(fixture: &Fixture) -> (PathBuf, PathBuf) {
    let image = file(fixture, "image", 16 * MIB);
    let tree = tempfile::tempdir().expect("a folder");
    std::fs::create_dir(tree.path().join("etc")).expect("a folder");
    std::fs::write(tree.path().join("etc/a"), "base").expect("a file");
    let words = ["-q", "-F", "-t", "ext4", "-d"].map(PathBuf::from);
    run("mke2fs", words.iter().map(PathBuf::as_path).chain([tree.path(), &image]));
    (image, file(fixture, "cow", 8 * MIB))
}

fn create(host: &Host, image: &Path, cow: &Path, name: &str) -> Result<SnapshotHandles, HostError> {
    let params = CreateDmSnapshotParams {
        rootfs_path: image.display().to_string(),
        cow_path: cow.display().to_string(),
        dm_name: name.to_owned(),
    };
    host.create_dm_snapshot(&request::create_dm_snapshot(&params, host.policy())?)
}

fn cleanup(host: &Host, handles: &SnapshotHandles) -> Result<(), HostError> {
    host.cleanup_dm_snapshot(&request::cleanup_dm_snapshot(handles)?)
}

fn read(host: &Host, path: &str) -> Result<Vec<u8>, HostError> {
    let image_path = format!("/dev/mapper/{NAME}");
    let params = ReadExt4FileParams { image_path, guest_path: path.to_owned() };
    host.read_ext4_file(&request::read_ext4_file(&params, host.policy())?)
}

fn write(host: &Host, path: &str, data: &[u8]) -> Result<(), HostError> {
    let image_path = format!("/dev/mapper/{NAME}");
    let guest_path = path.to_owned();
    let files = vec![Ext4File { guest_path, data: Base64(data.to_vec()), mode: 0 }];
    let params = WriteExt4FilesParams { image_path, files };
    host.write_ext4_files(&request::write_ext4_files(params, host.policy())?)
}

fn fsck(host: &Host) -> Result<(), HostError> {
    let params = FsckSnapshotParams { dm_dev: format!("/dev/mapper/{NAME}") };
    host.fsck_snapshot(&request::fsck_snapshot(&params)?)
}

fn remove(host: &Host, name: &str) -> Result<(), HostError> {
    let params = banger_helper_api::RemoveDmSnapshotParams { target: name.to_owned() };
    host.remove_dm_snapshot(&request::remove_dm_snapshot(&params)?)
}

fn refusal<T: std::fmt::Debug>(result: Result<T, HostError>) -> String {
    match result {
        Err(HostError::Refused(refusal)) => refusal.to_string(),
        other => panic!("not refused: {other:?}"),
    }
}

fn node(name: &str) -> PathBuf {
    disk::node_of(name)
}

/// Every loop device and snapshot of this machine, and the records; whoever looks at a loop device
/// holds it for a moment.
fn left(fixture: &Fixture) -> Vec<String> {
    let look = || {
        let mut found = disk::names();
        for device in std::fs::read_dir("/sys/block").expect("the devices").flatten() {
            if device.path().join("loop").exists() {
                found.push(device.file_name().to_string_lossy().into_owned());
            }
        }
        let records = std::fs::read_dir(fixture.own.join("records")).expect("the records");
        found.extend(records.flatten().map(|it| it.file_name().to_string_lossy().into_owned()));
        found
    };
    holds_of_devices(Duration::from_secs(20), || look().is_empty());
    look()
}

fn assert_nothing_left(fixture: &Fixture) {
    assert_eq!(left(fixture), Vec::<String>::new());
}

#[test]
fn the_helper_makes_checks_and_ends_a_snapshot() {
    let Some(_) = Inside::get() else { return };
    let fixture = Fixture::new();
    let host = &fixture.host;
    let (image, cow) = disks(&fixture);
    let before = std::fs::read(&image).expect("the image");
    refusal(fsck(host));
    refusal(read(host, "/etc/a"));
    let handles = create(host, &image, &cow, NAME).expect("a snapshot");
    assert_eq!((handles.dm_name.as_str(), handles.dm_dev), (NAME, format!("/dev/mapper/{NAME}")));
    let handles = SnapshotHandles { dm_dev: String::new(), ..handles };
    let base = handles.base_loop.strip_prefix("/dev/").expect("a loop device");
    let flag = std::fs::read_to_string(format!("/sys/block/{base}/ro")).expect("a flag");
    assert_eq!(flag.trim(), "1", "the image cannot be written");

    fsck(host).expect("a check");
    assert_eq!(read(host, "/etc/a").expect("a file"), b"base");
    write(host, "/etc/a", b"changed").expect("write");
    write(host, "/new/b", b"new").expect("write");
    assert_eq!(read(host, "/etc/a").expect("a file"), b"changed");
    fsck(host).expect("a check");

    // Another of the name, and another over the same file.
    let other = file(&fixture, "other", 8 * MIB);
    assert!(refusal(create(host, &image, &other, NAME)).contains("dm_name"));
    assert!(refusal(create(host, &image, &cow, "fc-rootfs-second")).contains("cow_path"));
    let shares =
        create(host, &image, &other, "fc-rootfs-second").expect("one that shares the image");
    cleanup(host, &shares).expect("end it");

    // In use: it is read, and nothing else.
    let held = File::open(node(NAME)).expect("the device");
    assert_eq!(read(host, "/new/b").expect("a file"), b"new");
    assert!(refusal(write(host, "/new/b", b"x")).contains("in use"));
    assert!(refusal(fsck(host)).contains("in use"));
    let start = Instant::now();
    let error = cleanup(host, &handles).expect_err("it is in use");
    assert!(matches!(error, HostError::Failed { .. }), "{error:?}");
    assert!(start.elapsed() >= Duration::from_secs(5), "it is tried again for a while");
    assert_eq!(read(host, "/new/b").expect("a file"), b"new");
    drop(held);
    cleanup(host, &handles).expect("end it");
    assert_nothing_left(&fixture);
    cleanup(host, &handles).expect("again");

    // The changes are in their file, and only there.
    assert!(std::fs::read(&image).expect("the image") == before, "the image is as it was");
    create(host, &image, &cow, NAME).expect("the same again");
    assert_eq!(read(host, "/etc/a").expect("a file"), b"changed");
    remove(host, NAME).expect("by its name alone");
    assert_nothing_left(&fixture);
}

#[test]
fn of_many_at_once_one_wins_and_the_others_leave_nothing() {
    let Some(_) = Inside::get() else { return };
    let fixture = Fixture::new();
    let (image, _) = disks(&fixture);
    let files: Vec<PathBuf> =
        (0..8).map(|number| file(&fixture, &format!("cow-{number}"), MIB)).collect();
    for _ in 0..5 {
        let host = &fixture.host;
        let made: Vec<SnapshotHandles> = std::thread::scope(|scope| {
            let threads: Vec<_> =
                files.iter().map(|cow| scope.spawn(|| create(host, &image, cow, NAME))).collect();
            let ends = threads.into_iter().map(|thread| thread.join().expect("no panic"));
            ends.filter_map(|end| match end {
                Ok(handles) => Some(handles),
                Err(HostError::Refused(_)) => None,
                Err(error) => panic!("{error:?}"),
            })
            .collect()
        });
        assert_eq!(made.len(), 1, "{made:?}");
        assert_eq!(read(host, "/etc/a").expect("a file"), b"base");
        cleanup(host, &made[0]).expect("end it");
        assert_nothing_left(&fixture);
    }
}

#[test]
fn what_is_no_snapshot_of_ours_is_left_alone() {
    let Some(_) = Inside::get() else { return };
    let fixture = Fixture::new();
    let host = &fixture.host;
    let (image, cow) = disks(&fixture);
    let mapper = disk::mapper();
    // A device of the name with nothing in it, as a helper leaves it that was killed.
    let uuid = &format!("banger-{OWNER}-{NAME}");
    mapper.create(NAME, uuid, 1 << 19).expect("a device");
    assert!(refusal(create(host, &image, &cow, NAME)).contains("dm_name"));
    assert!(refusal(read(host, "/etc/a")).contains("not a snapshot"));
    let kind = |kind: &str| Target {
        start: 0,
        length: 8,
        kind: kind.to_owned(),
        parameters: String::new(),
    };
    mapper.load(uuid, &kind("zero")).expect("a table");
    mapper.resume(uuid).expect("a device");
    for text in
        [refusal(read(host, "/etc/a")), refusal(write(host, "/a", b"x")), refusal(fsck(host))]
    {
        assert!(text.contains("not a snapshot"), "{text}");
    }
    remove(host, NAME).expect("end it");
    assert_nothing_left(&fixture);

    // A foreign loop device: all stays.
    let outside = fixture.own.join("outside");
    let foreign = LoopDevice::attach(&sparse(&outside, MIB), false).expect("a loop device");
    let handles = create(host, &image, &cow, NAME).expect("a snapshot");
    let bad =
        SnapshotHandles { base_loop: foreign.path().display().to_string(), ..handles.clone() };
    assert!(refusal(cleanup(host, &bad)).contains("base_loop"));
    assert!(foreign.backing().expect("an answer").is_some());
    assert_eq!(read(host, "/etc/a").expect("a file"), b"base");
    drop(foreign);

    // The helper starts again, and the file is deleted meanwhile.
    let again = Host::open(host.policy().clone(), &fixture.own).expect("a host");
    std::fs::remove_file(&cow).expect("delete the file");
    cleanup(&again, &handles).expect("end it");
    assert_nothing_left(&fixture);
}

#[test]
fn another_owners_snapshot_is_none() {
    let Some(_) = Inside::get() else { return };
    let fixture = Fixture::new();
    let host = &fixture.host;
    let (image, cow) = disks(&fixture);
    let handles = create(host, &image, &cow, NAME).expect("a snapshot");
    let others = Directories::new();
    for path in [&others.state, &others.runtime] {
        chown(path, Some(OWNER + 1), Some(OWNER + 1)).expect("a directory of another owner's");
    }
    let owner = banger_gates::Owner::new(OWNER + 1, OWNER + 1).expect("an owner");
    let other = Host::open(Policy { owner, ..others.policy() }, &others.own).expect("a host");
    for text in [
        refusal(read(&other, "/etc/a")),
        refusal(write(&other, "/etc/a", b"x")),
        refusal(fsck(&other)),
    ] {
        assert!(text.contains("no such device of the owner's"), "{text}");
    }
    // There is none for it to remove, and its own of the name cannot be made.
    remove(&other, NAME).expect("nothing to remove");
    let bare =
        SnapshotHandles { base_loop: String::new(), cow_loop: String::new(), ..handles.clone() };
    cleanup(&other, &bare).expect("nothing to clean up");
    assert_eq!(read(host, "/etc/a").expect("a file"), b"base");
    cleanup(host, &handles).expect("end it");
    assert_nothing_left(&fixture);
}

#[test]
fn a_cow_file_does_not_choose_how_much_memory_it_takes() {
    let Some(_) = Inside::get() else { return };
    let fixture = Fixture::new();
    let (image, cow) = disks(&fixture);
    let header = |chunk: u32| {
        let words = [0x7041_6e53_u32, 1, 1, chunk];
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        let file = File::options().write(true).open(&cow).expect("the file for changes");
        file.write_all_at(&bytes, 0).and_then(|()| file.sync_all()).expect("a header");
    };
    for chunk in [0, 1, 7, 16, 1 << 16, u32::MAX] {
        header(chunk);
        assert!(refusal(create(&fixture.host, &image, &cow, NAME)).contains("chunks"), "{chunk}");
        assert_nothing_left(&fixture);
    }
    // The neighbour: what this helper has written itself.
    header(8);
    let handles = create(&fixture.host, &image, &cow, NAME).expect("a snapshot");
    cleanup(&fixture.host, &handles).expect("end it");
    assert_nothing_left(&fixture);
}

#[test]
fn numbers_of_devices_are_counted_on_until_all_have_been_given() {
    let Some(_) = Inside::get() else { return };
    let fixture = Fixture::new();
    let (image, cow) = disks(&fixture);
    let last = fixture.root().join("last-minor");
    let number = |host: &Host| {
        let handles = create(host, &image, &cow, NAME).expect("a snapshot");
        let node = node(NAME);
        cleanup(host, &handles).expect("end it");
        let minor = node.to_str().and_then(|node| node.strip_prefix("/dev/dm-")).expect("a node");
        minor.parse::<u32>().expect("a number")
    };
    let first = number(&fixture.host);
    assert!(first >= 1 << 19, "{first}");
    // The helper starts again.
    let again = Host::open(fixture.host.policy().clone(), &fixture.own).expect("a host");
    assert_eq!(number(&again), first + 1);
    let mode = std::os::unix::fs::MetadataExt::mode(&last.metadata().expect("the count"));
    assert_eq!(mode & 0o777, 0o600);
    for (written, next) in
        [(&[0xff, 0xff, 0x0f, 0][..], 1 << 19), (b"", 1 << 19), (&[9; 9], 1 << 19)]
    {
        std::fs::write(&last, written).expect("another count");
        assert_eq!(number(&again), next, "after {written:?}");
    }
    // A link in its place is not followed.
    std::fs::remove_file(&last).expect("no count");
    std::os::unix::fs::symlink("/etc/hostname", &last).expect("a link");
    assert!(create(&again, &image, &cow, NAME).is_err());
    std::fs::remove_file(&last).expect("no link");
    assert_nothing_left(&fixture);
}

#[test]
fn a_snapshot_that_overflowed_is_said_to_be_broken() {
    let Some(_) = Inside::get() else { return };
    let fixture = Fixture::new();
    let host = &fixture.host;
    let (image, _) = disks(&fixture);
    let cow = file(&fixture, "small", 64 << 10);
    create(host, &image, &cow, NAME).expect("a snapshot");
    assert_eq!(read(host, "/etc/a").expect("a file"), b"base");
    let device = File::options().write(true).open(node(NAME)).expect("the device");
    let _ = device.write_all_at(&vec![b'x'; 4 << 20], 8 * MIB).and_then(|()| device.sync_all());
    drop(device);
    for text in
        [refusal(read(host, "/etc/a")), refusal(write(host, "/a", b"x")), refusal(fsck(host))]
    {
        assert!(text.contains("broken"), "{text}");
    }
    remove(host, NAME).expect("end it");
    assert_nothing_left(&fixture);
    // A cow file without room for even its header.
    let none = file(&fixture, "none", 512);
    let _ = create(host, &image, &none, NAME).expect_err("there is no room");
    assert_nothing_left(&fixture);
}

/// Where the process that is killed finds its roots.
const ROOT: &str = "BANGER_TEST_ROOT";

#[test]
fn a_helper_that_is_killed_leaves_only_what_its_name_ends() {
    let Some(_) = Inside::get() else { return };
    if let Some(root) = std::env::var_os(ROOT) {
        return create_for_ever(Path::new(&root));
    }
    let fixture = Fixture::new();
    disks(&fixture);
    let name = "privileged_disk::a_helper_that_is_killed_leaves_only_what_its_name_ends";
    for round in 0..40_u64 {
        let test = std::env::current_exe().expect("this test");
        let mut child = std::process::Command::new(test)
            .args(["--exact", name])
            .env(ROOT, fixture.state.parent().expect("a root"))
            .stdout(std::process::Stdio::null())
            .spawn()
            .expect("a process");
        let begun = fixture.own.join("begun");
        let patience = Duration::from_secs(60);
        assert!(holds_in_folder(&fixture.own, patience, || begun.exists()), "it begins");
        std::thread::sleep(Duration::from_micros(round * 1709));
        child.kill().expect("kill it");
        child.wait().expect("its end");
        std::fs::remove_file(begun).expect("the mark");
        remove(&fixture.host, NAME).expect("end what there is");
        let records = fixture.own.join("records");
        for entry in std::fs::read_dir(&records).expect("the records").flatten() {
            // A record that was being written.
            assert!(entry.file_name().to_string_lossy().starts_with('.'), "{entry:?}");
            std::fs::remove_file(entry.path()).expect("delete it");
        }
        assert_nothing_left(&fixture);
    }
}

fn create_for_ever(root: &Path) {
    let (state, own) = (root.join("state"), root.join("own"));
    let policy = Policy {
        owner: banger_gates::Owner::new(OWNER, OWNER).expect("an owner"),
        state: state.clone(),
        runtime: root.join("runtime"),
        jails: root.join("jails"),
        vmm_directories: Vec::new(),
        vmm_files: Vec::new(),
        host_memory_mib: 1024,
        own_pid: std::process::id(),
    };
    let host = Host::open(policy, &own).expect("a host");
    let name = request::remove_dm_snapshot(&banger_helper_api::RemoveDmSnapshotParams {
        target: DmDevice::parse("target", &format!("/dev/mapper/{NAME}")).expect("a path").path(),
    });
    let name = name.expect("a name");
    std::fs::write(own.join("begun"), "").expect("a mark");
    loop {
        create(&host, &state.join("image"), &state.join("cow"), NAME).expect("a snapshot");
        host.remove_dm_snapshot(&name).expect("end it");
    }
}
