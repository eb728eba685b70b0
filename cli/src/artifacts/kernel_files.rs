//! A kernel's files in a directory, on their way to the daemon as a tar.
//!
//! | in the directory | becomes |
//! |---|---|
//! | `bzImage`, `vmlinuz`, `vmlinuz-*`, the same in `boot/` | `bzImage` |
//! | `vmlinux`, the same in `boot/` | `vmlinux` |
//! | `config`, `.config`, `config-*`, the same in `boot/` | `config` |
//! | `lib/modules/VERSION/`, `modules/VERSION/`, `modules/` | `modules/` |
//!
//! What the directory names is opened beneath it and never through a link, so that it cannot make
//! anyone import another file of the user's.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::thread::JoinHandle;

use rustix::fs::{Dir, FileType, Mode, OFlags};

use crate::beneath;
use crate::error::CliError;
use crate::table;

/// Links of a module tree to where it was built.
const LEFT_OUT: [&str; 2] = ["build", "source"];
/// Deeper than any module tree.
const DEEPEST: usize = 16;
/// More than any module tree has.
const MOST_FILES: usize = 100_000;

/// A file to be sent.
#[derive(Debug, PartialEq, Eq)]
struct Part {
    /// Its path below the directory.
    path: String,
    /// Its name in the tar.
    name: String,
}

/// A kernel's files, found and not yet read.
#[derive(Debug)]
pub struct KernelFiles {
    root: OwnedFd,
    parts: Vec<Part>,
    /// What of the directory is not taken.
    pub left_out: Vec<String>,
}

/// A tar that is being made.
#[derive(Debug)]
pub struct KernelTar {
    reader: io::PipeReader,
    writer: JoinHandle<Result<(), CliError>>,
}

impl KernelTar {
    /// Says whether everything was written.
    pub fn finish(self) -> Result<(), CliError> {
        drop(self.reader);
        self.writer.join().unwrap_or_else(|_| Err(CliError::new("cannot pack the kernel")))
    }
}

impl Read for KernelTar {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.reader.read(buffer)
    }
}

/// Whether an open file is a kernel and no package: a bzImage, or an ELF file.
pub fn name_of_bare_kernel(file: &File) -> Option<&'static str> {
    let mut head = [0; 0x206];
    file.read_exact_at(&mut head, 0).ok()?;
    if head.starts_with(b"\x7fELF") {
        return Some("vmlinux");
    }
    (head[0x202..] == *b"HdrS").then_some("bzImage")
}

/// Packs one file under a name.
pub fn pack_one(file: File, name: &'static str) -> Result<KernelTar, CliError> {
    pack(move |tar| {
        let size = file.metadata()?.len();
        tar.append_data(&mut header(size), name, file.take(size))
    })
}

fn pack(
    write: impl FnOnce(&mut tar::Builder<io::PipeWriter>) -> io::Result<()> + Send + 'static,
) -> Result<KernelTar, CliError> {
    let failed = |error: &io::Error| CliError::new("cannot pack the kernel's files").because(error);
    let (reader, writer) = io::pipe().map_err(|error| failed(&error))?;
    let writer = std::thread::spawn(move || {
        let mut tar = tar::Builder::new(writer);
        match write(&mut tar).and_then(|()| tar.finish()) {
            // Whoever reads has given up, and says why.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
            other => other.map_err(|error| failed(&error)),
        }
    });
    Ok(KernelTar { reader, writer })
}

fn header(size: u64) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_mode(0o644);
    header.set_size(size);
    header
}

impl KernelFiles {
    /// Finds a kernel's files in a directory.
    pub fn find(path: &Path) -> Result<Self, CliError> {
        let failed = |error: &(dyn std::error::Error + 'static)| {
            CliError::new(format!("cannot import the kernel in {}", path.display())).because(error)
        };
        let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC;
        let root = rustix::fs::open(path, flags, Mode::empty()).map_err(|error| failed(&error))?;
        let mut found = Self { root, parts: Vec::new(), left_out: Vec::new() };
        found.look().map_err(|problem| failed(&problem))?;
        if !found.parts.iter().any(|part| matches!(part.name.as_str(), "bzImage" | "vmlinux")) {
            return Err(failed(&Problem::NoKernel));
        }
        Ok(found)
    }

    /// Packs them.
    pub fn pack(self) -> Result<KernelTar, CliError> {
        pack(move |tar| {
            for part in &self.parts {
                let file = File::from(beneath::open(&self.root, &part.path, OFlags::RDONLY)?);
                let metadata = file.metadata()?;
                if !metadata.is_file() {
                    return Err(io::Error::other(format!("{} has changed", part.path)));
                }
                let size = metadata.len();
                tar.append_data(&mut header(size), &part.name, file.take(size))?;
            }
            Ok(())
        })
    }

    fn look(&mut self) -> Result<(), Problem> {
        self.look_for_kernel("")?;
        let tree = self.module_tree()?;
        if let Some(tree) = tree {
            self.add_modules(&tree, "", 0)?;
        }
        Ok(())
    }

    /// Takes the kernel and its configuration of the directory itself, or of `boot/`.
    fn look_for_kernel(&mut self, folder: &str) -> Result<(), Problem> {
        for (name, kind) in self.list(folder)? {
            let path = format!("{folder}{name}");
            let part = match name.as_str() {
                "bzImage" | "vmlinuz" => "bzImage",
                "vmlinux" => "vmlinux",
                "config" | ".config" => "config",
                _ if name.starts_with("vmlinuz-") => "bzImage",
                _ if name.starts_with("config-") => "config",
                "boot" if folder.is_empty() && kind == FileType::Directory => {
                    self.look_for_kernel("boot/")?;
                    continue;
                }
                "lib" | "modules" if folder.is_empty() => continue,
                _ => {
                    self.left_out.push(path);
                    continue;
                }
            };
            only_a_file(&path, kind)?;
            if let Some(other) = self.parts.iter().find(|other| other.name == part) {
                return Err(Problem::Two { one: other.path.clone(), other: path });
            }
            self.parts.push(Part { path, name: part.to_owned() });
        }
        Ok(())
    }

    /// Finds the one module tree there is.
    fn module_tree(&self) -> Result<Option<String>, Problem> {
        for folder in ["lib/modules/", "modules/lib/modules/", "modules/"] {
            let entries = match self.list(folder) {
                Ok(entries) => entries,
                Err(Problem::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                    continue;
                }
                Err(problem) => return Err(problem),
            };
            let is_version = |name: &str| name.starts_with(|first: char| first.is_ascii_digit());
            let versions: Vec<_> = entries
                .iter()
                .filter(|(name, kind)| *kind == FileType::Directory && is_version(name))
                .map(|(name, _)| name)
                .collect();
            return match versions[..] {
                [version] => Ok(Some(format!("{folder}{version}/"))),
                [one, other, ..] => Err(Problem::Two {
                    one: format!("{folder}{one}"),
                    other: format!("{folder}{other}"),
                }),
                [] if folder == "modules/" => Ok(Some(folder.to_owned())),
                [] => continue,
            };
        }
        Ok(None)
    }

    fn add_modules(&mut self, tree: &str, below: &str, depth: usize) -> Result<(), Problem> {
        let too_much = || Problem::TooMuch { path: format!("{tree}{below}") };
        if depth > DEEPEST {
            return Err(too_much());
        }
        for (name, kind) in self.list(&format!("{tree}{below}"))? {
            if kind == FileType::Symlink && LEFT_OUT.contains(&name.as_str()) {
                continue;
            }
            if kind == FileType::Directory {
                self.add_modules(tree, &format!("{below}{name}/"), depth + 1)?;
                continue;
            }
            let path = format!("{tree}{below}{name}");
            only_a_file(&path, kind)?;
            if self.parts.len() >= MOST_FILES {
                return Err(too_much());
            }
            self.parts.push(Part { path, name: format!("modules/{below}{name}") });
        }
        Ok(())
    }

    /// Lists a folder by name, what each is being the thing itself and never what a link leads to.
    fn list(&self, folder: &str) -> Result<Vec<(String, FileType)>, Problem> {
        let shown = if folder.is_empty() { "." } else { folder.trim_end_matches('/') };
        let failed = |error: rustix::io::Errno| match error {
            rustix::io::Errno::LOOP => Problem::Kind { path: shown.to_owned(), kind: "a link" },
            error => Problem::Io { path: shown.to_owned(), source: error.into() },
        };
        let directory = beneath::open(&self.root, shown, OFlags::DIRECTORY).map_err(failed)?;
        let mut entries = Vec::new();
        for entry in Dir::read_from(&directory).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let name = entry.file_name();
            if matches!(name.to_bytes(), b"." | b"..") {
                continue;
            }
            let name = name.to_str().map_err(|_| Problem::Name { path: shown.to_owned() })?;
            let kind = match entry.file_type() {
                FileType::Unknown => {
                    let flags = rustix::fs::AtFlags::SYMLINK_NOFOLLOW;
                    let status = rustix::fs::statat(&directory, name, flags).map_err(failed)?;
                    FileType::from_raw_mode(status.st_mode)
                }
                known => known,
            };
            entries.push((name.to_owned(), kind));
        }
        entries.sort_unstable_by(|one, other| one.0.cmp(&other.0));
        Ok(entries)
    }
}

fn only_a_file(path: &str, kind: FileType) -> Result<(), Problem> {
    let kind = match kind {
        FileType::RegularFile => return Ok(()),
        FileType::Symlink => "a link",
        FileType::Directory => "a directory",
        FileType::BlockDevice | FileType::CharacterDevice => "a device",
        _ => "no file",
    };
    Err(Problem::Kind { path: path.to_owned(), kind })
}

/// Why a directory's kernel is not imported.
#[derive(Debug, thiserror::Error)]
enum Problem {
    #[error("there is no bzImage, vmlinuz or vmlinux in it or in its boot/")]
    NoKernel,
    #[error("{} and {} are both there", table::printable(one), table::printable(other))]
    Two { one: String, other: String },
    #[error("{} is {kind}; only files of the directory itself are taken", table::printable(path))]
    Kind { path: String, kind: &'static str },
    #[error("a name in {} is not UTF-8", table::printable(path))]
    Name { path: String },
    #[error("{} has more than a module tree has", table::printable(path))]
    TooMuch { path: String },
    #[error("read {}", table::printable(path))]
    Io {
        path: String,
        #[source]
        source: io::Error,
    },
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn place(files: &[&str]) -> tempfile::TempDir {
        let place = tempfile::tempdir().unwrap();
        for file in files {
            let path = place.path().join(file);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, file).unwrap();
        }
        place
    }

    fn names(place: &Path) -> Result<Vec<String>, String> {
        let files = KernelFiles::find(place).map_err(|error| error.causes.join(": "))?;
        let mut tar = files.pack().unwrap();
        let mut bytes = Vec::new();
        tar.read_to_end(&mut bytes).unwrap();
        tar.finish().unwrap();
        let mut archive = tar::Archive::new(&bytes[..]);
        let entries = archive.entries().unwrap();
        Ok(entries.map(|entry| entry.unwrap().path().unwrap().display().to_string()).collect())
    }

    #[test]
    fn the_layouts_that_kernels_come_in() {
        for (files, expected) in [
            (&["vmlinux"][..], &["vmlinux"][..]),
            (&["bzImage", "vmlinux", "initrd.img"], &["bzImage", "vmlinux"]),
            (
                &["vmlinux", "modules/6.1/kernel/fs/a.ko", "modules/6.1/modules.builtin"],
                &["vmlinux", "modules/kernel/fs/a.ko", "modules/modules.builtin"],
            ),
            (&["vmlinux", "modules/kernel/a.ko"], &["vmlinux", "modules/kernel/a.ko"]),
            (
                &["boot/vmlinuz-6.1", "boot/config-6.1", "boot/System.map", "lib/modules/6.1/x.ko"],
                &["config", "bzImage", "modules/x.ko"],
            ),
        ] {
            assert_eq!(names(place(files).path()).unwrap(), expected, "{files:?}");
        }
        let found = KernelFiles::find(place(&["vmlinux", "initrd.img", "README"]).path()).unwrap();
        assert_eq!(found.left_out, ["README", "initrd.img"]);
    }

    #[test]
    fn what_leads_elsewhere_is_refused() {
        let refused = |place: &tempfile::TempDir, word: &str| {
            let error = names(place.path()).unwrap_err();
            assert!(error.contains(word), "{word} in {error}");
        };
        refused(&place(&["README"]), "no bzImage");
        refused(&place(&["vmlinuz-1", "vmlinuz-2"]), "vmlinuz-1 and vmlinuz-2");
        refused(&place(&["vmlinux", "modules/6.1/a.ko", "modules/6.2/a.ko"]), "modules/6.1");
        let linked = place(&["x"]);
        symlink("/etc/passwd", linked.path().join("vmlinux")).unwrap();
        refused(&linked, "vmlinux is a link");
        // A link of the tree to where it was built is left out; any other is refused.
        let tree = place(&["vmlinux", "modules/6.1/a.ko"]);
        symlink("/usr/src", tree.path().join("modules/6.1/build")).unwrap();
        assert_eq!(names(tree.path()).unwrap(), ["vmlinux", "modules/a.ko"]);
        symlink("/etc", tree.path().join("modules/6.1/kernel")).unwrap();
        refused(&tree, "modules/6.1/kernel is a link");
        let outside = place(&["vmlinux"]);
        symlink("/lib/modules", outside.path().join("modules")).unwrap();
        refused(&outside, "modules is a link");
        let pipe = place(&["vmlinux", "modules/6.1/a.ko"]);
        let path = pipe.path().join("modules/6.1/b.ko");
        rustix::fs::mknodat(rustix::fs::CWD, &path, FileType::Fifo, Mode::RUSR, 0).unwrap();
        refused(&pipe, "modules/6.1/b.ko is no file");
        assert!(KernelFiles::find(Path::new("/nonexistent")).is_err());
    }

    #[test]
    fn what_is_swapped_for_a_link_is_not_read() {
        let place = place(&["vmlinux"]);
        let files = KernelFiles::find(place.path()).unwrap();
        std::fs::remove_file(place.path().join("vmlinux")).unwrap();
        symlink("/etc/passwd", place.path().join("vmlinux")).unwrap();
        let mut tar = files.pack().unwrap();
        let mut bytes = Vec::new();
        tar.read_to_end(&mut bytes).unwrap();
        assert!(tar.finish().is_err());
        assert!(!String::from_utf8_lossy(&bytes).contains("root:"));
    }
}
