//! What `banger image import` reads: a file, or the directory of an OCI layout as a tar of the blobs
//! that its images need.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Cursor, Read};
use std::os::fd::OwnedFd;
use std::path::Path;

use banger_daemon_api::artifact::FILE_SOURCE;
use banger_types::Digest;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use serde_json::Value;

use super::source::{NamedFile, Source};
use crate::beneath;
use crate::error::CliError;

/// Documents are read to find out what they name; layers are larger, or are no JSON.
const LARGEST_DOCUMENT: u64 = 4 << 20;
const MOST_BLOBS: usize = 10_000;

/// Files of the user's that an image is made of.
#[derive(Debug)]
pub enum ImageFiles {
    /// A file, or standard input.
    File(NamedFile),
    /// An OCI layout, and its directory's name.
    Layout(LayoutStream, String),
}

impl ImageFiles {
    /// Opens what `path` names; of a layout, only the images called `reference` where one is given.
    pub fn open(path: &Path, reference: Option<&str>) -> Result<Self, CliError> {
        if path.join("oci-layout").is_file() {
            let stream = LayoutStream::open(path, reference).map_err(|error| {
                CliError::new(format!("cannot read the OCI layout {}", path.display()))
                    .because(&error)
            })?;
            let full = path.canonicalize().unwrap_or_else(|_| path.to_owned());
            let name = full.file_name().unwrap_or_default().to_string_lossy().into_owned();
            return Ok(Self::Layout(stream, name));
        }
        NamedFile::open(path).map(Self::File)
    }

    /// Returns where the image comes from, for people.
    pub fn origin(&self) -> String {
        match self {
            Self::File(file) => format!("{FILE_SOURCE}{}", file.name()),
            Self::Layout(_, name) => format!("{FILE_SOURCE}{name}"),
        }
    }

    /// Returns the bytes for the daemon.
    pub fn into_source(self) -> Source {
        match self {
            Self::File(file) => Source::file(file),
            Self::Layout(stream, _) => Source::Layout(stream),
        }
    }
}

/// A tar of a layout, made while it is read.
pub struct LayoutStream {
    /// The files that are still to come, the next one last.
    rest: Vec<String>,
    root: OwnedFd,
    current: Box<dyn Read + Send>,
    ended: bool,
}

impl std::fmt::Debug for LayoutStream {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("LayoutStream").field("rest", &self.rest).finish_non_exhaustive()
    }
}

impl LayoutStream {
    fn open(path: &Path, reference: Option<&str>) -> io::Result<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = rustix::fs::open(path, flags, Mode::empty())?;
        let index: Value = serde_json::from_slice(&document(&root, "index.json")?)?;
        let mut named = Vec::new();
        for image in index["manifests"].as_array().into_iter().flatten() {
            let annotations = &image["annotations"];
            let is = |value: &Value| value.as_str() == reference;
            if reference.is_none()
                || is(&image["digest"])
                || is(&annotations["org.opencontainers.image.ref.name"])
                || is(&annotations["io.containerd.image.name"])
            {
                digests(image, &mut named);
            }
        }
        let mut blobs: BTreeSet<Digest> = BTreeSet::new();
        while let Some(digest) = named.pop() {
            let name = blob(&digest);
            // A layout need not hold what is for other platforms; the daemon says what it misses.
            let metadata = match open_beneath(&root, &name) {
                Ok(file) => file.metadata()?,
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(error),
            };
            if !blobs.insert(digest) {
                continue;
            }
            if blobs.len() > MOST_BLOBS {
                return Err(io::Error::other("it names more than 10000 blobs"));
            }
            if metadata.len() <= LARGEST_DOCUMENT
                && let Ok(value) = serde_json::from_slice(&document(&root, &name)?)
            {
                digests(&value, &mut named);
            }
        }
        let mut rest: Vec<String> = blobs.iter().map(blob).collect();
        rest.extend(["index.json", "oci-layout"].map(str::to_owned));
        Ok(Self { rest, root, current: Box::new(io::empty()), ended: false })
    }

    /// Begins the next file, or the end marker; false at the end.
    fn advance(&mut self) -> io::Result<bool> {
        let Some(name) = self.rest.pop() else {
            if self.ended {
                return Ok(false);
            }
            self.ended = true;
            self.current = Box::new(Cursor::new([0; 1024]));
            return Ok(true);
        };
        let file = open_beneath(&self.root, &name)?;
        let size = file.metadata()?.len();
        let mut header = tar::Header::new_ustar();
        header.set_path(&name)?;
        header.set_size(size);
        header.set_mode(0o644);
        header.set_cksum();
        let padding = usize::try_from(size.wrapping_neg() % 512).unwrap_or(0);
        let content = Exactly { file, rest: size };
        self.current = Box::new(
            Cursor::new(*header.as_bytes()).chain(content).chain(Cursor::new(vec![0; padding])),
        );
        Ok(true)
    }
}

impl Read for LayoutStream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let read = self.current.read(buffer)?;
            if read > 0 || buffer.is_empty() || !self.advance()? {
                return Ok(read);
            }
        }
    }
}

/// As many bytes of a file as its header promised.
struct Exactly {
    file: File,
    rest: u64,
}

impl Read for Exactly {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.file.by_ref().take(self.rest).read(buffer)?;
        if read == 0 && self.rest > 0 && !buffer.is_empty() {
            return Err(io::Error::other("a blob became shorter while it was read"));
        }
        self.rest -= read as u64;
        Ok(read)
    }
}

fn blob(digest: &Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

/// Opens a file of the layout itself: a link in it may lead to what its maker may not read.
fn open_beneath(root: &OwnedFd, name: &str) -> io::Result<File> {
    let file = beneath::open(root, name, OFlags::RDONLY);
    let file = File::from(file.map_err(|errno| match errno {
        Errno::LOOP | Errno::XDEV => io::Error::other(format!("{name} is or leads through a link")),
        errno => errno.into(),
    })?);
    if file.metadata()?.is_file() {
        return Ok(file);
    }
    Err(io::Error::other(format!("{name} is no regular file")))
}

fn document(root: &OwnedFd, name: &str) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    open_beneath(root, name)?.take(LARGEST_DOCUMENT + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > LARGEST_DOCUMENT {
        return Err(io::Error::other(format!("{name} is larger than 4 MiB")));
    }
    Ok(bytes)
}

/// Collects what anything in `value` calls its digest.
fn digests(value: &Value, found: &mut Vec<Digest>) {
    match value {
        Value::Object(fields) => {
            for (key, value) in fields {
                match value.as_str() {
                    Some(text) if key == "digest" => found.extend(text.parse::<Digest>()),
                    _ => digests(value, found),
                }
            }
        }
        Value::Array(values) => values.iter().for_each(|value| digests(value, found)),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_layout_becomes_a_tar_of_what_its_image_needs() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path();
        std::fs::create_dir_all(path.join("blobs/sha256")).unwrap();
        let id = |digit: &str| format!("sha256:{}", digit.repeat(64));
        let put = |name: &str, text: &str| std::fs::write(path.join(name), text).unwrap();
        put("oci-layout", "{}");
        let image = |digit, name| {
            format!(
                r#"{{"digest":"{}","annotations":{{"org.opencontainers.image.ref.name":"{name}"}}}}"#,
                id(digit)
            )
        };
        put(
            "index.json",
            &format!(r#"{{"manifests":[{},{}]}}"#, image("a", "one"), image("b", "two")),
        );
        let manifest = format!(r#"{{"layers":[{{"digest":"{}"}}]}}"#, id("c"));
        put(&format!("blobs/sha256/{}", "a".repeat(64)), &manifest);
        put(&format!("blobs/sha256/{}", "b".repeat(64)), "{}");
        put(&format!("blobs/sha256/{}", "c".repeat(64)), "layer");
        put(&format!("blobs/sha256/{}", "d".repeat(64)), "of nobody");
        let names = |reference| {
            let ImageFiles::Layout(stream, _) = ImageFiles::open(path, reference).unwrap() else {
                panic!("it is a layout");
            };
            let mut archive = tar::Archive::new(stream);
            let entries = archive.entries().unwrap();
            entries
                .map(|entry| {
                    let mut entry = entry.unwrap();
                    let mut text = String::new();
                    entry.read_to_string(&mut text).unwrap();
                    let name = entry.path().unwrap().display().to_string();
                    name.chars().rev().take(10).collect::<String>()
                })
                .collect::<Vec<_>>()
        };
        assert_eq!(names(Some("one")).len(), 4);
        assert_eq!(names(Some("two")).len(), 3);
        assert_eq!(names(None).len(), 5);
        assert_eq!(names(Some("none")).len(), 2);
    }
}
