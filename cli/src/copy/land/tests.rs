//! What hostile machines send, and what good ones do.

use std::os::unix::fs::{PermissionsExt, symlink};

use super::*;

const FILE: EntryType = EntryType::Regular;
const DIRECTORY: EntryType = EntryType::Directory;
const LINK: EntryType = EntryType::Link;
const SYMLINK: EntryType = EntryType::Symlink;

/// Adds an entry whose path and link are written as they are, however wrong.
fn add(out: &mut Vec<u8>, path: &[u8], kind: EntryType, link: &[u8], data: &[u8]) {
    for (name, kind) in [(path, EntryType::GNULongName), (link, EntryType::GNULongLink)] {
        if name.len() > 100 {
            add(out, b"././@LongLink", kind, b"", &[name, b"\0"].concat());
        }
    }
    let mut header = tar::Header::new_gnu();
    let fit = |text: &[u8]| text.len().min(100);
    header.as_old_mut().name[..fit(path)].copy_from_slice(&path[..fit(path)]);
    header.as_old_mut().linkname[..fit(link)].copy_from_slice(&link[..fit(link)]);
    header.set_entry_type(kind);
    header.set_size(data.len() as u64);
    header.set_mode(0o6751);
    header.set_mtime(1_000_000);
    header.set_cksum();
    out.extend_from_slice(header.as_bytes());
    out.extend_from_slice(data);
    out.resize(out.len().next_multiple_of(512), 0);
}

/// Path, kind, link target.
type Entry<'a> = (&'a str, EntryType, &'a str);

fn archive(entries: &[Entry<'_>]) -> Vec<u8> {
    let mut out = Vec::new();
    for (path, kind, link) in entries {
        let data: &[u8] = if *kind == FILE { b"data" } else { b"" };
        add(&mut out, path.as_bytes(), *kind, link.as_bytes(), data);
    }
    out.resize(out.len() + 1024, 0);
    out
}

/// Lands what the guest has called `src` at a path.
fn land(path: &Path, archive: &[u8]) -> Result<Tally, String> {
    landing(path, false).unpack(archive).map_err(|error| error.causes.join(": "))
}

fn landing(path: &Path, contents: bool) -> Landing {
    let root = PathBuf::from("src");
    let name = Some(root.clone());
    Landing { path: path.to_owned(), name, root, contents, is_no_link: false }
}

fn names(directory: &Path) -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}

#[test]
fn hostile_archives_change_nothing_outside() {
    let outside = tempfile::tempdir().unwrap();
    let victim = outside.path().join("victim");
    std::fs::write(&victim, "safe").unwrap();
    let (out, file) = (outside.path().to_str().unwrap(), victim.to_str().unwrap());
    let top = ("src", DIRECTORY, "");
    let absolute = format!("{out}/victim");
    let long = format!("src/{}", "x/".repeat(3000));
    let hostile: Vec<(&str, Vec<Entry>)> = vec![
        ("absolute", vec![top, (&absolute, FILE, "")]),
        ("absolute first", vec![(&absolute, FILE, "")]),
        ("climbing", vec![top, ("src/../../victim", FILE, "")]),
        ("climbing at the end", vec![top, ("src/..", DIRECTORY, "")]),
        ("something else", vec![top, ("other", FILE, "")]),
        ("something else first", vec![("other", FILE, "")]),
        ("a name that only begins like it", vec![top, ("src2/x", FILE, "")]),
        ("through a link", vec![top, ("src/l", SYMLINK, out), ("src/l/victim", FILE, "")]),
        ("through the link it is", vec![("src", SYMLINK, out), ("src/victim", FILE, "")]),
        ("through a link here", vec![top, ("src/l", SYMLINK, "."), ("src/l/x", FILE, "")]),
        ("directory over a link", vec![top, ("src/l", SYMLINK, out), ("src/l", DIRECTORY, "")]),
        ("new below a link", vec![top, ("src/l", SYMLINK, out), ("src/l/new/x", FILE, "")]),
        ("absolute hard link", vec![top, ("src/h", LINK, file), ("src/h", FILE, "")]),
        ("climbing hard link", vec![top, ("src/h", LINK, "src/../../victim")]),
        ("hard link elsewhere", vec![top, ("src/h", LINK, "mine")]),
        (
            "hard link through a link",
            vec![top, ("src/l", SYMLINK, out), ("src/h", LINK, "src/l/victim")],
        ),
        ("hard link to a link", vec![top, ("src/l", SYMLINK, file), ("src/h", LINK, "src/l")]),
        ("hard link to a directory", vec![top, ("src/h", LINK, "src")]),
        ("hard link to the user's own", vec![top, ("src/h", LINK, "src/own")]),
        ("character device", vec![top, ("src/d", EntryType::Char, "")]),
        ("block device", vec![top, ("src/d", EntryType::Block, "")]),
        ("a file that says it has holes", vec![top, ("src/s", EntryType::GNUSparse, "")]),
        ("extended header", vec![top, ("src/x", EntryType::XHeader, "")]),
        ("global header", vec![top, ("src/x", EntryType::XGlobalHeader, "")]),
        ("unknown kind", vec![top, ("src/u", EntryType::new(b'Z'), "")]),
        ("long path", vec![top, (&long, FILE, "")]),
        ("file over a directory", vec![top, ("src/e", DIRECTORY, ""), ("src/e", FILE, "")]),
        ("directory over a file", vec![top, ("src/f", FILE, ""), ("src/f", DIRECTORY, "")]),
        ("below a file", vec![top, ("src/f", FILE, ""), ("src/f/x", FILE, "")]),
        ("no name", vec![top, ("", FILE, "")]),
    ];
    for (what, entries) in hostile {
        let inside = tempfile::tempdir().unwrap();
        let mine = inside.path().join("mine");
        std::fs::write(&mine, "mine").unwrap();
        std::fs::create_dir(inside.path().join("src")).unwrap();
        std::fs::write(inside.path().join("src/own"), "own").unwrap();
        let result = land(inside.path(), &archive(&entries));
        assert!(result.is_err(), "{what}: {result:?}");
        assert_eq!(std::fs::read_to_string(&victim).unwrap(), "safe", "{what}");
        assert_eq!(names(outside.path()), ["victim"], "{what}");
        assert_eq!(std::fs::read_to_string(&mine).unwrap(), "mine", "{what}");
        assert_eq!(names(inside.path()), ["mine", "src"], "{what}");
        let left: Vec<_> = names(&inside.path().join("src"));
        assert!(!left.iter().any(|name| name.starts_with(".banger")), "{what}: {left:?}");
    }
}

#[test]
fn names_that_never_end_take_no_memory_and_claims_are_not_believed() {
    let inside = tempfile::tempdir().unwrap();
    let mut header = tar::Header::new_gnu();
    header.as_old_mut().name[..3].copy_from_slice(b"src");
    header.set_entry_type(EntryType::GNULongName);
    header.set_size(u64::MAX / 4);
    header.set_cksum();
    let endless = (&header.as_bytes()[..]).chain(io::repeat(b'x'));
    let error = landing(inside.path(), false).unpack(endless).unwrap_err();
    assert!(error.causes.join(" ").contains("4096"), "{error:?}");
    header.set_entry_type(FILE);
    header.set_cksum();
    let claim = (&header.as_bytes()[..]).chain(&b"short"[..]);
    assert!(landing(inside.path(), false).unpack(claim).is_err());
    assert!(names(inside.path()).is_empty());
}

#[test]
fn truncated_archives_are_errors_and_leave_no_half_file() {
    let full = archive(&[("src", DIRECTORY, ""), ("src/a", FILE, ""), ("src/b", FILE, "")]);
    for length in [0, 1, 100, 511, 1026, 512 + 1024 + 512 + 2] {
        let inside = tempfile::tempdir().unwrap();
        assert!(land(inside.path(), &full[..length]).is_err(), "{length}");
        let left = std::fs::read_dir(inside.path().join("src"));
        for entry in left.into_iter().flatten() {
            assert_eq!(std::fs::read(entry.unwrap().path()).unwrap(), b"data", "{length}");
        }
    }
}

#[test]
fn what_is_there_is_replaced_and_never_written_through() {
    let outside = tempfile::NamedTempFile::new().unwrap();
    let inside = tempfile::tempdir().unwrap();
    let src = inside.path().join("src");
    std::fs::create_dir(&src).unwrap();
    std::fs::set_permissions(&src, PermissionsExt::from_mode(0o700)).unwrap();
    symlink(outside.path(), src.join("f")).unwrap();
    std::fs::write(src.join("kept"), "kept").unwrap();
    let entries = [("src", DIRECTORY, ""), ("src/f", FILE, ""), ("src/g", SYMLINK, "f")];
    land(inside.path(), &archive(&entries)).unwrap();
    assert_eq!(std::fs::metadata(outside.path()).unwrap().len(), 0);
    assert!(src.join("f").symlink_metadata().unwrap().is_file());
    assert_eq!(names(&src), ["f", "g", "kept"]);
    // The user's directory is the user's.
    assert_eq!(src.metadata().unwrap().permissions().mode() & 0o7777, 0o700);
    // A link of the user's that stands where a directory of the copy goes is not followed.
    let linked = inside.path().join("linked");
    std::fs::create_dir(&linked).unwrap();
    symlink(&src, linked.join("src")).unwrap();
    assert!(land(&linked, &archive(&entries)).unwrap_err().contains("link"));
}

#[test]
fn modes_times_and_links_are_kept_and_set_user_id_is_not() {
    let inside = tempfile::tempdir().unwrap();
    let entries = [
        ("src", DIRECTORY, ""),
        ("src/f", FILE, ""),
        ("src/h", LINK, "src/f"),
        ("src/h", LINK, "src/f"),
        ("src/s", SYMLINK, "../anywhere"),
        ("src/p", EntryType::Fifo, ""),
        ("src/deep/er/f", FILE, ""),
    ];
    let tally = land(inside.path(), &archive(&entries)).unwrap();
    assert_eq!(tally, Tally { entries: 6, bytes: 8, left_out: 1 });
    let top = inside.path().join("src");
    let metadata = |name: &str| top.join(name).symlink_metadata().unwrap();
    for name in ["", "f"] {
        assert_eq!(metadata(name).mode() & 0o7777, 0o751, "{name}");
        assert_eq!(metadata(name).mtime(), 1_000_000, "{name}");
    }
    assert_eq!(metadata("f").ino(), metadata("h").ino());
    assert_eq!(metadata("f").nlink(), 2);
    assert_eq!(metadata("s").mtime(), 1_000_000);
    assert_eq!(std::fs::read_link(top.join("s")).unwrap(), Path::new("../anywhere"));
    assert_eq!(names(&top), ["deep", "f", "h", "s"]);
    let long = format!("src/{}", "n".repeat(200));
    let target = "t".repeat(300);
    let entries = [("src", DIRECTORY, ""), (&*long, SYMLINK, &*target)];
    land(inside.path(), &archive(&entries)).unwrap();
    let read = std::fs::read_link(inside.path().join(long)).unwrap();
    assert_eq!(read, Path::new(&target));
}

/// As scp(1) and tar(1) do, who else may write is for the user's umask to say.
#[test]
fn permissions_are_within_the_umask() {
    let mut tar = Vec::new();
    for (path, kind) in [(&b"src"[..], DIRECTORY), (b"src/f", FILE)] {
        add(&mut tar, path, kind, b"", b"");
    }
    let inside = tempfile::tempdir().unwrap();
    for header in tar.chunks_exact_mut(512) {
        let mut open = tar::Header::from_byte_slice(header).clone();
        open.set_mode(0o777);
        open.set_cksum();
        header.copy_from_slice(open.as_bytes());
    }
    tar.resize(tar.len() + 1024, 0);
    land(inside.path(), &tar).unwrap();
    for name in ["src", "src/f"] {
        let mode = inside.path().join(name).metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o7777, 0o777 & !umask(), "{name}");
    }
    assert_ne!(umask(), 0, "the test needs a umask");
}

#[test]
fn where_a_copy_arrives() {
    let place = tempfile::tempdir().unwrap();
    let at = |name: &str| place.path().join(name);
    let file = archive(&[("src", FILE, "")]);
    let tree = archive(&[("src", DIRECTORY, ""), ("src/x", FILE, "")]);
    // A new name, an existing file, an existing directory.
    land(&at("new"), &file).unwrap();
    land(&at("new"), &file).unwrap();
    assert_eq!(std::fs::read(at("new")).unwrap(), b"data");
    std::fs::create_dir(at("dir")).unwrap();
    land(&at("dir"), &file).unwrap();
    assert!(at("dir/src").is_file());
    land(&at("tree"), &tree).unwrap();
    assert!(at("tree/x").is_file());
    land(&at("tree"), &tree).unwrap();
    assert!(at("tree/src/x").is_file());
    land(&at("slash/"), &tree).unwrap();
    assert!(at("slash/x").is_file());
    std::fs::create_dir(at("contents")).unwrap();
    landing(&at("contents"), true).unpack(&tree[..]).unwrap();
    assert_eq!(names(&at("contents")), ["x"]);
    // A link may be one that an earlier copy brought: its place is taken, and it leads nowhere.
    let link = archive(&[("src", SYMLINK, "new")]);
    std::fs::write(at("new"), "old").unwrap();
    land(&at("link"), &link).unwrap();
    assert!(at("link").is_symlink());
    land(&at("link"), &file).unwrap();
    assert!(at("link").symlink_metadata().unwrap().is_file());
    assert_eq!(std::fs::read(at("new")).unwrap(), b"old");
    land(&at("site"), &archive(&[("src", SYMLINK, "dir")])).unwrap();
    let before = names(&at("dir"));
    for target in ["site", "site/", "site/."] {
        for tree in [&tree, &file] {
            assert!(land(&at(target), tree).unwrap_err().contains("it is a link"), "{target}");
        }
    }
    assert_eq!(names(&at("dir")), before);
    // A machine that says it is a directory, and then sends a link.
    let liar = Landing { is_no_link: true, ..landing(&at("liar"), false) };
    assert!(liar.unpack(&link[..]).is_err() && !at("liar").is_symlink());
    for (target, archive, word) in [
        ("new", &tree, "no directory"),
        ("new/", &file, "directory"),
        ("missing/", &file, "no such directory"),
        ("missing/x", &file, "open directory"),
        ("missing/x", &tree, "open directory"),
        ("tree", &archive(&[]), "nothing"),
    ] {
        let error = land(&at(target), archive).unwrap_err();
        assert!(error.to_lowercase().contains(word), "{target}: {error}");
    }
}
