//! Names, links and whiteouts.

use super::Outcome::{Holds, Refused};
use super::support::{directory, file, link, pax};
use super::{Case, header, layers};

pub fn paths() -> Vec<Case> {
    let x = || file("x", b"x");
    vec![
        layers("a name that climbs", &[&[file("../etc/passwd", b"x")]], Refused("climbs out")),
        layers(
            "a name that climbs from below",
            &[&[file("a/../../b", b"x")]],
            Refused("climbs out"),
        ),
        layers(
            "a long name that climbs",
            &[&[pax(&[("path", b"a/../../y")]), x()]],
            Refused("climbs out"),
        ),
        layers("an absolute name", &[&[file("/etc/passwd", b"in")]], Holds("/etc/passwd", b"in")),
        layers("a whiteout that climbs", &[&[x(), file("../.wh.x", b"")]], Refused("climbs out")),
        layers(
            "a hard link that climbs",
            &[&[x(), link("b", b'1', "../x")]],
            Refused("climbs out"),
        ),
        layers(
            "a hard link to an absolute path",
            &[&[x(), link("b", b'1', "/x")]],
            Holds("/b", b"x"),
        ),
        layers(
            "a link to the host",
            &[&[link("a", b'2', "/etc"), file("a/new", b"in")]],
            Holds("/etc/new", b"in"),
        ),
        layers(
            "a link that climbs",
            &[&[link("a", b'2', "../../.."), file("a/new", b"in")]],
            Holds("/new", b"in"),
        ),
        layers(
            "a link of an older layer to the host",
            &[&[link("a", b'2', "/proc/self/root")], &[file("a/new", b"in")]],
            Holds("/proc/self/root/new", b"in"),
        ),
        layers(
            "links in a circle",
            &[&[link("a", b'2', "b"), link("b", b'2', "a"), file("a/x", b"x")]],
            Refused("more than 40 symbolic links"),
        ),
        layers(
            "a link to itself",
            &[&[link("a", b'2', "a"), file("a/x", b"x")]],
            Refused("more than 40 symbolic links"),
        ),
        layers(
            "a whiteout below links in a circle",
            &[&[link("a", b'2', "a")], &[file("a/.wh.x", b"")]],
            Refused("more than 40 symbolic links"),
        ),
        layers(
            "a chain of links",
            &[&(0..50)
                .map(|n| link(&format!("l{n}"), b'2', &format!("l{}", n + 1)))
                .chain([file("l0/x", b"x")])
                .collect::<Vec<_>>()],
            Refused("more than 40 symbolic links"),
        ),
        layers(
            "a parent that became a link",
            &[&[directory("a"), file("a/x", b"x")], &[link("a", b'2', "/b"), file("a/y", b"y")]],
            Holds("/b/y", b"y"),
        ),
        layers(
            "a parent that became a file",
            &[&[directory("a")], &[file("a", b"x"), file("a/y", b"y")]],
            Refused("not a directory"),
        ),
        layers(
            "a parent that is a device",
            &[&[header("a", b'3', |_| ()), file("a/y", b"y")]],
            Refused("not a directory"),
        ),
        layers(
            "a parent that is a pipe",
            &[&[header("a", b'6', |_| ()), directory("a/y")]],
            Refused("not a directory"),
        ),
        layers("the root as a file", &[&[file(".", b"x")]], Refused("in its path is empty")),
        layers(
            "the root as a link",
            &[&[link("/", b'2', "/etc")]],
            Refused("in its path is empty"),
        ),
        layers(
            "the root as a hard link",
            &[&[x(), link(".", b'1', "x")]],
            Refused("in its path is empty"),
        ),
        layers("lost+found as a file", &[&[file("lost+found", b"x")]], Refused("not empty")),
        layers("lost+found removed", &[&[x()], &[file(".wh.lost+found", b"")]], Holds("/x", b"x")),
        layers("a name with NUL", &[&[pax(&[("path", b"a\0b")]), x()]], Refused("NUL byte")),
        layers(
            "a link to NUL",
            &[&[pax(&[("linkpath", b"a\0b")]), link("a", b'2', "x")]],
            Refused("NUL byte"),
        ),
        layers(
            "a name with a newline",
            &[&[pax(&[("path", b"line\nbreak")]), x()], &[file("y", b"y")]],
            Holds("/y", b"y"),
        ),
        layers(
            "an escape sequence in a refused name",
            &[&[file("\x1b[31m/../x", b"x")]],
            Refused("\\u{1b}[31m"),
        ),
        layers(
            "a name of 256 bytes",
            &[&[pax(&[("path", &[b'n'; 256])]), x()]],
            Refused("longer than 255 bytes"),
        ),
        layers(
            "a path of more than 4 KiB",
            &[&[pax(&[("path", "d/".repeat(2049).as_bytes())]), x()]],
            Refused("more than 4096"),
        ),
        layers(
            "a path of 4 KiB",
            &[&[pax(&[("path", "d/".repeat(2000).as_bytes())]), directory("x"), file("y", b"y")]],
            Holds("/y", b"y"),
        ),
        layers(
            "a name that is not UTF-8",
            &[&[pax(&[("path", b"\xff\xfe")]), x()], &[file("y", b"y")]],
            Holds("/y", b"y"),
        ),
        layers(
            "a link target of more than 4 KiB",
            &[&[pax(&[("linkpath", &[b't'; 5000])]), link("a", b'2', "x")]],
            Refused("more than 4096"),
        ),
        layers(
            "an empty link",
            &[&[link("a", b'2', "")]],
            Refused("symbolic link's target is empty"),
        ),
    ]
}

pub fn links_and_whiteouts() -> Vec<Case> {
    let many: Vec<Vec<u8>> = std::iter::once(file("a", b"x"))
        .chain((0..65_001).map(|number| link(&format!("l{number}"), b'1', "a")))
        .collect();
    vec![
        layers(
            "a hard link to nothing",
            &[&[link("b", b'1', "a")]],
            Refused("target does not exist"),
        ),
        layers(
            "a hard link to itself",
            &[&[link("b", b'1', "b")]],
            Refused("target does not exist"),
        ),
        layers(
            "a hard link to what comes later",
            &[&[link("b", b'1', "a"), file("a", b"x")]],
            Refused("target does not exist"),
        ),
        layers(
            "a hard link to a directory",
            &[&[directory("a"), link("b", b'1', "a")]],
            Refused("target is a directory"),
        ),
        layers(
            "a hard link to what is gone",
            &[&[file("a", b"x")], &[file(".wh.a", b""), link("b", b'1', "a")]],
            Refused("target does not exist"),
        ),
        layers(
            "a hard link to what it replaces",
            &[&[directory("d"), file("d/a", b"x")], &[link("d", b'1', "d/a")]],
            Refused("target does not exist"),
        ),
        layers(
            "a hard link to an older layer's file",
            &[&[file("a", b"x")], &[link("b", b'1', "a")], &[file("a", b"y")]],
            Holds("/b", b"x"),
        ),
        layers(
            "a hard link through a circle",
            &[&[link("a", b'2', "a"), link("b", b'1', "a/x")]],
            Refused("more than 40 symbolic links"),
        ),
        layers(
            "more hard links than an inode counts",
            &[&many],
            Refused("more than 65000 hard links"),
        ),
        layers("a whiteout of nothing", &[&[file("a/.wh.", b"")]], Refused("no whiteout")),
        layers(
            "a whiteout of the directory itself",
            &[&[file("a/.wh..", b"")]],
            Refused("no whiteout"),
        ),
        layers("a whiteout of the parent", &[&[file("a/.wh...", b"")]], Refused("no whiteout")),
        layers("something below a whiteout", &[&[file(".wh.a/b", b"x")]], Refused("no whiteout")),
        layers(
            "a whiteout of a parent of its own",
            &[&[directory("a"), file("a/old", b"x")], &[file("a/new", b"new"), file(".wh.a", b"")]],
            Holds("/a/new", b"new"),
        ),
        layers(
            "an opaque root",
            &[&[file("a", b"x")], &[file("b", b"kept"), file(".wh..wh..opq", b"")]],
            Holds("/b", b"kept"),
        ),
        layers(
            "an opaque directory behind a link to the host",
            &[
                &[link("a", b'2', "/etc"), directory("etc"), file("etc/x", b"x")],
                &[file("a/.wh..wh..opq", b""), file("etc/y", b"y")],
            ],
            Holds("/etc/y", b"y"),
        ),
        layers(
            "a whiteout that is a directory",
            &[&[file("a", b"x")], &[directory(".wh.a"), file("b", b"y")]],
            Holds("/b", b"y"),
        ),
        layers(
            "what AUFS left behind",
            &[&[directory(".wh..wh.plnk"), file(".wh..wh.plnk/1.2", b"x"), file("b", b"y")]],
            Holds("/b", b"y"),
        ),
        layers(
            "a name three times",
            &[&[file("a", b"1"), directory("a"), file("a/x", b"x"), file("a", b"last")]],
            Holds("/a", b"last"),
        ),
        layers(
            "a type that changes in each layer",
            &[
                &[file("a", b"1")],
                &[directory("a"), file("a/x", b"2")],
                &[link("a", b'2', "b")],
                &[file("a", b"last")],
            ],
            Holds("/a", b"last"),
        ),
    ]
}
