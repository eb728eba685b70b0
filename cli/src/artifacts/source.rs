//! Where the bytes of an image or kernel come from.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;
use std::sync::Arc;

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::kernel_files::{self, KernelFiles, KernelTar};
use super::layout::LayoutStream;
use crate::debian::{self, DownloadedDeb, ImageRequest, KernelPackage};
use crate::error::CliError;

/// Receives what a source is doing, in words.
pub type Stages = Arc<dyn Fn(&str) + Send + Sync>;

/// A stream of bytes that may fail at its end.
pub enum Source {
    /// A file, or standard input.
    File(File),
    /// The files of an OCI layout, as a tar.
    Layout(LayoutStream),
    /// A root file system that is being made.
    Debian(debian::TarStream),
    /// A kernel's files.
    Kernel(KernelTar),
    /// A downloaded package; its directory is removed with it.
    Package {
        /// The package.
        file: File,
        /// Held for its directory.
        _package: DownloadedDeb,
    },
}

impl Source {
    /// Streams what the user named.
    pub fn file(named: NamedFile) -> Self {
        Self::File(named.file)
    }

    /// Streams a kernel's files, or the one file that the user named: a kernel, or a package.
    pub fn kernel(named: NamedKernel) -> Result<Self, CliError> {
        match named {
            NamedKernel::Directory { files, .. } => Ok(Self::Kernel(files.pack()?)),
            NamedKernel::File(named) => match kernel_files::name_of_bare_kernel(&named.file) {
                Some(name) => Ok(Self::Kernel(kernel_files::pack_one(named.file, name)?)),
                None => Ok(Self::File(named.file)),
            },
        }
    }

    /// Starts to make a Debian root file system.
    pub fn debian_image(request: &ImageRequest, stages: Stages) -> Result<Self, CliError> {
        let stream = debian::image_stream(request, Box::new(move |stage| stages(stage)))?;
        Ok(Self::Debian(stream))
    }

    /// Downloads a kernel package.
    pub fn debian_kernel(wanted: &KernelPackage, stages: Stages) -> Result<Self, CliError> {
        let package = debian::kernel_package(wanted, Box::new(move |stage| stages(stage)))?;
        let file = File::open(package.path()).map_err(|error| {
            CliError::new(format!("cannot read {}", package.path().display())).because(&error)
        })?;
        Ok(Self::Package { file, _package: package })
    }

    /// Waits up to `patience` for something to read; returns whether a read will not wait.
    pub fn is_ready(&self, patience: &Timespec) -> bool {
        match self {
            // A regular file is always ready, and standard input may wait: Ctrl-C ends that.
            Self::File(_) | Self::Layout(_) | Self::Kernel(_) | Self::Package { .. } => true,
            Self::Debian(stream) => {
                let mut fds = [PollFd::new(stream, PollFlags::IN)];
                poll(&mut fds, Some(patience)).is_ok_and(|ready| ready > 0)
            }
        }
    }

    /// Says whether everything that was read is all there is.
    pub fn finish(self) -> Result<(), CliError> {
        match self {
            Self::Debian(stream) => stream.finish().map_err(CliError::from),
            Self::Kernel(tar) => tar.finish(),
            Self::File(_) | Self::Layout(_) | Self::Package { .. } => Ok(()),
        }
    }
}

impl Read for Source {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::File(file) | Self::Package { file, .. } => file.read(buffer),
            Self::Layout(stream) => stream.read(buffer),
            Self::Debian(stream) => stream.read(buffer),
            Self::Kernel(tar) => tar.read(buffer),
        }
    }
}

/// A kernel that the user named.
#[derive(Debug)]
pub enum NamedKernel {
    /// A package, or a kernel alone.
    File(NamedFile),
    /// A directory with a kernel's files.
    Directory {
        /// Its name, for people.
        name: String,
        /// What was found in it.
        files: KernelFiles,
    },
}

impl NamedKernel {
    /// Opens it; `-` is a package on standard input.
    pub fn open(path: &Path) -> Result<Self, CliError> {
        if !path.is_dir() {
            return Ok(Self::File(NamedFile::open(path)?));
        }
        let name = path.canonicalize().ok();
        let name = name.as_deref().and_then(Path::file_name).unwrap_or(path.as_os_str());
        let name = name.to_string_lossy().into_owned();
        Ok(Self::Directory { name, files: KernelFiles::find(path)? })
    }

    /// Returns its name, for people.
    pub fn name(&self) -> &str {
        match self {
            Self::File(file) => file.name(),
            Self::Directory { name, .. } => name,
        }
    }

    /// Returns what of a directory is not taken.
    pub fn left_out(&self) -> &[String] {
        match self {
            Self::File(_) => &[],
            Self::Directory { files, .. } => &files.left_out,
        }
    }
}

/// A tar or a package that the user named, open.
#[derive(Debug)]
pub struct NamedFile {
    name: String,
    file: File,
}

impl NamedFile {
    /// Opens it; `-` is standard input.
    pub fn open(path: &Path) -> Result<Self, CliError> {
        let failed = |error: &io::Error| {
            CliError::new(format!("cannot read {}", path.display())).because(error)
        };
        if path == Path::new("-") {
            let stdin = std::os::fd::AsFd::as_fd(&io::stdin())
                .try_clone_to_owned()
                .map_err(|error| failed(&error))?;
            return Ok(Self { name: "standard input".to_owned(), file: File::from(stdin) });
        }
        let file = File::open(path).map_err(|error| failed(&error))?;
        let metadata = file.metadata().map_err(|error| failed(&error))?;
        if metadata.is_dir() {
            return Err(failed(&io::Error::from(io::ErrorKind::IsADirectory)));
        }
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        Ok(Self { name, file })
    }

    /// Returns the file's name, for people.
    pub fn name(&self) -> &str {
        &self.name
    }
}
