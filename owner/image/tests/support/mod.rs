//! Archives made byte by byte, and file systems looked into with `debugfs`.
#![allow(dead_code, reason = "each test file uses a part of it")]
#![expect(clippy::unwrap_used, reason = "a failed step of a test is a failed test")]

pub mod layered;
pub mod layout;

use std::path::Path;
use std::process::Command;

use banger_image::{
    BuildError, BuildOptions, CancelFlag, Image, ImageStore, ImageStoreError, Limits, NewImage,
    NoProgress,
};

/// One header of an archive, to be made right or wrong.
pub struct Header {
    pub bytes: [u8; 512],
}

impl Header {
    pub fn new(name: &[u8], kind: u8, size: u64) -> Self {
        let mut header = Self { bytes: [0; 512] };
        let length = name.len().min(100);
        header.put(0, &name[..length]);
        header.octal(100, 8, 0o644).octal(108, 8, 0).octal(116, 8, 0);
        header.octal(124, 12, size).octal(136, 12, 1_700_000_000);
        header.bytes[156] = kind;
        header.put(257, b"ustar\x0000");
        header
    }

    pub fn put(&mut self, at: usize, bytes: &[u8]) -> &mut Self {
        self.bytes[at..at + bytes.len()].copy_from_slice(bytes);
        self
    }

    pub fn octal(&mut self, at: usize, width: usize, value: u64) -> &mut Self {
        let text = format!("{value:0width$o}\0", width = width - 1);
        self.put(at, text.as_bytes())
    }

    pub fn link(&mut self, target: &[u8]) -> &mut Self {
        self.put(157, target)
    }

    pub fn finish(&mut self) -> Vec<u8> {
        self.put(148, b"        ");
        let sum: u64 = self.bytes.iter().map(|&byte| u64::from(byte)).sum();
        let text = format!("{sum:06o}\0 ");
        self.put(148, text.as_bytes());
        self.bytes.to_vec()
    }
}

/// Bytes filled up to whole records.
pub fn padded(mut bytes: Vec<u8>) -> Vec<u8> {
    bytes.resize(bytes.len().next_multiple_of(512), 0);
    bytes
}

pub fn file(name: &str, content: &[u8]) -> Vec<u8> {
    let mut bytes = Header::new(name.as_bytes(), b'0', content.len() as u64).finish();
    bytes.extend(padded(content.to_vec()));
    bytes
}

pub fn directory(name: &str) -> Vec<u8> {
    Header::new(name.as_bytes(), b'5', 0).octal(100, 8, 0o755).finish()
}

pub fn link(name: &str, kind: u8, target: &str) -> Vec<u8> {
    Header::new(name.as_bytes(), kind, 0).link(target.as_bytes()).finish()
}

/// A pax extended header with these records.
pub fn pax(records: &[(&str, &[u8])]) -> Vec<u8> {
    let mut text = Vec::new();
    for (key, value) in records {
        let rest = key.len() + value.len() + 3;
        let mut length = rest + 1;
        while length != rest + length.to_string().len() {
            length = rest + length.to_string().len();
        }
        text.extend(format!("{length} {key}=").as_bytes());
        text.extend(*value);
        text.push(b'\n');
    }
    let mut bytes = Header::new(b"pax", b'x', text.len() as u64).finish();
    bytes.extend(padded(text));
    bytes
}

/// An archive of these parts and the end marker.
pub fn archive(parts: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = parts.concat();
    bytes.extend([0; 1024]);
    bytes
}

/// A store in a temporary directory.
pub struct Store {
    pub directory: tempfile::TempDir,
    pub store: ImageStore,
    pub limits: Limits,
}

impl Store {
    pub fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let store = ImageStore::open(directory.path().join("images")).unwrap();
        Self { directory, store, limits: Limits::default() }
    }

    pub fn import(&self, input: impl std::io::Read) -> Result<Image, BuildError> {
        self.import_with(input, &CancelFlag::default())
    }

    pub fn import_with(
        &self,
        input: impl std::io::Read,
        cancel: &CancelFlag,
    ) -> Result<Image, BuildError> {
        let new = NewImage {
            name: "test".parse().unwrap(),
            source: "test".into(),
            kernel: None,
            replace: true,
        };
        let options = BuildOptions {
            size: 64 << 20,
            free: 1 << 20,
            limits: self.limits,
            ..BuildOptions::default()
        };
        match self.store.import(&new, input, &options, &NoProgress, cancel) {
            Ok(image) => Ok(image),
            Err(ImageStoreError::Build { source, .. }) => Err(source),
            Err(other) => panic!("{other:?}"),
        }
    }

    /// What is in the store's directory.
    pub fn left(&self) -> Vec<String> {
        std::fs::read_dir(self.directory.path().join("images"))
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect()
    }
}

/// Runs one `debugfs` command and returns what it prints.
pub fn debugfs(image: &Path, command: &str) -> String {
    let output = Command::new("/usr/sbin/debugfs").args(["-R", command]).arg(image).output();
    String::from_utf8_lossy(&output.unwrap().stdout).into_owned()
}

pub fn content(image: &Path, path: &str) -> Vec<u8> {
    let output = Command::new("/usr/sbin/debugfs")
        .args(["-R", &format!("cat \"{path}\"")])
        .arg(image)
        .output();
    output.unwrap().stdout
}

/// The whole chain of an error's causes.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        next = cause.source();
    }
    text
}
