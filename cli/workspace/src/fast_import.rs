//! Streams files into a git object store (git-fast-import(1)): one process for any number of files,
//! no file name on a disk or a command line, and no filter or conversion of content.

use std::fs::File;
use std::io::{self, BufWriter, Read, Seek, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Stdio};

use banger_agent_api::printable_excerpt;

use crate::error::WorkspaceError;
use crate::git::{self, MESSAGE_LIMIT};

/// What a name of a tree is to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    /// The blob of this mark.
    Mark(u64),
    /// An object that is there.
    Object(String),
}

/// A running `git fast-import`.
#[derive(Debug)]
pub struct FastImport {
    child: Child,
    input: BufWriter<ChildStdin>,
    errors: File,
    repository: PathBuf,
    marks: u64,
}

impl FastImport {
    /// Starts it in a bare repository of ours.
    pub fn start(repository: &Path) -> Result<Self, WorkspaceError> {
        let errors = tempfile::tempfile()
            .map_err(WorkspaceError::keep("make a temporary file in", std::env::temp_dir()))?;
        let stderr = errors
            .try_clone()
            .map_err(WorkspaceError::keep("use a temporary file in", std::env::temp_dir()))?;
        let mut child = git::own(repository)
            .args(["fast-import", "--quiet", "--force", "--done"])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(stderr)
            .spawn()
            .map_err(WorkspaceError::NoGit)?;
        let input = child.stdin.take().ok_or_else(|| {
            WorkspaceError::NoGit(io::Error::other("git fast-import has no standard input"))
        })?;
        Ok(Self {
            child,
            input: BufWriter::with_capacity(1 << 18, input),
            errors,
            repository: repository.to_owned(),
            marks: 0,
        })
    }

    /// Adds `size` bytes of content; what is missing of them is filled up with zeros, because their
    /// number has been said by then. Returns the mark.
    pub fn blob(&mut self, size: u64, content: impl Read) -> io::Result<u64> {
        self.marks += 1;
        write!(self.input, "blob\nmark :{}\ndata {size}\n", self.marks)?;
        let mut exact = content.take(size).chain(io::repeat(0)).take(size);
        io::copy(&mut exact, &mut self.input)?;
        self.input.write_all(b"\n")?;
        Ok(self.marks)
    }

    /// Begins a commit on top of `from`, or of nothing; its tree follows.
    pub fn commit(&mut self, reference: &str, from: Option<&str>) -> io::Result<()> {
        write!(self.input, "commit {reference}\ncommitter banger <> 0 +0000\ndata 0\n")?;
        if let Some(from) = from {
            writeln!(self.input, "from {from}")?;
        }
        Ok(())
    }

    /// Gives the commit a tree to begin with.
    pub fn root(&mut self, tree: &str) -> io::Result<()> {
        writeln!(self.input, "M 040000 {tree} \"\"")
    }

    /// Sets a name of the commit's tree.
    pub fn set(&mut self, mode: u32, content: &Content, name: &[u8]) -> io::Result<()> {
        match content {
            Content::Mark(mark) => write!(self.input, "M {mode:06o} :{mark} ")?,
            Content::Object(object) => write!(self.input, "M {mode:06o} {object} ")?,
        }
        self.name(name)
    }

    /// Removes a name from the commit's tree.
    pub fn delete(&mut self, name: &[u8]) -> io::Result<()> {
        self.input.write_all(b"D ")?;
        self.name(name)
    }

    fn name(&mut self, name: &[u8]) -> io::Result<()> {
        let mut quoted = Vec::with_capacity(name.len() + 3);
        quoted.push(b'"');
        for &byte in name {
            match byte {
                b'\n' => quoted.extend_from_slice(b"\\n"),
                b'"' | b'\\' => quoted.extend_from_slice(&[b'\\', byte]),
                byte => quoted.push(byte),
            }
        }
        quoted.extend_from_slice(b"\"\n");
        self.input.write_all(&quoted)
    }

    /// Ends it, and makes sure that all of it is there.
    pub fn finish(mut self) -> Result<(), WorkspaceError> {
        let written = self.input.write_all(b"done\n").and_then(|()| self.input.flush());
        self.end(written)
    }

    /// Ends it after a write failed, and says what git has against it.
    pub fn failed(self, error: io::Error) -> WorkspaceError {
        match self.end(Err(error)) {
            Err(error) => error,
            Ok(()) => WorkspaceError::NoGit(io::ErrorKind::BrokenPipe.into()),
        }
    }

    fn end(self, written: io::Result<()>) -> Result<(), WorkspaceError> {
        let Self { mut child, input, mut errors, repository, .. } = self;
        // Not flushed: what is left of a failed write is nothing to write again.
        drop(input.into_parts());
        let status = child.wait().map_err(WorkspaceError::NoGit)?;
        if status.success() && written.is_ok() {
            return Ok(());
        }
        let mut said = Vec::new();
        let _ = errors.rewind().and_then(|()| errors.take(1 << 16).read_to_end(&mut said));
        let said = String::from_utf8_lossy(&said);
        let message = match (said.lines().find(|line| line.starts_with("fatal")), written) {
            (Some(line), _) => line.to_owned(),
            (None, Err(error)) => error.to_string(),
            (None, Ok(())) => status.to_string(),
        };
        Err(WorkspaceError::Git {
            command: "fast-import",
            path: repository,
            message: printable_excerpt(&message, MESSAGE_LIMIT),
        })
    }
}
