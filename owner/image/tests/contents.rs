//! What goes into an image comes out of it: kinds, owners, times, attributes, holes, links.

mod support;

use std::path::Path;
use std::process::Command;

use support::{Header, Store, archive, content, debugfs, directory, file, link, pax};

#[track_caller]
fn stat_has(image: &Path, path: &str, expected: &[&str]) {
    let text = debugfs(image, &format!("stat \"{path}\""));
    let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
    for part in expected {
        assert!(text.contains(part), "{path}: expected {part:?} in {text}");
    }
}

#[test]
fn kinds_owners_modes_times_and_links() {
    let long = format!("/{}", "t/".repeat(60));
    let mut special = Header::new(b"suid", b'0', 0);
    let special = special.octal(100, 8, 0o4755).octal(108, 8, 0o303_240).octal(116, 8, 42).finish();
    let mut disk = Header::new(b"dev/sda", b'4', 0);
    let disk = disk.octal(329, 8, 8).octal(337, 8, 0).finish();
    let mut large = Header::new(b"dev/large", b'3', 0);
    let large = large.octal(329, 8, 300).octal(337, 8, 70_000).finish();
    let parts = [
        file("missing/parents/file", b"hello"),
        special,
        disk,
        large,
        Header::new(b"pipe", b'6', 0).finish(),
        link("short", b'2', "/etc/../../absolute"),
        pax(&[("linkpath", long.as_bytes())]),
        link("long", b'2', "x"),
        link("hard", b'1', "missing/parents/file"),
        link("hard-to-link", b'1', "short"),
        pax(&[("mtime", b"-1.25"), ("uid", b"4000000000")]),
        file("old", b""),
        file("/absolute/name", b"below the root"),
    ];
    let store = Store::new();
    let image = store.import(&archive(&parts)[..]).unwrap().root();
    assert_eq!(content(&image, "/missing/parents/file"), b"hello");
    stat_has(&image, "/missing/parents", &["Type: directory", "Mode: 0755", "User: 0"]);
    stat_has(&image, "/missing/parents/file", &["Type: regular", "Mode: 0644", "Links: 2"]);
    stat_has(&image, "/suid", &["Mode: 04755", "User: 100000", "Group: 42"]);
    stat_has(&image, "/dev/sda", &["Type: block special", "08:00"]);
    stat_has(&image, "/dev/large", &["Type: character special", "300:70000"]);
    stat_has(&image, "/pipe", &["Type: FIFO"]);
    stat_has(&image, "/short", &["Type: symlink", "\"/etc/../../absolute\"", "Links: 2"]);
    stat_has(&image, "/long", &["Type: symlink", "Size: 121"]);
    // debugfs shows the id 4000000000 as a signed number.
    stat_has(&image, "/old", &["User: -294967296", "Size: 0"]);
    assert_eq!(content(&image, "/absolute/name"), b"below the root");
}

#[test]
fn the_last_of_several_entries_wins() {
    let parts = [
        file("a", &[1; 9000]),
        file("a", b"second"),
        directory("b"),
        file("b", b"was an empty directory"),
        file("c", b"was a file"),
        directory("c"),
        link("d", b'2', "elsewhere"),
        file("d", b"was a link"),
        file("e", b"shared"),
        link("f", b'1', "e"),
        file("e", b"no longer shared"),
        link("g", b'1', "g2"),
    ];
    let store = Store::new();
    let image = store.import(&archive(&parts[..11])[..]).unwrap().root();
    assert_eq!(content(&image, "/a"), b"second");
    assert_eq!(content(&image, "/b"), b"was an empty directory");
    stat_has(&image, "/c", &["Type: directory"]);
    assert_eq!(content(&image, "/d"), b"was a link");
    assert_eq!(content(&image, "/f"), b"shared");
    assert_eq!(content(&image, "/e"), b"no longer shared");
    let same = [file("e", b"x"), link("e", b'1', "e")];
    store.import(&archive(&same)[..]).unwrap();
}

#[test]
fn entries_below_a_linked_directory_go_where_it_points() {
    let parts = [
        directory("usr/lib"),
        link("lib", b'2', "usr/lib"),
        file("lib/x", b"followed"),
        link("abs", b'2', "/usr/new"),
        file("abs/y", b"made"),
        link("up", b'2', "../../../usr"),
        file("up/z", b"stays inside"),
    ];
    let store = Store::new();
    let image = store.import(&archive(&parts)[..]).unwrap().root();
    assert_eq!(content(&image, "/usr/lib/x"), b"followed");
    assert_eq!(content(&image, "/usr/new/y"), b"made");
    assert_eq!(content(&image, "/usr/z"), b"stays inside");
}

#[test]
fn names_of_any_bytes() {
    let long = "n".repeat(255);
    let parts = [
        pax(&[("path", long.as_bytes())]),
        file("x", b"long"),
        pax(&[("path", b"not-utf8-\xff\xfe")]),
        file("x", b"bytes"),
        pax(&[("path", b"line\nbreak")]),
        file("x", b"newline"),
    ];
    let store = Store::new();
    let image = store.import(&archive(&parts)[..]).unwrap();
    assert_eq!(content(&image.root(), &format!("/{long}")), b"long");
    assert_eq!(image.manifest.entries, 3);
}

#[test]
fn attributes_small_large_and_access_lists() {
    let capability = b"\x01\0\0\x02\x00\x04\0\0\0\0\0\0\0\0\0\0\0\n\0\0";
    let large = [b'v'; 3000];
    let mut list = 2_u32.to_le_bytes().to_vec();
    for (tag, permissions, id) in [
        (1_u16, 6_u16, u32::MAX),
        (2, 4, 1000),
        (4, 4, u32::MAX),
        (16, 4, u32::MAX),
        (32, 4, u32::MAX),
    ] {
        list.extend(tag.to_le_bytes());
        list.extend(permissions.to_le_bytes());
        list.extend(id.to_le_bytes());
    }
    let parts = [
        pax(&[("SCHILY.xattr.security.capability", capability)]),
        file("ping", b"x"),
        pax(&[
            ("SCHILY.xattr.user.large", &large),
            ("SCHILY.xattr.user.small", b"s"),
            ("SCHILY.xattr.trusted.t", b""),
        ]),
        file("many", b"x"),
        pax(&[("SCHILY.xattr.system.posix_acl_access", &list)]),
        file("listed", b"x"),
    ];
    let store = Store::new();
    let image = store.import(&archive(&parts)[..]).unwrap().root();
    let attributes = debugfs(&image, "ea_list /ping");
    assert!(attributes.contains("security.capability (20)"), "{attributes}");
    let attributes = debugfs(&image, "ea_list /many");
    for part in ["user.large (3000)", "user.small (1) = \"s\"", "trusted.t (0)"] {
        assert!(attributes.contains(part), "{part}: {attributes}");
    }
    let attributes = debugfs(&image, "ea_list /listed");
    assert!(attributes.contains("posix_acl_access"), "{attributes}");
}

#[test]
fn sparse_files_of_every_form_stay_sparse() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("sparse");
    let sparse = std::fs::File::create(&path).unwrap();
    sparse.set_len(64 << 20).unwrap();
    for (offset, byte) in [(5_000, b'a'), (600_000, b'b'), ((64 << 20) - 1, b'z')] {
        std::os::unix::fs::FileExt::write_all_at(&sparse, &[byte], offset).unwrap();
    }
    drop(sparse);
    for format in [
        &["--format=gnu"][..],
        &["--format=posix", "--sparse-version=0.0"],
        &["--format=posix", "--sparse-version=0.1"],
        &["--format=posix", "--sparse-version=1.0"],
    ] {
        let tar = Command::new("/bin/tar")
            .args(["--sparse", "-C"])
            .arg(directory.path())
            .args(format)
            .args(["-c", "sparse"])
            .output()
            .unwrap();
        assert!(tar.status.success(), "{format:?}");
        let store = Store::new();
        let image = store.import(&tar.stdout[..]).unwrap();
        assert!(image.manifest.allocated < 4 << 20, "{format:?}");
        let out = store.directory.path().join("out");
        debugfs(&image.root(), &format!("dump /sparse {}", out.display()));
        let same = Command::new("/usr/bin/cmp").arg(&path).arg(&out).status().unwrap();
        assert!(same.success(), "{format:?}");
    }
}

#[test]
fn thousands_of_names_in_one_directory_and_of_pieces_in_one_file() {
    // Two levels of the hash index need 508 leaves of at most 15 such names.
    let names: Vec<Vec<u8>> = (0..9000)
        .flat_map(|n| {
            let name = format!("big/{n:06}-{}", "x".repeat(230));
            [pax(&[("path", name.as_bytes())]), file("x", b"")]
        })
        .collect();
    let map: String = (0..3000).map(|n| format!("{},1,", n * 8192)).collect();
    let size = (3000_u64 * 8192).to_string();
    let records: [(&str, &[u8]); 2] = [
        ("GNU.sparse.map", map.trim_end_matches(',').as_bytes()),
        ("GNU.sparse.size", size.as_bytes()),
    ];
    let mut parts = names;
    parts.extend([pax(&records), file("pieces", &[b'p'; 3000])]);
    let store = Store::new();
    // The build's own e2fsck checks every hash and extent.
    let image = store.import(&archive(&parts)[..]).unwrap();
    let bytes = content(&image.root(), "/pieces");
    assert_eq!(bytes.len(), 3000 * 8192);
    assert_eq!(bytes.iter().filter(|&&byte| byte == b'p').count(), 3000);
}

#[test]
fn an_image_says_what_it_is() {
    let mut init = Header::new(b"usr/lib/systemd/systemd", b'0', 4);
    let mut init = init.octal(100, 8, 0o755).finish();
    init.extend(support::padded(b"init".to_vec()));
    let parts = [
        init,
        link("sbin", b'2', "usr/sbin"),
        link("usr/sbin/init", b'2', "/lib/systemd/systemd"),
        link("lib", b'2', "usr/lib"),
        link("etc/os-release", b'2', "../usr/lib/os-release"),
        file(
            "usr/lib/os-release",
            b"ID=debian\nVERSION_ID=\"12\"\nPRETTY_NAME=\"Debian \x1b[31m12\"\n",
        ),
    ];
    let store = Store::new();
    let manifest = store.import(&archive(&parts)[..]).unwrap().manifest;
    assert!(manifest.has_init && !manifest.has_shell && !manifest.has_work_seed);
    let release = manifest.os_release.unwrap();
    assert_eq!((release.id.as_str(), release.version.as_deref()), ("debian", Some("12")));
    assert_eq!(release.name.as_deref(), Some("Debian [31m12"));
    let bare = store.import(&archive(&[file("bin/busybox", b"x")])[..]).unwrap().manifest;
    assert!(!bare.has_init && bare.os_release.is_none());
}
