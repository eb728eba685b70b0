//! Images against the reference: what `umoci unpack` makes of the same layers, as root.

mod support;

use std::path::{Path, PathBuf};

use banger_harness::tree::{Mounted, cannot_compare, differences, umoci_unpack, walk};
use banger_image::{BuildError, Layer, LayerMediaType};
use support::layered::{coded, plain};
use support::layout::write_layout;
use support::{Header, Store, archive, chain, directory, file, link, pax};

/// Builds `layers` and has umoci unpack them; our result, and what umoci says of it.
fn both(layers: &dyn Fn() -> Vec<Layer>) -> (Result<Vec<String>, BuildError>, Result<(), String>) {
    let scratch = tempfile::tempdir().expect("a directory");
    let layout = scratch.path().join("layout");
    write_layout(&layout, &layers(), "{}");
    let unpacked = umoci_unpack(&layout, &scratch.path().join("bundle"));
    let store = Store::new();
    let image = store.build(layers());
    let compared = match (image, &unpacked) {
        (Ok(image), Ok(theirs)) => {
            let mounted = Mounted::new(&image.root());
            let said = differences(&walk(mounted.0.path()), &walk(theirs));
            Ok(said)
        }
        (Ok(_), Err(_)) => Ok(Vec::new()),
        (Err(error), _) => Err(error),
    };
    (compared, unpacked.map(drop))
}

#[track_caller]
fn same(layers: &dyn Fn() -> Vec<Layer>) {
    let (ours, theirs) = both(layers);
    theirs.unwrap_or_else(|error| panic!("umoci: {error}"));
    let said = ours.unwrap_or_else(|error| panic!("{}", chain(&error)));
    assert!(said.is_empty(), "{}", said.join("\n"));
}

fn timed(name: &str, time: &str, mode: u64, owner: u64) -> Vec<u8> {
    let mut header = Header::new(name.as_bytes(), b'5', 0);
    let header = header.octal(100, 8, mode).octal(108, 8, owner).octal(116, 8, owner + 1).finish();
    [pax(&[("mtime", time.as_bytes())]), header].concat()
}

#[test]
fn every_kind_of_change_is_what_umoci_makes_of_it() {
    if let Some(reason) = cannot_compare() {
        println!("SKIP: {reason}");
        return;
    }
    let capability = [1_u8, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let long = "n".repeat(200);
    let deep = format!("deep/{}", "d/".repeat(150));
    let layers = || {
        let base = archive(&[
            timed("./", "1600000000.5", 0o711, 3),
            timed("usr", "1600000001.25", 0o755, 0),
            timed("usr/lib", "1600000002", 0o755, 0),
            timed("usr/bin", "1600000003", 0o2775, 50),
            link("lib", b'2', "usr/lib"),
            link("abs", b'2', "/usr/lib"),
            link("loopish", b'2', "../../../usr/./bin/.."),
            pax(&[
                ("SCHILY.xattr.security.capability", &capability),
                ("SCHILY.xattr.user.a", b"b"),
            ]),
            file("usr/bin/ping", &[9; 70_000]),
            file("usr/bin/git", &[7; 9000]),
            link("usr/bin/git-log", b'1', "usr/bin/git"),
            link("usr/bin/git-show", b'1', "usr/bin/git"),
            link("usr/bin/linked-link", b'2', "git"),
            link("usr/bin/hard-to-link", b'1', "usr/bin/linked-link"),
            timed("opaque", "1600000004", 0o700, 9),
            file("opaque/old", b"old"),
            timed("opaque/sub", "1600000005", 0o701, 9),
            file("opaque/sub/old", b"old"),
            timed("tree", "1600000006", 0o755, 0),
            timed("tree/below", "1600000007", 0o755, 0),
            file("tree/below/x", b"x"),
            file("plain", b"plain"),
            file("gone", b"gone"),
            timed("gone-dir", "1600000008", 0o755, 0),
            file("gone-dir/x", b"x"),
            Header::new(b"dev-null", b'3', 0).octal(329, 8, 1).octal(337, 8, 3).finish(),
            Header::new(b"dev-block", b'4', 0).octal(329, 8, 259).octal(337, 8, 300).finish(),
            Header::new(b"pipe", b'6', 0).finish(),
            pax(&[("path", long.as_bytes()), ("mtime", b"-1.75")]),
            file("x", b"long name, before 1970"),
            pax(&[("path", deep.as_bytes())]),
            directory("x"),
            pax(&[("path", b"bytes-\xff\xfe")]),
            file("x", b"not UTF-8"),
            pax(&[("uid", b"4000000000"), ("gid", b"3000000")]),
            file("owned", b""),
        ]);
        let middle = archive(&[
            file("lib/new", b"below usr/lib"),
            file("abs/absolute", b"below usr/lib"),
            file("loopish/upper", b"below usr"),
            file("lib/.wh.never", b""),
            file("usr/bin/git", b"replaced"),
            link("kept-git", b'1', "usr/bin/git-log"),
            timed("opaque", "1600000104", 0o750, 10),
            file("opaque/.wh..wh..opq", b""),
            file("opaque/new", b"new"),
            timed("opaque/sub", "1600000105", 0o702, 10),
            file("tree", b"now a file"),
            timed("plain", "1600000106", 0o755, 0),
            file("plain/below", b"now a directory"),
            file(".wh.gone", b""),
            file(".wh.gone-dir", b""),
            file("usr/bin/.wh.git-show", b""),
            pax(&[("SCHILY.xattr.user.dir", b"on a directory"), ("mtime", b"1600000107.5")]),
            Header::new(b"usr/lib", b'5', 0).octal(100, 8, 0o775).octal(108, 8, 7).finish(),
        ]);
        let top = archive(&[
            file("gone", b"again"),
            file("usr/bin/ping", b"no capability"),
            timed("gone-dir", "1600000208", 0o711, 0),
            file("opaque/.wh.new", b""),
            file("opaque/new", b"of this layer"),
            link("tree", b'2', "usr"),
            file("tree/through", b"through the new link"),
            link("late", b'1', "usr/lib/new"),
        ]);
        vec![plain(&base), gzip(&middle), plain(&top)]
    };
    same(&layers);
}

fn gzip(bytes: &[u8]) -> Layer {
    use std::io::Write;
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).expect("memory");
    coded(&encoder.finish().expect("memory"), bytes, LayerMediaType::Gzip)
}

/// Numbers that look random and are the same for the same seed (SplitMix64).
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (mixed ^ (mixed >> 31)) % limit
    }

    fn path(&mut self) -> String {
        let depth = 1 + self.below(3);
        let names: Vec<&str> = (0..depth)
            .map(|_| ["a", "b", "c", "d"][usize::try_from(self.below(4)).expect("4")])
            .collect();
        names.join("/")
    }

    fn part(&mut self) -> Vec<u8> {
        let path = self.path();
        let (above, name) = path.rsplit_once('/').unwrap_or(("", &path));
        let slash = if above.is_empty() { "" } else { "/" };
        match self.below(20) {
            0..7 => file(
                &path,
                &vec![
                    u8::try_from(self.below(250)).expect("small") + 1;
                    1 + usize::try_from(self.below(9000)).expect("small")
                ],
            ),
            7..11 => {
                let seconds = 1_500_000_000 + self.below(1 << 26);
                timed(&path, &seconds.to_string(), 0o700 + self.below(64), self.below(5))
            }
            11..13 => {
                let up = "../".repeat(usize::try_from(self.below(3)).expect("small"));
                let to = self.path();
                let slash = if self.below(4) == 0 { "/" } else { "" };
                link(&path, b'2', &format!("{slash}{up}{to}"))
            }
            13..16 => {
                let to = self.path();
                link(&path, b'1', &to)
            }
            16..18 => file(&format!("{above}{slash}.wh.{name}"), b""),
            18 => file(&format!("{above}{slash}.wh..wh..opq"), b""),
            _ => Header::new(path.as_bytes(), b'6', 0).finish(),
        }
    }
}

/// Random layers, the same for the same seed. Most hard links of random paths have no target, which
/// both refuse: those parts are left out where they are.
#[test]
fn random_layers_are_what_umoci_makes_of_them() {
    if let Some(reason) = cannot_compare() {
        println!("SKIP: {reason}");
        return;
    }
    let seed = std::env::var("BANGER_TEST_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed = seed.unwrap_or_else(|| u64::from(std::process::id()));
    let cases: u64 =
        std::env::var("BANGER_TEST_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(20);
    println!("BANGER_TEST_SEED={seed}");
    let mut compared = 0;
    for case in seed..seed + cases {
        let mut numbers = Numbers(case);
        let parts: Vec<Vec<Vec<u8>>> = (0..2 + numbers.below(3))
            .map(|_| (0..3 + numbers.below(8)).map(|_| numbers.part()).collect())
            .collect();
        let parts = acceptable(parts);
        let layers = || parts.iter().map(|parts| plain(&archive(parts))).collect::<Vec<_>>();
        let (ours, theirs) = both(&layers);
        match (ours, theirs) {
            (Ok(said), Ok(())) => {
                let shown = shown(&parts);
                assert!(said.is_empty(), "seed {case}:\n{shown}\n{}", said.join("\n"));
                compared += 1;
            }
            (Err(ours), Ok(())) => {
                panic!("seed {case}: we refuse it: {}\n{}", chain(&ours), shown(&parts));
            }
            // What umoci refuses (a name below a file) may be refused or not.
            (_, Err(_)) => {}
        }
    }
    assert!(compared * 2 > cases, "only {compared} of {cases} cases say anything");
}

/// Leaves out what we refuse, until the rest is taken.
fn acceptable(mut parts: Vec<Vec<Vec<u8>>>) -> Vec<Vec<Vec<u8>>> {
    loop {
        let store = Store::new();
        let layers = parts.iter().map(|parts| plain(&archive(parts))).collect();
        let Err(error) = store.build(layers) else { return parts };
        let BuildError::Layer { number, source, .. } = error else { panic!("{}", chain(&error)) };
        let BuildError::Entry { entry, .. } = *source else { panic!("{}", chain(&*source)) };
        let name = entry.trim_matches('"').to_owned();
        let layer = &mut parts[number - 1];
        let before = layer.len();
        layer.retain(|part| !names(part).contains(&name));
        assert!(layer.len() < before, "{entry} is not in layer {number}");
    }
}

/// The path that a part is about, and that of what a whiteout is in.
fn names(part: &[u8]) -> Vec<String> {
    let header = if part[156] == b'x' { &part[1024..] } else { part };
    let end = header.iter().position(|&byte| byte == 0).unwrap_or(100);
    let path = String::from_utf8_lossy(&header[..end]).into_owned();
    let above = PathBuf::from(&path).parent().unwrap_or(Path::new("")).display().to_string();
    if path.contains(".wh.") { vec![path, above] } else { vec![path] }
}

fn shown(parts: &[Vec<Vec<u8>>]) -> String {
    let line = |part: &Vec<u8>| {
        let header = if part[156] == b'x' { &part[1024..] } else { &part[..] };
        let text = |from: usize, to: usize| {
            String::from_utf8_lossy(&header[from..to]).trim_end_matches('\0').to_owned()
        };
        format!("  {} {} {}", char::from(header[156]), text(0, 100), text(157, 257))
    };
    let layers = parts.iter().map(|parts| parts.iter().map(line).collect::<Vec<_>>().join("\n"));
    layers.collect::<Vec<_>>().join("\n--\n")
}
