//! Archives, layers and manifests made to do harm: each is refused with words that say why, or is
//! harmless inside the image. Whatever it is, memory stays small and nothing is left behind.

#[path = "../support/mod.rs"]
mod support;

mod bytes;
mod manifests;
mod paths;

use std::io::Write;

use banger_image::{BuildOptions, CancelFlag, Layer, Limits, NewImage, NoProgress, Selection};
use support::layered::plain;
use support::{Header, Store, archive, chain, content};

/// What must come of a case.
enum Outcome {
    /// The error holds these words.
    Refused(&'static str),
    /// The image is made, and this path in it has this content.
    Holds(&'static str, &'static [u8]),
}

use Outcome::{Holds, Refused};

/// What a case is about.
enum Input {
    /// Layers, the oldest first.
    Layers(Vec<Layer>),
    /// Any archive.
    Archive(Vec<u8>),
}

struct Case(&'static str, Input, Outcome);

fn layers(name: &'static str, parts: &[&[Vec<u8>]], outcome: Outcome) -> Case {
    let layers = parts.iter().map(|parts| plain(&archive(parts))).collect();
    Case(name, Input::Layers(layers), outcome)
}

fn raw(name: &'static str, bytes: &[u8], outcome: Outcome) -> Case {
    Case(name, Input::Layers(vec![plain(bytes)]), outcome)
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).expect("memory");
    encoder.finish().expect("memory")
}

fn header(name: &str, kind: u8, change: impl FnOnce(&mut Header)) -> Vec<u8> {
    let mut header = Header::new(name.as_bytes(), kind, 0);
    change(&mut header);
    header.finish()
}

#[test]
fn nothing_in_the_corpus_does_harm() {
    let parts = [
        paths::paths(),
        paths::links_and_whiteouts(),
        bytes::numbers(),
        bytes::bytes(),
        manifests::manifests(),
    ];
    let mut names = std::collections::BTreeSet::new();
    let mut problems = Vec::new();
    for Case(name, input, outcome) in parts.into_iter().flatten() {
        assert!(names.insert(name), "{name} is there twice");
        let mut store = Store::new();
        store.limits = Limits { ratio_free: 4 << 20, ..Limits::default() };
        let result = match input {
            Input::Layers(layers) => store.build(layers).map_err(|error| chain(&error)),
            Input::Archive(bytes) => take(&store, &bytes),
        };
        match (result, outcome) {
            (Ok(image), Holds(path, expected)) => {
                if content(&image.root(), path) != expected {
                    problems.push(format!("{name}: {path} has another content"));
                }
            }
            (Err(text), Refused(words)) => {
                if !text.contains(words) || text.contains(['\n', '\x1b']) {
                    problems.push(format!("{name}: expected {words:?} in {text:?}"));
                }
                if !store.left().is_empty() {
                    problems.push(format!("{name}: left {:?}", store.left()));
                }
            }
            (Ok(_), Refused(words)) => problems.push(format!("{name}: taken, not {words:?}")),
            (Err(text), Holds(..)) => problems.push(format!("{name}: refused: {text}")),
        }
    }
    assert!(problems.is_empty(), "{}", problems.join("\n"));
    assert!(names.len() >= 100, "{} cases", names.len());
    let status = std::fs::read_to_string("/proc/self/status").expect("a status");
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("a peak");
    println!("{} cases, {}", names.len(), peak.trim());
    let kib: u64 = peak.trim().trim_end_matches(" kB").parse().expect("a number");
    assert!(kib < 200 << 10, "{kib} KiB");
}

fn take(store: &Store, bytes: &[u8]) -> Result<banger_image::Image, String> {
    let new = NewImage {
        name: "test".parse().expect("a name"),
        source: "test".into(),
        kernel: None,
        replace: false,
    };
    let options = BuildOptions {
        size: 64 << 20,
        free: 1 << 20,
        limits: store.limits,
        ..BuildOptions::default()
    };
    let (selection, cancel) = (Selection::default(), CancelFlag::default());
    store
        .store
        .import_any(&new, &selection, bytes, &options, &NoProgress, &cancel)
        .map_err(|error| chain(&error))
}
