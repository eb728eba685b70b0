//! Reading and writing files in images.

use std::fs::File;
use std::os::unix::fs::PermissionsExt;
use std::sync::atomic::{AtomicBool, Ordering};

use banger_privileged_sys::as_file_user;
use banger_privileged_tests::OWNER;

use crate::{
    Numbers, assert_clean, assert_same, debugfs, failure, file, fixture, image, picture, read,
    refusal, write,
};

const MIB: usize = 1 << 20;

#[test]
fn what_is_written_is_read_back() {
    let Some(fixture) = fixture() else { return };
    let image = image(&fixture, "root.ext4", 32, &[("etc/old", b"old")]);
    let all_bytes: Vec<u8> = (0..=255).cycle().take(3 * 4096 + 17).collect();
    let mut sparse = vec![0; MIB];
    sparse[500_000] = 1;
    let longest = format!("/{}", "n".repeat(255));
    let deepest = format!("/{}e", "d/".repeat(511));
    let files: Vec<(&str, &[u8], u32)> = vec![
        ("/etc/old", b"new", 0),
        ("/etc/empty", b"", 0o600),
        ("/usr/lib/a/b/c", &all_bytes, 0o4755),
        ("/sparse", &sparse, 0o1),
        ("/zeros", &[0; 65536], 0o7777),
        ("/quite long name", b"1", 0o644),
        ("/<2>", b"2", 0o644),
        ("/a dir/<2>", b"3", 0o644),
        ("/-w", b"4", 0o644),
        ("/-x/-R", b"5", 0o644),
        ("/#no comment", b"6", 0o644),
        ("/;quit", b"7", 0o644),
        ("/!true", b"8", 0o644),
        ("/$(id) & | > * ? ~", b"9", 0o644),
        ("/naïve/文字/🦀", b"10", 0o644),
        ("/%s%n", b"11", 0o644),
        ("/.banger-new", b"12", 0o644),
        ("/ leading and trailing ", b"13", 0o644),
        (&longest, b"14", 0o644),
        (&deepest, b"15", 0o644),
    ];
    // The second time all of them are there already.
    for round in 0..2 {
        write(&fixture, &image, &files).unwrap();
        assert_clean(&image);
        for (path, data, mode) in &files {
            assert_eq!(read(&fixture, &image, path).unwrap(), *data, "{path} in round {round}");
            let stat = debugfs(&image, &format!("stat \"{path}\""));
            let mode = if *mode == 0 { 0o644 } else { *mode };
            let rights = format!("Type: regular    Mode:  0{mode:03o} ");
            assert!(stat.contains(&rights), "{path}: {rights}: {stat}");
            assert!(stat.contains("User:     0   Group:     0 "), "{path}: {stat}");
        }
    }
    let folder = debugfs(&image, "stat /usr/lib/a");
    assert!(folder.contains("Type: directory    Mode:  0755 "), "{folder}");
    assert!(folder.contains("User:     0   Group:     0 "), "{folder}");
    let names = debugfs(&image, "ls -p /");
    assert_eq!(names.matches(".banger").count(), 1, "{names}");
    write(&fixture, &image, &[]).unwrap();
}

#[test]
fn a_file_of_sixteen_mebibytes_is_read_and_one_byte_more_is_refused() {
    let Some(fixture) = fixture() else { return };
    let most: Vec<u8> = (0..=250).cycle().take(16 * MIB).collect();
    let more = [most.as_slice(), b"x"].concat();
    let image = image(&fixture, "big.ext4", 64, &[("most", &most), ("more", &more)]);
    assert!(read(&fixture, &image, "/most").unwrap() == most);
    let before = picture(&fixture);
    assert_eq!(refusal(read(&fixture, &image, "/more")).parameter, "guest_path");
    // A hole that is far longer than the file system.
    debugfs(&image, "set_inode_field /more size 0x70000000000");
    let changed = picture(&fixture);
    assert_ne!(before, changed);
    assert_eq!(refusal(read(&fixture, &image, "/more")).parameter, "guest_path");
    assert_same(&fixture, &changed);
    debugfs(&image, "set_inode_field /more size 16777216");
    assert_eq!(read(&fixture, &image, "/more").unwrap().len(), 16 * MIB);
}

#[test]
fn sixteen_mebibytes_are_written_and_more_are_refused() {
    let Some(fixture) = fixture() else { return };
    let image = image(&fixture, "root.ext4", 64, &[]);
    let half = vec![b'h'; 8 * MIB];
    write(&fixture, &image, &[("/a", &half, 0), ("/b", &half, 0)]).unwrap();
    assert_clean(&image);
    let before = picture(&fixture);
    let more = write(&fixture, &image, &[("/a", &half, 0), ("/b", &half, 0), ("/c", b"x", 0)]);
    assert_eq!(refusal(more).parameter, "files");
    assert_same(&fixture, &before);
}

#[test]
fn a_full_image_keeps_what_it_had() {
    let Some(fixture) = fixture() else { return };
    let image = image(&fixture, "small.ext4", 4, &[("kept", b"kept")]);
    let content = vec![b'x'; 8 * MIB];
    let free = |text: String| {
        text.lines().find(|line| line.starts_with("Free blocks:")).unwrap().to_owned()
    };
    let before = free(debugfs(&image, "show_super_stats -h"));
    for path in ["/kept", "/new/folder/new"] {
        let error = failure(write(&fixture, &image, &[("/first", b"1", 0), (path, &content, 0)]));
        assert!(error.contains(path) && error.contains("allocate block"), "{error}");
        assert_clean(&image);
        assert_eq!(read(&fixture, &image, "/kept").unwrap(), b"kept");
        assert_eq!(read(&fixture, &image, "/first").unwrap(), b"1", "what came before is done");
    }
    assert_eq!(refusal(read(&fixture, &image, "/new")).parameter, "guest_path");
    debugfs(&image, "rm /first");
    assert_eq!(free(debugfs(&image, "show_super_stats -h")), before);
    write(&fixture, &image, &[("/kept", b"other", 0)]).unwrap();
    assert_eq!(read(&fixture, &image, "/kept").unwrap(), b"other");
}

#[test]
fn an_image_without_inodes_to_spare_stays_whole() {
    let Some(fixture) = fixture() else { return };
    let image = image(&fixture, "few.ext4", 8, &[]);
    crate::run("mke2fs", &["-q", "-F", "-t", "ext4", "-N", "16", image.to_str().unwrap()]);
    let names: Vec<String> = (0..64).map(|number| format!("/file-{number}")).collect();
    let files: Vec<(&str, &[u8], u32)> =
        names.iter().map(|name| (name.as_str(), b"x".as_slice(), 0)).collect();
    let error = failure(write(&fixture, &image, &files));
    assert!(error.contains("allocate inode"), "{error}");
    assert_clean(&image);
    assert_eq!(read(&fixture, &image, "/file-0").unwrap(), b"x");
}

#[test]
fn a_replaced_file_leaves_nothing_of_itself() {
    let Some(fixture) = fixture() else { return };
    let image = image(&fixture, "root.ext4", 16, &[("old", b"old"), ("two", b"two names")]);
    let value = fixture.own.join("value");
    std::fs::write(&value, vec![b'v'; 700]).unwrap();
    debugfs(&image, &format!("ea_set -f {} /old user.big", value.display()));
    debugfs(&image, "ln /two /other");
    debugfs(&image, "set_inode_field /two links_count 2");
    assert_clean(&image);
    assert!(!debugfs(&image, "stat /old").contains("File ACL: 0"), "it has a block of attributes");
    write(&fixture, &image, &[("/old", b"new", 0), ("/two", b"alone", 0)]).unwrap();
    assert_clean(&image);
    assert!(debugfs(&image, "stat /old").contains("File ACL: 0"));
    assert_eq!(read(&fixture, &image, "/two").unwrap(), b"alone");
    assert_eq!(read(&fixture, &image, "/other").unwrap(), b"two names");
}

#[test]
fn a_large_folder_stays_whole() {
    let Some(fixture) = fixture() else { return };
    let names: Vec<String> =
        (0..600).map(|number| format!("many/a-name-of-a-file-{number}")).collect();
    let files: Vec<(&str, &[u8])> =
        names.iter().map(|name| (name.as_str(), b"x".as_slice())).collect();
    let image = image(&fixture, "root.ext4", 16, &files);
    // An index of names, as the kernel makes it.
    let _ = std::process::Command::new("e2fsck").args(["-fyD"]).arg(&image).output().unwrap();
    assert_clean(&image);
    let new = "/many/one-more-file";
    write(&fixture, &image, &[(new, b"1", 0), ("/many/a-name-of-a-file-7", b"2", 0)]).unwrap();
    assert_clean(&image);
    assert_eq!(read(&fixture, &image, new).unwrap(), b"1");
    assert_eq!(read(&fixture, &image, "/many/a-name-of-a-file-7").unwrap(), b"2");
    assert_eq!(read(&fixture, &image, "/many/a-name-of-a-file-8").unwrap(), b"x");
}

#[test]
fn all_features_that_an_image_may_have() {
    let Some(fixture) = fixture() else { return };
    for (index, words) in [
        ["-O", "inline_data"],
        ["-O", "^extents,^64bit"],
        ["-O", "^has_journal"],
        ["-I", "128"],
        ["-b", "1024"],
    ]
    .iter()
    .enumerate()
    {
        let image = image(&fixture, &format!("{index}.ext4"), 16, &[]);
        let path = image.to_str().unwrap();
        crate::run("mke2fs", &["-q", "-F", "-t", "ext4", words[0], words[1], path]);
        let content = vec![b'c'; 100_000];
        for _ in 0..2 {
            let files: [(&str, &[u8], u32); 3] =
                [("/d/tiny", b"t", 0), ("/d/big", &content, 0), ("/d/none", b"", 0)];
            write(&fixture, &image, &files).unwrap();
            assert_clean(&image);
            for (path, data, _) in files {
                assert_eq!(read(&fixture, &image, path).unwrap(), data, "{words:?} {path}");
            }
        }
    }
}

#[test]
fn the_tools_have_no_right_that_the_owner_has_not() {
    let Some(fixture) = fixture() else { return };
    let image = image(&fixture, "root.ext4", 8, &[("a", b"a")]);
    assert_eq!(read(&fixture, &image, "/a").unwrap(), b"a");
    let mode = |mode| {
        std::fs::set_permissions(&image, std::fs::Permissions::from_mode(mode)).unwrap();
    };
    mode(0o400);
    assert_eq!(read(&fixture, &image, "/a").unwrap(), b"a");
    let error = failure(write(&fixture, &image, &[("/a", b"b", 0)]));
    assert!(error.contains("Permission denied"), "{error}");
    mode(0o000);
    let error = failure(read(&fixture, &image, "/a"));
    assert!(error.contains("Permission denied"), "{error}");
    mode(0o600);
    write(&fixture, &image, &[("/a", b"b", 0)]).unwrap();
}

#[test]
fn a_damaged_image_damages_nothing_else() {
    let Some(fixture) = fixture() else { return };
    let content = vec![b'c'; 200_000];
    let good = image(&fixture, "good.ext4", 8, &[("etc/a", b"a"), ("big", &content)]);
    let bytes = std::fs::read(&good).unwrap();
    let outside = picture(&fixture);
    let mut numbers = Numbers(0x5eed);
    for round in 0..30 {
        let bad = fixture.state.join("bad.ext4");
        let file = file(&bad, 0);
        std::fs::write(&bad, &bytes).unwrap();
        // The metadata of so small a file system lies at its beginning.
        numbers.scatter(&file, 1 + round * 40, 1 << 20);
        let _ = read(&fixture, &bad, "/etc/a");
        let _ = read(&fixture, &bad, "/big");
        let _ = write(&fixture, &bad, &[("/etc/a", b"b", 0), ("/etc/new/b", &content, 0)]);
        std::fs::remove_file(&bad).unwrap();
    }
    let state = format!("{:?} ", fixture.state);
    let others = |lines: Vec<String>| {
        lines.into_iter().filter(|line| !line.starts_with(&state)).collect::<Vec<_>>()
    };
    assert_eq!(others(picture(&fixture)), others(outside));
}

/// What the tools are given, held by their user: who runs as the owner gets at it while they run.
fn hold_placed() -> Option<File> {
    let pids = std::fs::read_dir("/proc").unwrap().flatten().map(|it| it.path());
    let of_tool = |path: &std::path::PathBuf| {
        std::fs::read_to_string(path.join("comm")).is_ok_and(|name| name == "debugfs\n")
    };
    let open = |path: std::path::PathBuf| File::open(path.join("cwd/content")).ok();
    as_file_user(OWNER, OWNER, || {
        let files = pids.filter(of_tool).filter_map(open);
        files.into_iter().find(|file| file.metadata().is_ok_and(|it| it.len() > 1 << 20))
    })
}

#[test]
fn who_holds_what_was_placed_for_a_tool_holds_no_memory() {
    let Some(fixture) = fixture() else { return };
    let image = image(&fixture, "root.ext4", 64, &[("etc/old", b"old")]);
    let content = vec![7; 8 * MIB];
    let ends = AtomicBool::new(false);
    let held = std::thread::scope(|scope| {
        let holder = scope.spawn(|| {
            let mut held = None;
            while held.is_none() && !ends.load(Ordering::Relaxed) {
                held = hold_placed();
            }
            held
        });
        for _ in 0..50 {
            write(&fixture, &image, &[("/content", &content, 0)]).unwrap();
            if holder.is_finished() {
                break;
            }
        }
        ends.store(true, Ordering::Relaxed);
        holder.join().unwrap()
    });
    let held = held.expect("debugfs was never caught in fifty runs");
    let now = held.metadata().unwrap();
    assert_eq!((now.len(), std::os::unix::fs::MetadataExt::blocks(&now)), (0, 0));
}
