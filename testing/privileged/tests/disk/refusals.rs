//! What is refused although its text is good, and that nothing is changed then.

use std::os::unix::fs::{chown, symlink};
use std::path::{Path, PathBuf};

use banger_gates::Refusal;
use banger_privileged_sys::loop_device::LoopDevice;
use banger_privileged_tests::{Fixture, OWNER};

use crate::{
    assert_same, create, debugfs, failure, file, fixture, image, picture, read, refusal, run, write,
};

type Use = fn(&Fixture, &Path) -> Refusal;

/// Each parameter that is a file below the state root.
const USES: [(&str, Use); 4] = [
    ("image_path", |fixture, path| refusal(read(fixture, path, "/etc/a"))),
    ("image_path", |fixture, path| refusal(write(fixture, path, &[("/etc/a", b"x", 0)]))),
    ("rootfs_path", |fixture, path| refusal(create(fixture, path, &fixture.state.join("cow")))),
    ("cow_path", |fixture, path| refusal(create(fixture, &fixture.state.join("good"), path))),
];

fn refuse_all(fixture: &Fixture, path: &Path, uses: &[(&str, Use)]) {
    let before = picture(fixture);
    for (parameter, act) in uses {
        assert_eq!(act(fixture, path).parameter, *parameter, "{path:?}");
        assert_same(fixture, &before);
    }
}

#[test]
fn files_that_are_not_the_owners_own() {
    let Some(fixture) = fixture() else { return };
    let state = &fixture.state;
    let good = image(&fixture, "good", 8, &[("etc/a", b"a")]);
    file(&state.join("cow"), 1 << 20);
    let at = |name: &str| state.join(name);
    let outside = fixture.own.join("outside");
    std::fs::copy(&good, &outside).unwrap();
    chown(&outside, Some(OWNER), Some(OWNER)).unwrap();

    symlink(&good, at("link")).unwrap();
    symlink(&outside, at("link-out")).unwrap();
    symlink("itself", at("itself")).unwrap();
    symlink(&fixture.own, at("folder-out")).unwrap();
    std::fs::create_dir(at("folder")).unwrap();
    symlink(state, at("folder/up")).unwrap();
    run("mkfifo", &[at("pipe").to_str().unwrap()]);
    run("mknod", &[at("device").to_str().unwrap(), "b", "7", "0"]);
    let _socket = std::os::unix::net::UnixListener::bind(at("socket")).unwrap();
    for name in ["pipe", "device", "socket", "folder"] {
        chown(at(name), Some(OWNER), Some(OWNER)).unwrap();
    }
    std::fs::copy(&good, at("roots")).unwrap();
    std::fs::copy(&good, at("others")).unwrap();
    chown(at("others"), Some(OWNER + 1), Some(OWNER)).unwrap();
    let bad: Vec<PathBuf> = [
        "missing",
        "missing/file",
        "link",
        "link-out",
        "itself",
        "folder-out/outside",
        "folder/up/good",
        "folder",
        "pipe",
        "device",
        "socket",
        "roots",
        "others",
        "good/below",
    ]
    .map(at)
    .to_vec();
    for path in &bad {
        refuse_all(&fixture, path, &USES);
    }
    // The neighbours.
    assert_eq!(read(&fixture, &good, "/etc/a").unwrap(), b"a");
    write(&fixture, &good, &[("/etc/a", b"b", 0)]).unwrap();
}

#[test]
fn a_file_with_two_names_is_read_but_never_written() {
    let Some(fixture) = fixture() else { return };
    let good = image(&fixture, "good", 8, &[("etc/a", b"a")]);
    let second = fixture.state.join("second");
    std::fs::hard_link(&good, &second).unwrap();
    for path in [&good, &second] {
        refuse_all(&fixture, path, &[USES[1], USES[3]]);
        assert_eq!(read(&fixture, path, "/etc/a").unwrap(), b"a");
    }
    std::fs::remove_file(&second).unwrap();
    write(&fixture, &good, &[("/etc/a", b"b", 0)]).unwrap();
}

#[test]
fn what_is_no_file_system() {
    let Some(fixture) = fixture() else { return };
    for (name, bytes) in [("empty", 0), ("short", 1500), ("zeros", 1 << 20)] {
        let path = fixture.state.join(name);
        file(&path, bytes);
        refuse_all(&fixture, &path, &USES[..2]);
    }
    // Only the magic number is right.
    let path = fixture.state.join("hollow");
    let hollow = file(&path, 1 << 20);
    std::os::unix::fs::FileExt::write_all_at(&hollow, &[0x53, 0xEF], 1024 + 0x38).unwrap();
    failure(read(&fixture, &path, "/etc/a"));
    failure(write(&fixture, &path, &[("/etc/a", b"x", 0)]));
}

#[test]
fn an_image_in_use_is_not_written() {
    let Some(fixture) = fixture() else { return };
    let good = image(&fixture, "good", 8, &[("etc/a", b"a")]);
    file(&fixture.state.join("cow"), 1 << 20);
    let open = std::fs::File::options().read(true).write(true).open(&good).unwrap();
    for read_only in [true, false] {
        let device = LoopDevice::attach(&open, read_only).unwrap();
        refuse_all(&fixture, &good, &[USES[1], USES[3]]);
        if !read_only {
            refuse_all(&fixture, &good, &[USES[2]]);
        }
        assert_eq!(read(&fixture, &good, "/etc/a").unwrap(), b"a");
        drop(device);
    }
    // Two that only read can share it: this goes on to the device-mapper.
    let device = LoopDevice::attach(&open, true).unwrap();
    if !Path::new("/dev/mapper/control").exists() {
        let error = failure(create(&fixture, &good, &fixture.state.join("cow")));
        assert!(error.contains("the device-mapper"), "{error}");
    }
    drop(device);
    // Mounted somewhere, or not unmounted.
    debugfs(&good, "feature needs_recovery");
    refuse_all(&fixture, &good, &[USES[1]]);
    assert_eq!(read(&fixture, &good, "/etc/a").unwrap(), b"a");
    debugfs(&good, "feature -needs_recovery");
    write(&fixture, &good, &[("/etc/a", b"b", 0)]).unwrap();
}

#[test]
fn what_is_no_regular_file_in_the_image() {
    let Some(fixture) = fixture() else { return };
    let good = image(&fixture, "good", 8, &[("etc/a", b"a"), ("file", b"f")]);
    for command in [
        "symlink /link /etc/a",
        "symlink /out /../../../etc/passwd",
        "symlink /folder /etc",
        "symlink /loop /loop",
        "symlink /dangling /nowhere",
        "mknod pipe p",
        "mknod disk b 7 0",
        "mknod null c 1 3",
    ] {
        debugfs(&good, command);
    }
    let before = picture(&fixture);
    for path in ["/link", "/out", "/etc", "/pipe", "/disk", "/null", "/loop", "/dangling"] {
        assert_eq!(refusal(read(&fixture, &good, path)).parameter, "guest_path", "{path}");
        let result = write(&fixture, &good, &[("/first", b"x", 0), (path, b"x", 0)]);
        assert_eq!(refusal(result).parameter, "guest_path", "{path}");
    }
    for path in ["/nothing", "/etc/nothing", "/file/below", "/dangling/a", "/pipe/a"] {
        assert_eq!(refusal(read(&fixture, &good, path)).parameter, "guest_path", "{path}");
    }
    for path in ["/file/below", "/folder/a", "/folder/new", "/dangling/a", "/null/a", "/out/x"] {
        let result = write(&fixture, &good, &[("/first", b"x", 0), (path, b"x", 0)]);
        assert_eq!(refusal(result).parameter, "guest_path", "{path}");
    }
    let twice: [&[(&str, &[u8], u32)]; 3] = [
        &[("/a", b"1", 0), ("/a", b"2", 0)],
        &[("/a", b"1", 0), ("/a/b", b"2", 0)],
        &[("/a/b", b"1", 0), ("/a b", b"1", 0), ("/a-b", b"1", 0), ("/a", b"2", 0)],
    ];
    for files in twice {
        assert_eq!(refusal(write(&fixture, &good, files)).parameter, "files");
    }
    assert_same(&fixture, &before);
    // The neighbours: a link between folders leads on inside when it is read.
    assert_eq!(read(&fixture, &good, "/folder/a").unwrap(), b"a");
    write(&fixture, &good, &[("/a/b", b"1", 0), ("/a b", b"2", 0), ("/a-b", b"3", 0)]).unwrap();
    assert_eq!(read(&fixture, &good, "/a b").unwrap(), b"2");
}

/// What a cow file says it has costs the kernel memory for each chunk: it can say no more than there
/// are chunks in the image.
#[test]
fn a_cow_file_has_no_room_for_more_than_its_image() {
    let Some(fixture) = fixture() else { return };
    const MIB: u64 = 1 << 20;
    let good = fixture.state.join("good");
    // As the daemon makes them: 16 bytes about each chunk of 4 KiB, and 1 MiB of headers.
    for size in [1 << 12, 5 * MIB + 1000, 128 * MIB, 1 << 40] {
        let image = file(&good, size);
        let fits = fixture.state.join("fits");
        let made = file(&fits, size + size / 128 + MIB);
        if !Path::new("/dev/mapper/control").exists() {
            let error = failure(create(&fixture, &good, &fits));
            assert!(error.contains("the device-mapper"), "{size}: {error}");
        }
        // Long by holes, as an attacker's is.
        made.set_len(size + size / 128 + 3 * MIB).unwrap();
        // A picture has all bytes of all files.
        let before = (size < MIB).then(|| picture(&fixture));
        let refusal = refusal(create(&fixture, &good, &fits));
        assert_eq!(refusal.parameter, "cow_path", "{size}");
        assert!(refusal.to_string().contains("longer than"), "{refusal}");
        before.iter().for_each(|before| assert_same(&fixture, before));
        drop((image, made));
        std::fs::remove_file(&good).unwrap();
        std::fs::remove_file(&fits).unwrap();
    }
}
