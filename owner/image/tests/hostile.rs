//! Archives that lie: each is refused with words that name the entry, and leaves nothing behind.
#![expect(clippy::unwrap_used, reason = "a failed step of a test is a failed test")]

mod support;

use std::io::{Read, Write};

use banger_image::CancelFlag;
use support::{Header, Store, archive, chain, directory, file, link, padded, pax};

#[track_caller]
fn refused(bytes: &[u8], expected: &str) {
    refused_by(&Store::new(), bytes, expected);
}

#[track_caller]
fn refused_by(store: &Store, bytes: &[u8], expected: &str) {
    let error = store.import(bytes).map(|image| image.manifest).unwrap_err();
    let text = chain(&error);
    assert!(text.contains(expected), "expected {expected:?} in {text:?}");
    assert!(!text.contains('\n') && !text.contains('\x1b'), "{text:?}");
    assert_eq!(store.left(), Vec::<String>::new());
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

#[test]
fn what_is_no_archive() {
    refused(b"", "the archive is empty");
    refused(b"hello", "ends at byte 5");
    refused(&[b'x'; 4096], "no tar header at byte 0");
    refused(&[0; 1024], "has no entries");
    refused(&archive(&[file("a", b"x"), vec![7; 512]]), "no tar header at byte 1024");
    let mut marker = archive(&[file("a", b"x")]);
    marker.truncate(1024 + 512);
    marker.extend(file("b", b"y"));
    refused(&marker, "no tar header");
}

#[test]
fn truncated_archives() {
    let whole = archive(&[directory("d"), file("d/a", &[7; 5000])]);
    // At every record, and in the middle of records; the last 512 bytes are optional.
    for end in (256..whole.len() - 1024).step_by(256) {
        refused(&whole[..end], "ends at byte");
    }
    for whole in [gzip(&whole), zstd::encode_all(&whole[..], 1).unwrap()] {
        for end in [3, whole.len() / 2, whole.len() - 3] {
            let store = Store::new();
            store.import(&whole[..end]).map(|image| image.manifest).unwrap_err();
            assert_eq!(store.left(), Vec::<String>::new(), "{end}");
        }
        Store::new().import(&whole[..]).unwrap();
    }
}

#[test]
fn damaged_and_trailing_compressed_bytes() {
    let whole = archive(&[file("a", &[7; 5000])]);
    let mut bytes = gzip(&whole);
    let last = bytes.len() - 6;
    bytes[last] ^= 1;
    refused(&bytes, "read the archive");
    let mut bytes = gzip(&whole);
    bytes.extend(b"garbage behind the member");
    refused(&bytes, "read the archive");
}

#[test]
fn paths_that_climb() {
    for name in ["../etc/passwd", "a/../../b", "..", "/../x", "a/.."] {
        refused(&archive(&[file(name, b"x")]), "climbs out");
    }
    refused(&archive(&[file("a", b"x"), link("b", b'1', "../a")]), "climbs out");
    refused(&archive(&[pax(&[("path", b"x/../../y")]), file("a", b"x")]), "climbs out");
}

#[test]
fn names_that_cannot_be() {
    let long = "n".repeat(256);
    let parts = [pax(&[("path", long.as_bytes())]), file("a", b"x")];
    refused(&archive(&parts), "longer than 255 bytes");
    refused(&archive(&[pax(&[("path", b"a\0b")]), file("a", b"x")]), "NUL byte");
    let deep = "d/".repeat(3000);
    refused(&archive(&[pax(&[("path", deep.as_bytes())]), file("a", b"x")]), "more than 4096");
    let escape = "\x1b[31mred/../x";
    refused(&archive(&[file(escape, b"x")]), "climbs out");
}

#[test]
fn links_to_nothing_and_in_circles() {
    refused(
        &archive(&[link("b", b'1', "a")]),
        "entry \"b\" has no place in the file system: its hard link's target does not exist",
    );
    refused(&archive(&[directory("a"), link("b", b'1', "a")]), "target is a directory");
    let circle = [link("a", b'2', "b"), link("b", b'2', "a"), file("a/x", b"x")];
    refused(&archive(&circle), "more than 40 symbolic links");
    refused(&archive(&[link("a", b'2', "")]), "symbolic link's target is empty");
    let target = "t".repeat(4096);
    let parts = [pax(&[("linkpath", target.as_bytes())]), link("a", b'2', "x")];
    refused(&archive(&parts), "symbolic link's target");
}

#[test]
fn files_as_directories_and_directories_as_files() {
    refused(&archive(&[file("a", b"x"), file("a/b", b"x")]), "not a directory");
    refused(&archive(&[file("d/a", b"x"), file("d", b"x")]), "not empty");
    refused(
        &archive(&[link("l", b'2', "f"), file("f", b"x"), file("l/b", b"x")]),
        "not a directory",
    );
    refused(&archive(&[file("lost+found", b"x")]), "not empty");
}

#[test]
fn headers_that_lie() {
    let mut header = Header::new(b"a", b'0', 0);
    refused(&archive(&[header.put(124, b"9x\0").finish()]), "field size");
    let mut header = Header::new(b"a", b'0', 0);
    refused(&archive(&[header.put(108, &[0x80, 1, 0, 0, 0, 0, 0, 0]).finish()]), "field owner");
    let mut negative = Header::new(b"a", b'0', 0);
    refused(&archive(&[negative.put(124, &[0xff; 12]).finish()]), "field size");
    let mut device = Header::new(b"a", b'3', 0);
    let device = device.octal(329, 8, 5000).octal(337, 8, 1).finish();
    refused(&archive(&[device]), "device number");
    refused(&archive(&[Header::new(b"a", b'M', 0).finish()]), "type 'M'");
    let huge = Header::new(b"a", b'0', 0o77_777_777_777).finish();
    refused(&archive(&[huge]), "ends at byte");
}

#[test]
fn long_headers_are_not_read_into_memory() {
    for kind in [b'L', b'K', b'x', b'g'] {
        refused(&archive(&[Header::new(b"a", kind, 1 << 30).finish()]), "more than");
    }
    refused(&archive(&[pax(&[("size", b"-5")]), file("a", b"x")]), "malformed: size");
    let mut broken = Header::new(b"pax", b'x', 4).finish();
    broken.extend(padded(b"9999".to_vec()));
    refused(&archive(&[broken, file("a", b"x")]), "extended header");
}

#[test]
fn attributes_that_do_not_fit() {
    let large = vec![b'v'; 5000];
    let parts = [pax(&[("SCHILY.xattr.user.big", &large)]), file("a", b"x")];
    refused(&archive(&parts), "extended attributes need more than one");
    let list = [pax(&[("SCHILY.xattr.system.posix_acl_access", b"junk")]), file("a", b"x")];
    refused(&archive(&list), "access control list is malformed");
}

#[test]
fn sparse_maps_that_lie() {
    let old = |pieces: &[(u64, u64)], real: u64, stored: usize| {
        let mut header = Header::new(b"a", b'S', stored as u64);
        header.put(257, b"ustar  \0");
        for (index, (offset, length)) in pieces.iter().enumerate() {
            header.octal(386 + index * 24, 12, *offset).octal(398 + index * 24, 12, *length);
        }
        let mut bytes = header.octal(483, 12, real).finish();
        bytes.extend(padded(vec![7; stored]));
        archive(&[bytes])
    };
    refused(&old(&[(0, 512), (100, 512)], 4096, 1024), "sparse map");
    refused(&old(&[(0, 512)], 100, 512), "sparse map");
    refused(&old(&[(0, 4096)], 8192, 512), "sparse map");
    refused(&old(&[], 8192, 512), "sparse map");
    let new = |map: &str| {
        let records: [(&str, &[u8]); 4] = [
            ("GNU.sparse.major", b"1"),
            ("GNU.sparse.minor", b"0"),
            ("GNU.sparse.name", b"a"),
            ("GNU.sparse.realsize", b"1000000"),
        ];
        let mut content = padded(map.as_bytes().to_vec());
        content.extend([7; 512]);
        archive(&[pax(&records), file("x", &content)])
    };
    refused(&new("99999999999\n"), "sparse map");
    refused(&new("x\n"), "sparse map");
    refused(&new("1\n0\n4096\n"), "sparse map");
    refused(&new("3\n1\n"), "sparse map");
    Store::new().import(&new("1\n5000\n512\n")[..]).unwrap();
}

#[test]
fn a_sparse_bomb_costs_nothing_or_is_refused() {
    let bomb = |size: &str| {
        let records: [(&str, &[u8]); 2] =
            [("GNU.sparse.map", b"0,1"), ("GNU.sparse.size", size.as_bytes())];
        archive(&[pax(&records), file("bomb", b"x")])
    };
    refused(&bomb("18446744073709551615"), "larger than the 16 TiB");
    let store = Store::new();
    let image = store.import(&bomb("1099511627776")[..]).unwrap();
    assert!(image.manifest.allocated < 4 << 20, "{}", image.manifest.allocated);
}

#[test]
fn too_many_entries_and_too_much_content() {
    let mut store = Store::new();
    store.limits.entries = 3;
    refused_by(&store, &archive(&vec![directory("d"); 4]), "more than 3 entries");
    store.limits.content = 10_000;
    refused_by(&store, &archive(&[file("a", &[7; 10_001])]), "more than 10000 bytes");
    // A few KiB that become many: the limit counts what comes out.
    refused_by(&store, &gzip(&archive(&[file("a", &vec![0; 8 << 20])])), "more than 10000 bytes");
    store.limits.padding = 1000;
    let mut padding = archive(&[directory("d")]);
    padding.extend([1; 2000]);
    refused_by(&store, &padding, "padding behind the archive");
}

#[test]
fn a_cancelled_build_leaves_nothing() {
    struct CancelsAfter(CancelFlag, usize);
    impl Read for CancelsAfter {
        fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
            self.1 += 1;
            if self.1 > 4 {
                self.0.cancel();
            }
            buffer.fill(7);
            Ok(buffer.len())
        }
    }
    let store = Store::new();
    let cancel = CancelFlag::default();
    let head = Header::new(b"a", b'0', 4 << 30).finish();
    let input = head.chain(CancelsAfter(cancel.clone(), 0));
    let error = store.import_with(input, &cancel).map(|image| image.manifest).unwrap_err();
    assert_eq!(error.to_string(), "cancelled");
    assert_eq!(store.left(), Vec::<String>::new());
}

#[test]
fn a_full_disk_is_said_and_leaves_nothing() {
    let store = Store::new();
    let images = store.directory.path().join("images");
    let mounted = rustix::mount::mount(
        "tmpfs",
        &images,
        "tmpfs",
        rustix::mount::MountFlags::empty(),
        Some(c"size=16m"),
    );
    if let Err(error) = mounted {
        println!("SKIP: a small tmpfs cannot be mounted here: {error}");
        return;
    }
    let result = store.import(&archive(&[file("a", &vec![7; 32 << 20])])[..]);
    let left = store.left();
    rustix::mount::unmount(&images, rustix::mount::UnmountFlags::empty()).unwrap();
    let text = chain(&result.map(|image| image.manifest).unwrap_err());
    assert!(text.contains("No space left on device"), "{text}");
    assert_eq!(left, Vec::<String>::new());
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(64))]
    #[test]
    fn flipped_bytes_never_panic_and_never_leave_anything(
        flips in proptest::collection::vec((0_usize..6000, 0_u8..), 1..8),
    ) {
        let mut bytes = archive(&[
            directory("d"),
            pax(&[("SCHILY.xattr.user.a", b"b"), ("mtime", b"5.5")]),
            file("d/a", &[7; 700]),
            link("d/b", b'1', "d/a"),
            link("c", b'2', "d"),
            Header::new(b"n", b'3', 0).octal(329, 8, 1).octal(337, 8, 3).finish(),
        ]);
        for (at, value) in flips {
            let at = at % bytes.len();
            bytes[at] ^= value;
        }
        let store = Store::new();
        // What is accepted has passed e2fsck.
        if store.import(&bytes[..]).is_err() {
            proptest::prop_assert_eq!(store.left(), Vec::<String>::new());
        }
    }
}
