//! Turns a tar stream into an ext4 file system while it arrives.
//!
//! The order of work: read and write every entry, directories and tables, sync, `e2fsck -fn`. No
//! file of the archive ever exists on the host, so its owners, devices and links mean nothing here.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::{File, OpenOptions};
use std::io::{self, BufWriter, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use banger_types::Digest;
use uuid::Uuid;

use crate::contents::ContentsError;
use crate::ext4::{self, Ext4Error, FileContent, Kind, Writer};
use crate::layers::Layer;
use crate::limits::Limits;
use crate::progress::{CancelFlag, Cancelled, Progress};
use crate::tarball::{Archive, Entry, EntryKind, Piece, Source, SourceDigests, TarError, shown};
use crate::tools::{E2FSCK, ToolError};

/// How an image is built.
#[derive(Clone, Debug)]
pub struct BuildOptions {
    /// Bytes of the file system; it becomes larger where the content needs it.
    pub size: u64,
    /// Bytes that are free afterwards at least.
    pub free: u64,
    /// The file system's label, at most 16 bytes.
    pub label: String,
    /// What the archive may make large.
    pub limits: Limits,
    /// Bytes of the input, for progress, where they are known.
    pub input_size: Option<u64>,
}

impl Default for BuildOptions {
    /// 8 GiB, at least 4 GiB of them free. The file is sparse, so free space costs nothing.
    fn default() -> Self {
        Self {
            size: 8 << 30,
            free: 4 << 30,
            label: "banger-root".into(),
            limits: Limits::default(),
            input_size: None,
        }
    }
}

/// Why an image could not be built.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// The archive is bad or unreadable.
    #[error(transparent)]
    Archive(#[from] TarError),
    /// An entry has no place in the file system.
    #[error("entry {entry} has no place in the file system")]
    Entry {
        /// Its name, safe to show.
        entry: String,
        /// The cause.
        source: Ext4Error,
    },
    /// The file system could not be written.
    #[error("write {path}")]
    FileSystem {
        /// The image file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: Ext4Error,
    },
    /// Reading or writing a file failed.
    #[error("{action} {path}")]
    File {
        /// What was done.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The archive has no entries.
    #[error("the archive has no entries")]
    Empty,
    /// Something about one layer of several.
    #[error("layer {number} ({digest})")]
    Layer {
        /// Counted from 1, the oldest.
        number: usize,
        /// Its digest, or its diff id where it has none.
        digest: Digest,
        /// The cause; never that the build was cancelled.
        #[source]
        source: Box<BuildError>,
    },
    /// The archive is a bomb, or could be one.
    #[error(
        "the archive became {uncompressed} bytes from {compressed}: more than {limit} times as many"
    )]
    Ratio {
        /// Bytes as they came, so far.
        compressed: u64,
        /// Uncompressed bytes, so far.
        uncompressed: u64,
        /// The largest ratio allowed.
        limit: u64,
    },
    /// The file that keeps the layers' entries could not be written or read.
    #[error("keep the entries of the layers")]
    Records {
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// A layer's bytes cannot be had.
    #[error("read the layer")]
    Open {
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// A layer is not what its digest says.
    #[error("the {what} layer has the digest {found}, not {expected}")]
    LayerDigest {
        /// `compressed` or `uncompressed`.
        what: &'static str,
        /// What it should be.
        expected: Digest,
        /// What it is.
        found: Digest,
    },
    /// A layer is longer or shorter than its manifest says.
    #[error("the layer has {found} bytes, not {expected}")]
    LayerSize {
        /// What it should have.
        expected: u64,
        /// What it has.
        found: u64,
    },
    /// The finished file system could not be read back.
    #[error("read back the file system {path}")]
    ReadBack {
        /// The image file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: ContentsError,
    },
    /// A whiteout of nothing, or something below one.
    #[error("entry {entry} is no whiteout that a layer may have, nor below one")]
    Whiteout {
        /// Its name, safe to show.
        entry: String,
    },
    /// The archive has more entries or more content than allowed.
    #[error("the archive has more than {limit} {what}")]
    Limit {
        /// `entries` or `bytes of content`.
        what: &'static str,
        /// The most allowed.
        limit: u64,
    },
    /// The finished file system did not pass its check, or could not be checked.
    #[error("check the file system {path}")]
    Check {
        /// The image file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: ToolError,
    },
    /// The work was cancelled.
    #[error(transparent)]
    Cancelled(#[from] Cancelled),
}

impl BuildError {
    /// Says in which layer it happened.
    pub(crate) fn in_layer(self, index: usize, layer: &Layer) -> Self {
        match self {
            Self::Cancelled(cancelled) => Self::Cancelled(cancelled),
            error => Self::Layer {
                number: index + 1,
                digest: layer.digest.as_ref().unwrap_or(&layer.diff_id).clone(),
                source: Box::new(error),
            },
        }
    }
}

/// What an image turned out to be.
#[derive(Clone, Debug)]
pub struct BuiltImage {
    /// The file system's UUID.
    pub uuid: Uuid,
    /// Bytes of the file.
    pub size: u64,
    /// Bytes that the file takes on disk.
    pub allocated: u64,
    /// Entries of the archive.
    pub entries: u64,
    /// Digests of the input.
    pub digests: SourceDigests,
    /// From `/etc/os-release`.
    pub os_release: Option<OsRelease>,
    /// Whether there is an executable `/sbin/init` or one of its usual places.
    pub has_init: bool,
    /// Whether there is an executable `/bin/sh`.
    pub has_shell: bool,
    /// Extended attributes that could not be kept.
    pub ignored_attributes: u64,
    /// Whether a work seed was written: the image has something below `/root`.
    pub has_work_seed: bool,
}

/// The parts of `/etc/os-release` that are shown (os-release(5)).
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct OsRelease {
    /// `ID`, such as `debian`.
    pub id: String,
    /// `VERSION_ID`, such as `12`.
    pub version: Option<String>,
    /// `PRETTY_NAME`.
    pub name: Option<String>,
}

impl OsRelease {
    /// Reads the file's assignments; `None` without an `ID`. Values are cut at 100 characters and
    /// lose control characters.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let value = |key: &str| {
            text.lines().find_map(|line| {
                let value = line.strip_prefix(key)?.strip_prefix('=')?.trim();
                let value = value.trim_matches(['"', '\'']);
                let clean: String = value.chars().filter(|c| !c.is_control()).take(100).collect();
                (!clean.is_empty()).then_some(clean)
            })
        };
        Some(Self { id: value("ID")?, version: value("VERSION_ID"), name: value("PRETTY_NAME") })
    }
}

/// Where a build writes: the image, and what the image holds below `/root`.
#[derive(Clone, Copy, Debug)]
pub struct BuildPaths<'a> {
    /// The ext4 file to make.
    pub image: &'a Path,
    /// The archive of `/root`'s content to make; not left behind where there is none.
    pub work_seed: Option<&'a Path>,
}

/// Builds the image at `paths.image` from the archive that `input` yields.
///
/// On an error the files may be left incomplete: the caller owns the directory and removes it.
///
/// # Errors
/// A bad archive, a full disk, a failed check, or a cancelled build.
pub fn build_image(
    input: impl Read,
    paths: BuildPaths<'_>,
    options: &BuildOptions,
    progress: &dyn Progress,
    cancel: &CancelFlag,
) -> Result<BuiltImage, BuildError> {
    let failed = |source| BuildError::FileSystem { path: paths.image.to_owned(), source };
    let file = create(paths.image)?;
    let uuid = Uuid::new_v4();
    let writer = Writer::new(
        file,
        ext4::Options {
            size: options.size,
            grow_with_free: Some(options.free),
            uuid,
            label: options.label.clone(),
            journal: true,
        },
    )
    .map_err(failed)?;
    progress.stage("writing files");
    let source = Source::new(input).map_err(|source| TarError::Read { position: 0, source })?;
    let mut population = Population {
        writer,
        archive: Archive::new(source),
        prefix: b"",
        limits: options.limits,
        cancel,
        report: &|source: &Source<_>, position| {
            progress.bytes(source.bytes_in(), options.input_size);
            options.limits.check_ratio(source.bytes_in(), position)
        },
        content: 0,
        entries: 0,
        ignored_attributes: 0,
        releases: HashMap::new(),
        seed: paths.work_seed.map(Seed::create).transpose()?,
    };
    population.run()?;
    if population.entries == 0 {
        return Err(BuildError::Empty);
    }
    let os_release = population.os_release();
    let executable = |paths: &[&str]| paths.iter().any(|path| population.is_executable(path));
    let has_init =
        executable(&["sbin/init", "usr/lib/systemd/systemd", "lib/systemd/systemd", "etc/init"]);
    let has_shell = executable(&["bin/sh", "usr/bin/sh"]);
    let ignored = population.ignored_attributes + population.writer.ignored_attributes();
    let has_work_seed = match population.seed {
        Some(seed) => seed.finish()?,
        None => false,
    };
    let digests = population.archive.into_inner().finish();

    progress.stage("writing the file system's tables");
    let finished = population.writer.finish().map_err(failed)?;
    cancel.check()?;
    progress.stage("checking the file system");
    check(paths.image, cancel)?;
    let file_failed =
        |source| BuildError::File { action: "sync", path: paths.image.to_owned(), source };
    finished.file.sync_all().map_err(file_failed)?;
    let metadata = finished.file.metadata().map_err(file_failed)?;
    Ok(BuiltImage {
        uuid,
        size: finished.size,
        allocated: metadata.blocks() * 512,
        entries: population.entries,
        digests,
        os_release,
        has_init,
        has_shell,
        ignored_attributes: ignored,
        has_work_seed,
    })
}

/// Checks a file system without changing it.
///
/// # Errors
/// Anything that is not clean, or a missing `e2fsck`.
pub fn check(image: &Path, cancel: &CancelFlag) -> Result<(), BuildError> {
    let arguments = [OsStr::new("-f"), OsStr::new("-n"), image.as_os_str()];
    match E2FSCK.run(&arguments, Duration::from_secs(600), cancel) {
        Ok(_) => Ok(()),
        Err(ToolError::Cancelled(cancelled)) => Err(cancelled.into()),
        Err(source) => Err(BuildError::Check { path: image.to_owned(), source }),
    }
}

pub(crate) fn create(path: &Path) -> Result<File, BuildError> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .map_err(|source| BuildError::File { action: "create", path: path.to_owned(), source })
}

/// An archive being written into a file system.
pub(crate) struct Population<'a, R: Read> {
    pub(crate) writer: Writer,
    pub(crate) archive: Archive<R>,
    /// Only entries below this path are taken, without it; empty for all.
    pub(crate) prefix: &'a [u8],
    pub(crate) limits: Limits,
    pub(crate) cancel: &'a CancelFlag,
    /// Called after every piece with the archive's source and the uncompressed bytes so far.
    pub(crate) report: &'a dyn Fn(&R, u64) -> Result<(), BuildError>,
    pub(crate) content: u64,
    pub(crate) entries: u64,
    pub(crate) ignored_attributes: u64,
    /// The content of what may be the os-release file, by inode.
    pub(crate) releases: HashMap<u32, Vec<u8>>,
    pub(crate) seed: Option<Seed>,
}

/// Where the os-release file is (os-release(5)); the first is usually a link to the second.
const RELEASES: [&[u8]; 2] = [b"etc/os-release", b"usr/lib/os-release"];
const LARGEST_RELEASE: u64 = 64 << 10;

impl<R: Read> Population<'_, R> {
    /// Writes all entries, and reads the archive to its end.
    pub(crate) fn run(&mut self) -> Result<(), BuildError> {
        while let Some(mut entry) = self.archive.next_entry()? {
            self.cancel.check()?;
            self.entries += 1;
            if self.entries > self.limits.entries {
                let limit = self.limits.entries;
                return Err(BuildError::Limit { what: "entries", limit });
            }
            self.ignored_attributes += entry.ignored_attributes;
            let seeded = self.begin_seed(&entry)?;
            if !self.strip(&mut entry) {
                continue;
            }
            self.add(&entry, seeded)?;
            self.limits.check_inodes(&self.writer)?;
            (self.report)(self.archive.source(), self.archive.position())?;
        }
        self.archive.drain(self.limits.padding)?;
        Ok(())
    }

    /// Makes the entry's paths relative to the prefix; false for an entry outside of it.
    fn strip(&self, entry: &mut Entry) -> bool {
        if self.prefix.is_empty() {
            return true;
        }
        let below = |path: &[u8]| -> Option<Vec<u8>> {
            let rest = path.strip_prefix(self.prefix)?;
            if rest.is_empty() {
                return Some(Vec::new());
            }
            Some(rest.strip_prefix(b"/")?.to_vec())
        };
        let Some(path) = below(&entry.path) else { return false };
        entry.path = path;
        if let EntryKind::HardLink(target) = &mut entry.kind {
            let Some(path) = below(target) else { return false };
            *target = path;
        }
        true
    }

    fn add(&mut self, entry: &Entry, seeded: bool) -> Result<(), BuildError> {
        let metadata = &entry.metadata;
        let result = match &entry.kind {
            EntryKind::File => return self.add_file(entry, seeded),
            EntryKind::HardLink(target) => self.writer.add_hard_link(&entry.path, target),
            EntryKind::Directory => self.writer.add(&entry.path, &Kind::Directory, metadata),
            EntryKind::SymbolicLink(target) => {
                self.writer.add(&entry.path, &Kind::SymbolicLink(target.clone()), metadata)
            }
            &EntryKind::CharacterDevice(major, minor) => {
                self.writer.add(&entry.path, &Kind::CharacterDevice(major, minor), metadata)
            }
            &EntryKind::BlockDevice(major, minor) => {
                self.writer.add(&entry.path, &Kind::BlockDevice(major, minor), metadata)
            }
            EntryKind::Fifo => self.writer.add(&entry.path, &Kind::Fifo, metadata),
        };
        result.map(|_| ()).map_err(|source| at(entry, source))
    }

    fn add_file(&mut self, entry: &Entry, seeded: bool) -> Result<(), BuildError> {
        let mut content = FileContent::new();
        let keep = entry.size <= LARGEST_RELEASE && RELEASES.contains(&&*entry.path);
        let mut kept = Vec::new();
        loop {
            self.cancel.check()?;
            let result = match self.archive.next_piece()? {
                None => break,
                Some(Piece::Hole(length)) => self.writer.append_hole(&mut content, length),
                Some(Piece::Data(data)) => {
                    self.content += data.len() as u64;
                    if self.content > self.limits.content {
                        let limit = self.limits.content;
                        return Err(BuildError::Limit { what: "bytes of content", limit });
                    }
                    if keep {
                        kept.extend_from_slice(data);
                    }
                    if seeded && let Some(seed) = &mut self.seed {
                        seed.write(data)?;
                    }
                    self.writer.append(&mut content, data)
                }
            };
            result.map_err(|source| at(entry, source))?;
            (self.report)(self.archive.source(), self.archive.position())?;
        }
        let number = self
            .writer
            .add_file(&entry.path, content, &entry.metadata)
            .map_err(|source| at(entry, source))?;
        if keep {
            self.releases.insert(number, kept);
        }
        Ok(())
    }

    /// Copies the headers of an entry below `/root` to the seed.
    fn begin_seed(&mut self, entry: &Entry) -> Result<bool, BuildError> {
        let Some(seed) = &mut self.seed else { return Ok(false) };
        let inside = |path: &[u8]| path == b"root" || path.starts_with(b"root/");
        let whole = match &entry.kind {
            // A link to something outside could not be made on another disk.
            EntryKind::HardLink(target) => inside(target),
            _ => true,
        };
        if !inside(&entry.path) || !whole {
            return Ok(false);
        }
        seed.pad()?;
        seed.write(self.archive.raw_headers())?;
        seed.entries += u64::from(entry.path != b"root");
        Ok(true)
    }

    fn os_release(&self) -> Option<OsRelease> {
        RELEASES.iter().find_map(|path| {
            let found = self.writer.lookup(path, true).ok()??;
            let text = self.releases.get(&found.inode)?;
            OsRelease::parse(&String::from_utf8_lossy(text))
        })
    }

    fn is_executable(&self, path: &str) -> bool {
        let found = self.writer.lookup(path.as_bytes(), true);
        matches!(found, Ok(Some(found)) if found.mode & 0o170_000 == 0o100_000 && found.mode & 0o111 != 0)
    }
}

fn at(entry: &Entry, source: Ext4Error) -> BuildError {
    BuildError::Entry { entry: shown(&entry.path), source }
}

/// An archive of what the image holds below `/root`: its own headers and content, copied.
#[derive(Debug)]
pub(crate) struct Seed {
    path: PathBuf,
    file: BufWriter<File>,
    length: u64,
    entries: u64,
}

impl Seed {
    fn create(path: &Path) -> Result<Self, BuildError> {
        let file = BufWriter::new(create(path)?);
        Ok(Self { path: path.to_owned(), file, length: 0, entries: 0 })
    }

    fn write(&mut self, data: &[u8]) -> Result<(), BuildError> {
        self.length += data.len() as u64;
        self.file.write_all(data).map_err(|source| self.failed(source))
    }

    /// Fills the last record.
    fn pad(&mut self) -> Result<(), BuildError> {
        let padding = usize::try_from(self.length.wrapping_neg() % 512).unwrap_or(0);
        self.write(&[0; 512][..padding])
    }

    fn finish(mut self) -> Result<bool, BuildError> {
        if self.entries == 0 {
            std::fs::remove_file(&self.path).map_err(|source| self.failed(source))?;
            return Ok(false);
        }
        self.pad()?;
        self.write(&[0; 1024])?;
        self.file.flush().map_err(|source| self.failed(source))?;
        self.file.get_ref().sync_all().map_err(|source| self.failed(source))?;
        Ok(true)
    }

    fn failed(&self, source: io::Error) -> BuildError {
        BuildError::File { action: "write", path: self.path.clone(), source }
    }
}
