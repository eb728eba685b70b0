//! How much memory a build takes: the peak of a process of its own, whatever the archive holds.

mod support;

use std::io::{self, Read};
use std::process::Command;

use banger_image::{Layer, LayerMediaType, LayerSource};
use banger_types::Digest;
use sha2::{Digest as _, Sha256};
use support::{Header, Store, chain};

/// An archive that is made while it is read: so many entries, made by number.
#[derive(Clone)]
struct Made {
    entries: u64,
    entry: fn(u64) -> Vec<u8>,
}

struct MadeReader {
    made: Made,
    next: u64,
    current: io::Cursor<Vec<u8>>,
}

impl LayerSource for Made {
    fn open(&self) -> io::Result<Box<dyn Read + Send>> {
        let current = io::Cursor::new(Vec::new());
        Ok(Box::new(MadeReader { made: self.clone(), next: 0, current }))
    }
}

impl Read for MadeReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let read = self.current.read(buffer)?;
            if read > 0 || self.next > self.made.entries {
                return Ok(read);
            }
            let mut bytes = Vec::new();
            while bytes.len() < 64 << 10 && self.next < self.made.entries {
                bytes.extend((self.made.entry)(self.next));
                self.next += 1;
            }
            if self.next == self.made.entries {
                bytes.extend([0; 1024]);
                self.next += 1;
            }
            self.current = io::Cursor::new(bytes);
        }
    }
}

impl Made {
    fn layer(self) -> Layer {
        let mut hash = Sha256::new();
        let (mut reader, mut buffer) = (self.open().expect("made"), vec![0; 64 << 10]);
        loop {
            match reader.read(&mut buffer).expect("made") {
                0 => break,
                read => hash.update(&buffer[..read]),
            }
        }
        Layer {
            media_type: LayerMediaType::Tar,
            digest: None,
            size: None,
            diff_id: Digest::from_sha256(hash.finalize().into()),
            source: Box::new(self),
        }
    }
}

/// What it is, how many entries, each of them, and why it is refused, if it is.
type Case = (&'static str, u64, fn(u64) -> Vec<u8>, &'static str);

const CASES: [Case; 4] = [
    ("a million empty files in one directory", 1_000_000, crowded, ""),
    ("a flood of devices", 500_000, device, ""),
    ("names of 255 bytes without end", 200_000, long_names, "bytes of names"),
    ("directories below directories without end", 20_000, deep, "files and directories"),
];

fn empty(name: &str) -> Vec<u8> {
    Header::new(name.as_bytes(), b'0', 0).finish()
}

fn crowded(number: u64) -> Vec<u8> {
    empty(&format!("file-{number:07}"))
}

/// Character and block devices, each of other numbers.
fn device(number: u64) -> Vec<u8> {
    let name = format!("dev/{number:07}");
    let mut header =
        Header::new(name.as_bytes(), if number.is_multiple_of(2) { b'3' } else { b'4' }, 0);
    header.octal(329, 8, number % 4096).octal(337, 8, number / 4096).finish()
}

fn long_names(number: u64) -> Vec<u8> {
    let name = format!("{number:0255}");
    [support::pax(&[("path", name.as_bytes())]), empty("x")].concat()
}

fn deep(number: u64) -> Vec<u8> {
    let path = format!("{number}/{}x", "d/".repeat(1000));
    [support::pax(&[("path", path.as_bytes())]), empty("x")].concat()
}

/// Builds a case's image and returns the line of this process's peak.
fn one_case(case: &str) -> String {
    let case: usize = case.parse().expect("a number");
    let (_, entries, entry, expected) = CASES[case];
    let store = Store::new();
    let layer = Made { entries, entry }.layer();
    let result = store.build(vec![layer]);
    match result {
        Ok(_) => assert_eq!(expected, ""),
        Err(error) => {
            let text = chain(&error);
            assert!(!expected.is_empty() && text.contains(expected), "{text}");
            assert_eq!(store.left(), Vec::<String>::new());
        }
    }
    let status = std::fs::read_to_string("/proc/self/status").expect("a status");
    let peak = status.lines().find(|line| line.starts_with("VmHWM")).expect("a peak");
    peak.to_owned()
}

/// Each case runs in a process of its own: this test again, which is told the case.
#[test]
fn memory_stays_bounded() {
    const MOST_MIB: u64 = 200;
    if let Ok(case) = std::env::var("BANGER_TEST_CASE") {
        println!("\n{}", one_case(&case));
        return;
    }
    for (case, (name, ..)) in CASES.iter().enumerate() {
        let output = Command::new(std::env::current_exe().expect("a path"))
            .args(["--exact", "memory_stays_bounded", "--nocapture"])
            .env("BANGER_TEST_CASE", case.to_string())
            .output()
            .expect("the test itself");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{name}: {text}{errors}");
        let peak = text.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("a peak");
        let kib: u64 = peak.trim().trim_end_matches(" kB").parse().expect("a number");
        println!("{name}: {} MiB", kib >> 10);
        assert!(kib >> 10 < MOST_MIB, "{name}: {} MiB", kib >> 10);
    }
}
